//! Completions and manual pages, made by the binary from its own definitions.

use strata_tests::strata;

#[test]
fn completions_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = strata(&["completions", shell], b"").expect(0).stdout;
        for word in ["transfer-leader", "export", "raft-log", "--single-region"] {
            // Fish names long flags without their dashes.
            let word = word.trim_start_matches("--");
            assert!(script.contains(word), "{shell} does not know {word}");
        }
        assert!(!script.contains("Finished"), "{shell}");
    }
    strata(&["completions", "tcsh"], b"").expect(2);
    strata(&["completions"], b"").expect(2);
}

#[test]
fn the_completion_script_is_one_that_bash_reads() {
    let script = strata(&["completions", "bash"], b"").expect(0).stdout;
    let mut bash = std::process::Command::new("bash");
    let script = format!("{script}\ncomplete -p strata\n");
    let output = bash.args(["--norc", "-c", &script]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("_strata"));
}

#[test]
fn manual_pages_are_written_for_every_command() {
    let page = strata(&["man"], b"").expect(0).stdout;
    assert!(page.contains(".TH strata 1"), "{page}");
    let folder = tempfile::tempdir().unwrap();
    let man = folder.path().join("man/man1");
    let dir = man.to_str().unwrap();
    strata(&["man", "--dir", dir], b"").expect(0);
    for name in ["strata", "strata-kv-import", "strata-debug-checksum"] {
        let page = std::fs::read_to_string(man.join(format!("{name}.1"))).unwrap();
        assert!(page.contains("Examples:"), "{name} has no examples");
    }
    assert!(!man.join("strata-noop-server.1").exists());
    std::fs::write(folder.path().join("file"), "").unwrap();
    let file = folder.path().join("file");
    strata(&["man", "--dir", file.to_str().unwrap()], b"").expect(3);
}
