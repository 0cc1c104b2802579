//! `strata check`: a live cluster whose leaders are killed, and histories from files.

use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use strata_tests::{Cluster, DEADLINE, Finished, eventually, strata};
use tokio::task::JoinHandle;

/// Starts a check of some seconds that writes its history into a file.
fn start_check(cluster: &Cluster, seconds: u64, file: &str) -> JoinHandle<Finished> {
    let words = format!(
        "check --clients 6 --seconds {seconds} --seed 7 --format json --history {file} \
         --endpoints {}",
        cluster.endpoints().join(",")
    );
    tokio::task::spawn_blocking(move || {
        let words: Vec<&str> = words.split(' ').collect();
        strata(&words, b"")
    })
}

fn json(finished: &Finished) -> Value {
    let said = serde_json::from_str(&finished.stdout);
    said.unwrap_or_else(|error| panic!("{error}: {finished:?}"))
}

/// The store that leads the most regions.
async fn leading_store(cluster: &Cluster) -> u64 {
    let client = cluster.client().await;
    eventually("a region with a leader", || async {
        let regions = client.scheduler().all_regions().await;
        let regions = regions.map_err(|error| error.to_string())?;
        let leaders: Vec<u64> = regions
            .into_iter()
            .filter_map(|info| info.leader.map(|peer| peer.store_id))
            .collect();
        let counted = leaders
            .iter()
            .max_by_key(|id| leaders.iter().filter(|other| other == id).count());
        counted.copied().ok_or_else(|| "none".to_owned())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn strata_check_finds_a_live_cluster_linearizable_while_leaders_are_killed() {
    let mut cluster = Cluster::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.jsonl");
    let file = file.to_str().unwrap().to_owned();
    let check = start_check(&cluster, 12, &file);
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let victim = leading_store(&cluster).await;
        cluster.kill(victim);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        cluster.start_node(victim);
        cluster.wait_ready().await;
    }
    let finished = check.await.unwrap().expect(0);
    let said = json(&finished);
    assert_eq!(said["verdict"], "linearizable", "{said}");
    assert_eq!(said["violations"], serde_json::json!([]), "{said}");
    assert_eq!(said["replicas"]["regions_equal"], 6, "{said}");
    assert_eq!(said["replicas"]["regions_equal_as_a_whole"], 6, "{said}");
    // A leader of each region, and the next one of some.
    assert!(said["leader_terms"].as_u64() > Some(6), "{said}");
    assert!(said["answered"].as_u64() > Some(200), "{said}");
    assert!(said["keys"].as_u64() >= Some(24), "{said}");
    assert_eq!(said["regions"], 6, "{said}");

    // The same history from the file, with the same verdict.
    let verified = strata(&["check", "--verify", &file, "--format", "json"], b"").expect(0);
    let again = json(&verified);
    for field in ["operations", "answered", "unknown", "keys", "verdict"] {
        assert_eq!(again[field], said[field], "{field}");
    }

    // Nothing is left behind.
    let client = cluster.client().await;
    let left = client.scan(strata_client::Scan::default()).await.unwrap();
    let left: Vec<_> = left
        .iter()
        .filter(|(key, _)| key.windows(13).any(|part| part == b"strata-check-"))
        .collect();
    assert_eq!(left, Vec::<&(bytes::Bytes, bytes::Bytes)>::new());

    // A read that saw what was overwritten long before is found in it.
    let text = std::fs::read_to_string(&file).unwrap();
    let (key, first) = overwritten_value(&text);
    let stale = format!(
        "{{\"client\":99,\"invoked\":9000001,\"returned\":9000002,\"at\":[1,2],\"keys\":[{{\
         \"key\":{key},\"action\":\"get\",\"outcome\":{{\"value\":{first}}}}}]}}\n"
    );
    let mut lines: Vec<&str> = text.lines().skip(1).collect();
    let closing = lines.pop().unwrap();
    assert_eq!(closing, format!("{{\"operations\":{}}}", lines.len()));
    let operations = [&lines.join("\n"), "\n", &stale].concat();
    std::fs::write(&file, whole(&operations)).unwrap();
    let violated = strata(&["check", "--verify", &file], b"").expect(1);
    assert!(violated.stdout.contains("not linearizable"), "{violated:?}");
    let last = violated
        .stdout
        .trim_end()
        .lines()
        .last()
        .unwrap_or_default();
    assert!(
        last.contains("not explained: client 99 get"),
        "{violated:?}"
    );
}

/// A key with a value that was put, and that a later put of the same key replaced, both
/// answered and one after the other; as they stand in the text. The last read of the key saw
/// another one.
fn overwritten_value(text: &str) -> (Value, Value) {
    let operations: Vec<Value> = text
        .lines()
        .skip(1)
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let puts = operations.iter().filter(|of| {
        of["keys"].as_array().map(Vec::len) == Some(1)
            && of["keys"][0]["action"] == "put"
            && of["returned"].is_u64()
    });
    let puts: Vec<&Value> = puts.collect();
    let found = puts.iter().find(|first| {
        puts.iter().any(|later| {
            later["keys"][0]["key"] == first["keys"][0]["key"]
                && later["invoked"].as_u64() > first["returned"].as_u64()
        })
    });
    let first = &found.expect("a key that was put twice")["keys"][0];
    (first["key"].clone(), first["value"].clone())
}

/// All nodes are down when the load ends, and stay so.
#[tokio::test(flavor = "multi_thread")]
async fn strata_check_writes_and_judges_its_history_when_the_cluster_is_gone_at_the_end() {
    let mut cluster = Cluster::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.jsonl");
    let file = file.to_str().unwrap();
    let check = start_check(&cluster, 6, file);
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.kill_all();
    let finished = tokio::time::timeout(DEADLINE, check);
    let finished = finished.await.expect("the end is bounded").unwrap();
    let finished = finished.expect(3);
    assert!(
        finished.stderr.contains("could not be compared"),
        "{finished:?}"
    );
    let said = json(&finished);
    assert_eq!(said["verdict"], "linearizable", "{said}");
    let not_compared = said["replicas"]["not_compared"].as_array();
    assert_eq!(not_compared.map(Vec::len), Some(6), "{said}");
    let verified = strata(&["check", "--verify", file, "--format", "json"], b"").expect(0);
    let again = json(&verified);
    for field in ["operations", "answered", "unknown", "keys", "verdict"] {
        assert_eq!(again[field], said[field], "{field}");
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(status.expect("cp runs").success());
}

/// All nodes lose what they acknowledged, which their clients see, and are gone at the end.
#[tokio::test(flavor = "multi_thread")]
async fn planted_fault_strata_check_finds_lost_writes_of_a_cluster_that_is_gone_at_the_end() {
    let mut cluster = Cluster::start().await;
    let copies = tempfile::tempdir().unwrap();
    let ids = cluster.ids().into_iter();
    let folders: Vec<_> = ids.map(|id| cluster.spec(id).folder.clone()).collect();
    cluster.kill_all();
    for folder in &folders {
        copy(folder, copies.path());
    }
    cluster.start_all();
    cluster.wait_ready().await;
    let file = copies.path().join("run.jsonl");
    let file = file.to_str().unwrap();
    let check = start_check(&cluster, 15, file);
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.kill_all();
    for folder in &folders {
        std::fs::remove_dir_all(folder).unwrap();
        copy(&copies.path().join(folder.file_name().unwrap()), folder);
    }
    cluster.start_all();
    cluster.wait_ready().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.kill_all();
    let finished = tokio::time::timeout(DEADLINE, check);
    let finished = finished.await.expect("the end is bounded").unwrap();
    let said = json(&finished.expect(1));
    assert_eq!(said["verdict"], "not linearizable", "{said}");
    strata(&["check", "--verify", file], b"").expect(1);
}

const HEAD: &str = "{\"format\":\"strata-history\",\"version\":2}\n";

/// The text form of a history with these operations, a line each.
fn whole(operations: &str) -> String {
    let count = operations.lines().count();
    format!("{HEAD}{operations}{{\"operations\":{count}}}\n")
}

/// A line on one key.
fn line(places: &str, key: &str) -> String {
    format!("{{\"client\":1,{places},\"at\":[1],\"keys\":[{{\"key\":\"k\",{key}}}]}}\n")
}

fn verify(text: &str) -> strata_tests::Finished {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("history.jsonl");
    std::fs::write(&file, text).unwrap();
    strata(&["check", "--verify", file.to_str().unwrap()], b"")
}

#[test]
fn strata_check_offline_history_with_a_planted_violation_exits_with_one() {
    let put = |places: &str, value: &str| {
        let key = format!("\"action\":\"put\",\"value\":\"{value}\",\"outcome\":\"done\"");
        line(places, &key)
    };
    let get = |places: &str, value: &str| {
        let key = format!("\"action\":\"get\",\"outcome\":{{\"value\":{value}}}");
        line(places, &key)
    };
    let good = [
        put("\"invoked\":1,\"returned\":2", "a"),
        put("\"invoked\":3,\"returned\":4", "b"),
        get("\"invoked\":5,\"returned\":6", "\"b\""),
    ]
    .concat();
    let finished = verify(&whole(&good)).expect(0);
    assert!(finished.stdout.contains("linearizable: "), "{finished:?}");
    let bad = good.replace("{\"value\":\"b\"}", "{\"value\":\"a\"}");
    let finished = verify(&whole(&bad)).expect(1);
    for part in [
        "3 operations (3 answered, 0 of unknown outcome) on 1 key",
        "not linearizable: key \"k\"",
        "not explained: client 1 get -> \"a\"",
    ] {
        assert!(finished.stdout.contains(part), "{part}: {finished:?}");
    }
    assert_eq!(finished.stderr, "");
    // An unfinished operation may have been done, or not.
    let open = line("\"invoked\":5", "\"action\":\"put\",\"value\":\"c\"");
    for (seen, code) in [("\"b\"", 0), ("\"c\"", 0), ("\"a\"", 1)] {
        let last = get("\"invoked\":6,\"returned\":7", seen);
        let head: Vec<&str> = good.lines().take(2).collect();
        let operations = format!("{}\n{open}{last}", head.join("\n"));
        verify(&whole(&operations)).expect(code);
    }
}

#[test]
fn bad_input_history_of_another_version_or_with_a_damaged_line() {
    let good = line(
        "\"invoked\":1,\"returned\":2",
        "\"action\":\"get\",\"outcome\":{\"value\":null}",
    );
    let text = whole(&good);
    verify(&text).expect(0);
    verify(&[&text, "\n"].concat()).expect(0);
    for (text, said) in [
        (String::new(), "not a history"),
        (good.clone(), "not a history"),
        (text.replace("\"version\":2", "\"version\":7"), "version 7"),
        (text.replace("\"version\":2", "\"version\":1"), "version 1"),
        (text.replace("\"at\":[1]", "\"at\":1"), "line 2 is damaged"),
        (
            whole(&[&good[..], &good].concat()),
            "line 3 is damaged: place 1 is used twice",
        ),
        // Cut within the closing line, before it, within an operation, before all of them.
        (
            text[..text.len() - 5].to_owned(),
            "cut short behind 1 operations",
        ),
        ([HEAD, &good].concat(), "cut short behind 1 operations"),
        (
            text[..HEAD.len() + 9].to_owned(),
            "cut short behind 0 operations",
        ),
        (HEAD.to_owned(), "cut short behind 0 operations"),
        (whole(""), "holds no operations"),
        (
            text.replace("{\"operations\":1}", "{\"operations\":2}"),
            "holds 1 operations, and its closing line says 2",
        ),
    ] {
        let finished = verify(&text).expect(3);
        assert!(finished.stderr.contains(said), "{said}: {finished:?}");
    }
    let missing = strata(&["check", "--verify", "/nowhere/history.jsonl"], b"").expect(3);
    assert!(
        missing
            .stderr
            .contains("/nowhere/history.jsonl cannot be read"),
        "{missing:?}"
    );
    let both = strata(&["check", "--verify", "f", "--clients", "3"], b"").expect(2);
    assert!(both.stderr.contains("--verify"), "{both:?}");
    for words in [["check", "--clients", "0"], ["check", "--seconds", "0"]] {
        strata(&words, b"").expect(2);
    }
}
