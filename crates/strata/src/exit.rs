//! How a command ends: exit codes, and errors in one line.

use clap::error::ErrorKind;
use std::process::ExitCode;

/// What a command ends with.
pub type Outcome = Result<(), Failure>;

/// Why a command did not succeed; each variant is an exit code.
#[derive(Debug)]
pub enum Failure {
    /// The answer is "no": the key is absent, the value did not match. Exit code 1.
    No(String),
    /// The command line is wrong. Exit code 2.
    CommandLine(String),
    /// Anything else. Exit code 3.
    Error(String),
    /// All was printed already; exit with this code.
    Silent(u8),
}

impl Failure {
    /// An error (exit code 3) with one line that says what to do.
    pub fn error(line: impl Into<String>) -> Self {
        Failure::Error(line.into())
    }
}

impl From<strata_client::Error> for Failure {
    fn from(error: strata_client::Error) -> Self {
        match error {
            strata_client::Error::BadEndpoint { .. } => {
                Failure::CommandLine(format!("{error}; give --endpoints as HOST:PORT,HOST:PORT"))
            }
            other => Failure::Error(other.to_string()),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::Error(format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::Error(error.to_string())
    }
}

/// Prints what is to be said and gives the exit code.
pub fn code(outcome: Outcome) -> ExitCode {
    let (line, code) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::No(line)) => (line, 1),
        Err(Failure::CommandLine(line)) => (format!("error: {line}"), 2),
        Err(Failure::Error(line)) => (format!("error: {line}"), 3),
        Err(Failure::Silent(code)) => return ExitCode::from(code),
    };
    if !line.is_empty() {
        eprintln!("{}", one_line(&line));
    }
    ExitCode::from(code)
}

/// Help and version go to stdout with code 0; a wrong command line becomes one line.
pub fn command_line(error: &clap::Error) -> Outcome {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A closed pipe is the reader's choice.
            let _ = error.print();
            Ok(())
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            Err(Failure::Silent(2))
        }
        _ => {
            let text = error.to_string();
            let head = text.split("\nUsage:").next().unwrap_or_default();
            let head = head
                .split("\nFor more information")
                .next()
                .unwrap_or_default();
            let head = head.trim().trim_start_matches("error: ").to_string();
            let head = head.replace("\n\n  tip: ", "; ");
            Err(Failure::CommandLine(format!("{head}; see --help")))
        }
    }
}

fn one_line(text: &str) -> String {
    text.split('\n')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_lines_become_one() {
        assert_eq!(one_line("a\n  b\n\nc"), "a b c");
    }

    #[test]
    fn a_wrong_command_line_is_one_line_and_code_two() {
        use clap::Parser;
        let error = crate::args::Cli::try_parse_from(["strata", "kv", "cas", "k"]).unwrap_err();
        let Err(Failure::CommandLine(line)) = command_line(&error) else {
            panic!("not taken for a wrong command line");
        };
        assert!(line.contains("--new"), "{line}");
        assert!(!line.contains("Usage"), "{line}");
        let words = ["strata", "kv", "put", "k", "-v"];
        let error = crate::args::Cli::try_parse_from(words).unwrap_err();
        let Err(Failure::CommandLine(line)) = command_line(&error) else {
            panic!("not taken for a wrong command line");
        };
        assert_eq!(
            line,
            "unexpected argument '-v' found; to pass '-v' as a value, use '-- -v'; see --help"
        );
    }
}
