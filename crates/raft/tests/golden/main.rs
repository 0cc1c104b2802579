//! Golden scripts: one situation a file, commands and what comes of them, in
//! `testdata/SUBJECT/NAME.txt`.
//!
//! `script`    blocks of a file: commands, a line `---`, their output.
//! `commands`  what each command does; its header lists the language.
//! `world`     the nodes, what is between them, and the driver's work on their Readys.
//! `render`    messages, entries and state in one compact notation.
//!
//! A block's output is compared with what is in the file. With `STRATA_REWRITE=1` in the
//! environment the file is written anew instead; its diff is then to be read line by line.
//! After every command the world checks that no two leaders share a term and that all nodes
//! applied the same entry at each index, whatever the script is about.

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod render;
mod script;
mod world;

use std::path::{Path, PathBuf};

use commands::run_block;
use script::Script;
use world::World;

/// Runs all scripts of one subject and compares or rewrites their output.
fn run_folder(subject: &str) {
    // Asked for at run time: one target folder may serve several checkouts.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo");
    let folder = Path::new(&package).join("testdata").join(subject);
    let listing = std::fs::read_dir(&folder).expect("the folder of scripts exists");
    let mut paths: Vec<PathBuf> = listing
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no scripts in {}", folder.display());
    let rewrite = std::env::var_os("STRATA_REWRITE").is_some_and(|value| value == "1");
    let mut wrong = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("the script can be read");
        // Shown when a command of the script cannot be carried out.
        println!("script {}", path.display());
        let fresh = run_script(&text, &path);
        if fresh == text {
            continue;
        }
        if rewrite {
            std::fs::write(&path, fresh).expect("the script can be written");
        } else {
            wrong.push(format!(
                "{}\n{}",
                path.display(),
                first_difference(&text, &fresh)
            ));
        }
    }
    assert!(wrong.is_empty(), "output differs:\n{}", wrong.join("\n"));
}

/// The script with the output that it really has.
fn run_script(text: &str, path: &Path) -> String {
    let mut script = Script::parse(text);
    assert!(
        text.starts_with("# "),
        "{} does not open with a comment on what it shows",
        path.display()
    );
    let mut world = World::default();
    for block in &mut script.blocks {
        block.output = run_block(&mut world, &block.commands);
    }
    script.to_text()
}

fn first_difference(expected: &str, found: &str) -> String {
    let mut lines = expected.lines().zip(found.lines()).enumerate();
    let differing = lines.find(|(_, (a, b))| a != b);
    match differing {
        Some((at, (a, b))) => format!("  line {}\n  expected: {a}\n  found:    {b}", at + 1),
        None => {
            let (a, b) = (expected.lines().count(), found.lines().count());
            format!("  expected {a} lines, found {b}")
        }
    }
}

#[test]
fn election() {
    run_folder("election");
}

#[test]
fn replication() {
    run_folder("replication");
}

#[test]
fn snapshot() {
    run_folder("snapshot");
}

#[test]
fn read() {
    run_folder("read");
}

#[test]
fn membership() {
    run_folder("membership");
}

#[test]
fn transfer() {
    run_folder("transfer");
}

#[test]
fn a_changed_output_is_noticed() {
    let text = "# Shows that the harness compares.\ncluster nodes=1\n---\nnonsense\n";
    let fresh = run_script(text, Path::new("inline"));
    assert_ne!(fresh, text);
    assert_eq!(
        first_difference(text, &fresh),
        "  expected 4 lines, found 3"
    );
}
