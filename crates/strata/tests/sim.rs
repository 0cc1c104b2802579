//! `strata sim` as a user runs it: words, lines and exit codes.

use std::process::{Command, Output};

/// Runs the command to its end.
fn sim(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_strata"))
        .arg("sim")
        .args(words)
        .output()
        .expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("output is text")
}

#[test]
fn sim_runs_seeds_and_prints_what_they_reached() {
    let done = sim(&["--seeds", "0..3", "--ops", "300"]);
    let out = text(&done.stdout);
    assert_eq!(done.status.code(), Some(0), "{out}{}", text(&done.stderr));
    assert!(out.contains("leader changes"), "{out}");
    assert!(out.contains("3 seeds, 0 failed"), "{out}");

    let done = sim(&["--seeds", "0..3", "--ops", "300", "--format", "json"]);
    let line: serde_json::Value = serde_json::from_slice(&done.stdout).expect("one JSON value");
    assert_eq!(line["seeds"], 3);
    assert_eq!(line["failed"], 0);
    assert!(line["counters"]["lease reads"].as_u64() > Some(0), "{line}");
}

/// Two threads ask once more each when the seeds are used up.
#[test]
fn sim_seeds_may_reach_up_to_the_largest_number() {
    let seeds = format!("{}..{}", u64::MAX - 3, u64::MAX);
    let done = sim(&["--seeds", &seeds, "--ops", "30", "--threads", "2"]);
    let out = text(&done.stdout);
    assert_eq!(done.status.code(), Some(0), "{out}{}", text(&done.stderr));
    assert!(out.contains("3 seeds, 0 failed"), "{out}");
}

#[test]
fn bad_input_sim_seed_range_is_one_line_and_code_two() {
    for word in ["9..5", "5..5", "five", "0..", "-3..5"] {
        let done = sim(&["--seeds", word]);
        let line = text(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{word}: {line}");
        assert_eq!(line.lines().count(), 1, "{word}: {line}");
        assert!(line.starts_with("error: "), "{word}: {line}");
    }
    let done = sim(&["--seeds", "0..2", "--trace", "nowhere"]);
    assert_eq!(done.status.code(), Some(2), "{}", text(&done.stderr));
}

#[test]
fn sim_trace_is_written_compared_and_refused_in_another_version() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("run.txt");
    let file = path.to_str().expect("a path of plain letters");
    let done = sim(&["--seeds", "1..2", "--ops", "100", "--trace", file]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));

    let done = sim(&["--replay", file]);
    let out = text(&done.stdout);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert!(out.starts_with("equal: "), "{out}");

    let written = std::fs::read_to_string(&path).expect("the trace");
    let changed = written.replacen("step ", "stop ", 1);
    std::fs::write(&path, changed).expect("written again");
    let done = sim(&["--replay", file]);
    assert_eq!(done.status.code(), Some(1), "another event is a difference");
    assert!(text(&done.stderr).contains("in the file"));

    // Without its last lines, of which the last one is cut, too.
    let lines: Vec<&str> = written.lines().collect();
    let cut = [&lines[..502].join("\n"), "\n", &lines[502][..5]].concat();
    std::fs::write(&path, cut).expect("written again");
    let done = sim(&["--replay", file]);
    let line = text(&done.stderr);
    assert_eq!(done.status.code(), Some(3), "{line}");
    assert!(line.contains("cut short behind 500 events"), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");

    let later = written.replacen("version 1", "version 99", 1);
    std::fs::write(&path, later).expect("written again");
    let done = sim(&["--replay", file]);
    let line = text(&done.stderr);
    assert_eq!(done.status.code(), Some(3), "{line}");
    assert!(
        line.contains("of version 99, this program compares version 1"),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1, "{line}");

    let done = sim(&["--replay", "/nonexistent/run.txt"]);
    assert_eq!(done.status.code(), Some(3));
}

#[test]
fn bad_input_sim_plan_that_is_none_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("plan.json");
    let file = path.to_str().expect("a path of plain letters");
    for (plan, said) in [("{}", "not a plan"), ("{\"version\":9}", "of version 9")] {
        std::fs::write(&path, plan).expect("a file");
        let done = sim(&["--plan", file]);
        let line = text(&done.stderr);
        assert_eq!(done.status.code(), Some(3), "{line}");
        assert!(line.contains(said), "{line}");
    }
    // A plan that a run has printed, with one number that no machine has room for.
    let run = folder.path().join("run.txt");
    let run = run.to_str().expect("a path of plain letters");
    sim(&["--seeds", "1..2", "--ops", "10", "--trace", run]);
    let written = std::fs::read_to_string(run).expect("the trace");
    let plan = written.lines().nth(1).expect("the plan");
    let shards = plan.find("\"raft_shards\":").expect("the field") + 14;
    let large = [&plan[..shards], "10000000", &plan[shards..]].concat();
    std::fs::write(&path, large).expect("a file");
    let done = sim(&["--plan", file]);
    let line = text(&done.stderr);
    assert_eq!(done.status.code(), Some(3), "{line}");
    assert!(line.contains("raft_shards is 10000000"), "{line}");
    assert!(line.contains("not 1 to 16"), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
}
