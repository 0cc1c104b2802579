//! An import file with a bad row: the line is named, what was written before is reported,
//! and a second run with `--resume` goes on there.

use std::fmt::Write as _;
use strata_tests::{Cluster, strata};

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_import_bad_row() {
    let cluster = Cluster::start().await;
    let endpoints = cluster.endpoints_flag();
    let client = cluster.client().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.tsv");
    let file = path.to_str().unwrap();
    let note = folder.path().join("rows.tsv.strata-import");
    let import = |more: &[&str]| {
        let words = ["--endpoints", &endpoints, "kv", "import", file];
        strata(&[&words, more].concat(), b"")
    };
    // More rows than a batch holds, so that some are written before the bad one is read.
    const ROWS: usize = 9000;
    const BAD: usize = 8500;
    let rows = |bad: &str| {
        let mut text = String::new();
        for number in 1..=ROWS {
            if number == BAD {
                writeln!(text, "{bad}").unwrap();
            } else {
                writeln!(text, "import-{number:05}\tvalue-{number}").unwrap();
            }
        }
        text
    };
    let written = || async { client.checksum(b"import-", b"import.").await.unwrap().pairs };

    std::fs::write(&path, rows("a row without a tab")).unwrap();
    let failed = import(&[]).expect(3);
    assert!(failed.stderr.contains("line 8500"), "{failed:?}");
    assert!(failed.stderr.contains("8499 rows"), "{failed:?}");
    assert!(failed.stderr.contains("--resume"), "{failed:?}");
    assert_eq!(
        written().await,
        BAD as u64 - 1,
        "all rows before are written"
    );
    assert!(note.exists());

    // Again with the same bad row: still there, nothing lost.
    let again = import(&["--resume"]).expect(3);
    assert!(again.stderr.contains("line 8500"), "{again:?}");

    // A row that the store refuses is named as well.
    let long_key = format!("import-{}\tv", "x".repeat(9 << 10));
    std::fs::write(&path, rows(&long_key)).unwrap();
    let refused = import(&["--resume"]).expect(3);
    assert!(refused.stderr.contains("line 8500"), "{refused:?}");
    assert!(refused.stderr.contains("8499 rows"), "{refused:?}");

    // The part that was written must be the same.
    let changed = rows("import-bad\tmended").replacen("value-1\n", "value-x\n", 1);
    std::fs::write(&path, changed).unwrap();
    let changed = import(&["--resume"]).expect(3);
    assert!(changed.stderr.contains("without --resume"), "{changed:?}");

    std::fs::write(&path, rows("import-08500\tmended")).unwrap();
    let done = import(&["--resume", "--format", "json"]).expect(0);
    let done: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(done["rows"], ROWS - BAD + 1, "{done}");
    assert_eq!(done["resumed_after_line"], BAD - 1, "{done}");
    assert_eq!(written().await, ROWS as u64);
    assert_eq!(
        client.get(b"import-08500").await.unwrap().as_deref(),
        Some(&b"mended"[..])
    );
    assert!(!note.exists(), "nothing is left of a complete import");

    // Stdin cannot be resumed, and has no note.
    let words = ["--endpoints", &endpoints, "kv", "import", "-"];
    let piped = strata(&words, b"{\"key\": \"import-p\", \"value\": 1}\n").expect(3);
    assert!(piped.stderr.contains("line 1"), "{piped:?}");
    strata(&[&words[..], &["--resume"]].concat(), b"").expect(2);
    strata(
        &["--endpoints", &endpoints, "kv", "import", "/absent/file"],
        b"",
    )
    .expect(3);
    cluster.assert_replicas_equal().await;
}
