//! Words, rows and pages of any content where the command line reads them.

use bytes::Bytes;
use clap::Parser;
use strata_fuzz::run;

use crate::args::{Cli, Rows};
use crate::kv::rows::{self, Row};
use crate::text;

#[test]
fn fuzz_rows_of_an_import() {
    let corpus = [
        r#"{"key": "k", "value": "v", "ttl": 60}"#,
        r#"{"key": {"hex": "00ff"}, "value": {"hex": ""}}"#,
        "key\tvalue\t60",
        "k\\x00\\t\\\\\tv\\n",
        "6b\t76",
    ];
    let (mut taken, mut refused) = (0, 0);
    run("rows", 10_000, |mutator| {
        let line = mutator.pick(&corpus).as_bytes();
        let line = if mutator.one_in(6) {
            let other = mutator.pick(&corpus).as_bytes();
            mutator.splice(line, other)
        } else {
            mutator.bytes(line)
        };
        for form in [Rows::Json, Rows::Tsv, rows::form_by_row(&line)] {
            let _ = rows::is_blank(&line, Some(form));
            for hex in [false, true] {
                match rows::parse(&line, form, hex) {
                    Ok(row) => {
                        taken += 1;
                        assert!(!row.key.is_empty());
                        let written = rows::write(&row, form, hex);
                        let body = written.strip_suffix('\n').expect("a row ends its line");
                        assert_eq!(rows::parse(body.as_bytes(), form, hex), Ok(row));
                    }
                    Err(reason) => {
                        refused += 1;
                        assert!(!reason.is_empty());
                    }
                }
            }
        }
        // What is written comes back, whatever it holds.
        let row = Row {
            key: Bytes::from([&b"k"[..], &mutator.noise(20)].concat()),
            value: mutator.noise(20).into(),
            ttl_seconds: mutator.number(),
        };
        for form in [Rows::Json, Rows::Tsv] {
            let written = rows::write(&row, form, false);
            let body = written.trim_end_matches('\n').as_bytes();
            assert_eq!(
                rows::parse(body, form, false).as_ref(),
                Ok(&row),
                "{written:?}"
            );
        }
    });
    if strata_fuzz::is_whole_run() {
        assert!(
            taken > 3_000 && refused > 3_000,
            "{taken} taken, {refused} refused"
        );
    }
}

#[test]
fn fuzz_words_in_hexadecimal() {
    run("hexadecimal", 20_000, |mutator| {
        let bytes = mutator.noise(12);
        let digits = text::hex(&bytes);
        assert_eq!(text::parse(&digits, true).ok().as_deref(), Some(&bytes[..]));
        let damaged = mutator.damaged_text(&digits);
        if let Ok(read) = text::parse(&damaged, true) {
            assert_eq!(text::hex(&read), damaged.to_lowercase());
        }
        assert!(!text::escape(&bytes).contains('\n'));
    });
}

/// Words of a command line with damage in any of them: a command, or a refusal.
#[test]
fn fuzz_command_lines() {
    let lines: [&[&str]; 6] = [
        &["kv", "cas", "--hex", "6b", "--old", "00", "--new", "01"],
        &[
            "--endpoints",
            "127.0.0.1:2379,[::1]:2380",
            "--timeout",
            "2.5",
            "status",
        ],
        &[
            "node",
            "--id",
            "1",
            "--addr",
            "127.0.0.1:2379",
            "--data-dir",
            "d",
            "--initial-cluster",
            "1=127.0.0.1:2379,2=b:1",
            "--replicas",
            "3",
        ],
        &["up", "--nodes", "3", "--regions", "6", "--port", "2379"],
        &[
            "kv",
            "scan",
            "a",
            "b",
            "--limit",
            "10",
            "--reverse",
            "--format",
            "json",
        ],
        &["region", "transfer-leader", "2", "--to", "3"],
    ];
    let (mut taken, mut refused) = (0, 0);
    run("command lines", 1_500, |mutator| {
        let mut words: Vec<String> = mutator.pick(&lines).iter().map(|w| (*w).into()).collect();
        for _ in 0..1 + mutator.number() % 2 {
            let at = mutator.number() as usize % words.len();
            words[at] = match mutator.number() % 3 {
                0 => mutator.number().to_string(),
                _ => mutator.damaged_text(&words[at]),
            };
        }
        words.insert(0, "strata".to_owned());
        match Cli::try_parse_from(&words) {
            Ok(cli) => {
                taken += 1;
                let timeout = cli.global.timeout;
                assert!(timeout > 0.0 && timeout <= 86_400.0, "{words:?}");
                // No setting of the client overflows.
                let options = crate::connect::options(&cli.global);
                assert!(
                    options.attempt_timeout <= options.operation_timeout,
                    "{words:?}"
                );
            }
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().is_empty());
            }
        }
    });
    if strata_fuzz::is_whole_run() {
        assert!(
            taken > 50 && refused > 200,
            "{taken} taken, {refused} refused"
        );
    }
}
