//! `strata completions` and `strata man`: made from the same definitions as the parser.

use crate::args::{Cli, Global};
use crate::exit::{Failure, Outcome};
use crate::output;
use clap::CommandFactory;
use serde_json::json;
use std::path::Path;

const NAME: &str = "strata";

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
    output::write_out(&script)
}

/// Prints the page of the whole program, or writes the pages of all commands to a folder,
/// which is made if there is none.
///
/// # Errors
/// When a page cannot be written.
pub fn pages(global: &Global, dir: Option<&Path>) -> Outcome {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        return output::write_out(&page);
    };
    let written =
        std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Cli::command(), dir));
    written.map_err(|error| {
        Failure::error(format!(
            "the pages cannot be written to {}: {error}; name a folder that can be written",
            dir.display()
        ))
    })?;
    let line = json!({ "dir": dir.display().to_string() });
    output::print(global.format, &line, || {
        format!("pages written to {}", dir.display())
    })
}
