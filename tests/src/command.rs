//! Runs the command line and looks at what it says.

use crate::strata_binary;
use std::io::Write;
use std::process::{Command, Stdio};

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

/// Runs `strata` with these words and this input, to its end.
///
/// # Panics
/// When it cannot be started or is killed by a signal.
pub fn strata(words: &[&str], input: &[u8]) -> Finished {
    let mut process = Command::new(strata_binary())
        .args(words)
        .env_remove("STRATA_ENDPOINTS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stdin = process.stdin.take().expect("stdin is a pipe");
    let input = input.to_vec();
    // On a thread, as the command may print before it has read everything; it may also
    // end without reading.
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = process.wait_with_output().expect("the command ends");
    writer.join().expect("the input is written");
    Finished {
        code: output.status.code().expect("the command ends by itself"),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Finished {
    /// Checks the exit code, and that an error is one line.
    ///
    /// # Panics
    /// When they are not as expected.
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        if code >= 2 {
            assert_eq!(self.stderr.trim_end().lines().count(), 1, "{self:?}");
        }
        self
    }
}
