//! The command line against a cluster: words, exit codes, forms of output.

use strata_tests::{Cluster, Finished, strata};

struct Shell {
    endpoints: String,
}

impl Shell {
    fn run(&self, words: &[&str], input: &[u8]) -> Finished {
        strata(
            &[&["--endpoints", self.endpoints.as_str()], words].concat(),
            input,
        )
    }

    fn ok(&self, words: &[&str]) -> String {
        self.run(words, b"").expect(0).stdout
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_read_and_written() {
    let cluster = Cluster::start().await;
    let shell = Shell {
        endpoints: cluster.address(2),
    };
    shell.ok(&["kv", "put", "greeting", "hello"]);
    assert_eq!(shell.ok(&["kv", "get", "greeting"]), "hello\n");
    shell.run(&["kv", "get", "absent"], b"").expect(1);
    shell
        .run(&["kv", "put", "piped", "-"], b"from\nstdin")
        .expect(0);
    assert_eq!(shell.ok(&["kv", "get", "piped"]), "from\nstdin\n");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"\x00\xff").unwrap();
    shell.ok(&[
        "kv",
        "put",
        "filed",
        "--file",
        file.path().to_str().unwrap(),
    ]);
    assert_eq!(shell.ok(&["kv", "get", "66696c6564", "--hex"]), "00ff\n");
    shell.ok(&["kv", "delete", "piped"]);
    shell.run(&["kv", "get", "piped"], b"").expect(1);

    shell
        .run(&["kv", "cas", "lock", "--old", "x", "--new", "y"], b"")
        .expect(1);
    shell.ok(&["kv", "cas", "lock", "--absent", "--new", "a"]);
    shell
        .run(&["kv", "cas", "lock", "--absent", "--new", "b"], b"")
        .expect(1);
    shell.ok(&["kv", "cas", "lock", "--old", "a", "--new", "b"]);
    assert_eq!(shell.ok(&["kv", "get", "lock"]), "b\n");

    shell.ok(&["kv", "append", "journal", "one"]);
    shell
        .run(&["kv", "append", "journal", "-"], b"\ntwo\n")
        .expect(0);
    assert_eq!(shell.ok(&["kv", "get", "journal"]), "one\ntwo\n\n");

    shell.run(&["kv", "append", "journal"], b"").expect(2);
    shell.run(&["kv", "append", "", "x"], b"").expect(3);
    let done = shell.ok(&["kv", "append", "journal", "x", "--format", "json"]);
    assert_eq!(done.trim(), r#"{"ok":true}"#);

    shell.run(&["kv", "get"], b"").expect(2);
    shell.run(&["kv", "get", "--hex", "0"], b"").expect(2);
    shell.run(&["kv", "scan", "b", "a"], b"").expect(3);
    cluster.assert_replicas_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_cross_regions_in_both_directions() {
    let cluster = Cluster::start().await;
    let shell = Shell {
        endpoints: cluster.endpoints_flag(),
    };
    // Keys on both sides of every boundary of a new cluster.
    let client = cluster.client().await;
    let mut all: Vec<Vec<u8>> = Vec::new();
    for info in client.scheduler().all_regions().await.unwrap() {
        for name in 0..70 {
            all.push([&info.region.start_key[..], format!("{name:03}").as_bytes()].concat());
        }
    }
    all.sort();
    let pairs = all
        .iter()
        .map(|key| (key.clone().into(), key.clone().into()));
    client.batch_put(pairs.collect(), 0).await.unwrap();
    let hex = |key: &Vec<u8>| {
        key.iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let scan = |words: &[&str]| -> Vec<String> {
        let words = [&["kv", "--hex", "scan", "--keys-only"], words].concat();
        shell.ok(&words).lines().map(str::to_string).collect()
    };
    let forward: Vec<String> = all.iter().map(hex).collect();
    let mut reverse = forward.clone();
    reverse.reverse();
    assert_eq!(scan(&[]), forward);
    assert_eq!(scan(&["--reverse"]), reverse);
    assert_eq!(scan(&["--limit", "100"]), forward[..100]);
    assert_eq!(scan(&["--limit", "100", "--reverse"]), reverse[..100]);
    let (from, to) = (&forward[50], &forward[300]);
    assert_eq!(scan(&[from, to]), forward[50..300]);
    let mut part = forward[50..300].to_vec();
    part.reverse();
    assert_eq!(scan(&[from, to, "--reverse"]), part);
    assert_eq!(scan(&[from, from]), Vec::<String>::new());
    let sum = client.checksum(b"", b"").await.unwrap();
    assert_eq!(sum.pairs, all.len() as u64);
    shell.ok(&["kv", "--hex", "delete-range", from, to]);
    assert_eq!(scan(&[]), [&forward[..50], &forward[300..]].concat());
    let rest = client.checksum(b"", b"").await.unwrap();
    assert_eq!(rest.pairs, sum.pairs - 250);
    assert_ne!(rest.crc64, sum.crc64);
    assert_eq!(cluster.assert_replicas_equal().await, rest.pairs);
}

#[tokio::test(flavor = "multi_thread")]
async fn regions_and_stores_are_shown_and_operated() {
    let cluster = Cluster::start().await;
    let shell = Shell {
        endpoints: cluster.endpoints_flag(),
    };
    let json = |words: &[&str]| -> serde_json::Value {
        let words = [words, &["--format", "json"]].concat();
        serde_json::from_str(&shell.ok(&words)).unwrap()
    };
    let status = json(&["status"]);
    assert_eq!(status["stores"].as_array().unwrap().len(), 3, "{status}");
    assert_eq!(status["regions"]["count"], 6, "{status}");
    assert!(shell.ok(&["status"]).contains("6 regions"));
    let regions = json(&["region", "list"]);
    assert_eq!(regions.as_array().unwrap().len(), 6);
    let found = json(&["region", "find", "a-key"]);
    assert_eq!(found["region_id"], 2, "the first region has the first id");
    assert_eq!(json(&["region", "show", "2"])["region_id"], 2);
    for to in ["1", "2", "3"] {
        let moved = json(&["region", "transfer-leader", "2", "--to", to]);
        assert_eq!(moved["leader_store_id"].to_string(), to);
        let shown = json(&["region", "show", "2"]);
        assert_eq!(shown["leader"]["store_id"].to_string(), to, "{shown}");
    }
    // Each store says of its own replica how far it is.
    let shown = json(&["region", "show", "2"]);
    let replicas = shown["replicas"].as_array().unwrap();
    assert_eq!(replicas.len(), 3, "{shown}");
    for replica in replicas {
        assert_eq!(replica["role"], "voter", "{shown}");
        assert!(replica["last_index"].as_u64() > Some(5), "{shown}");
        assert!(replica["applied_index"].is_u64(), "{shown}");
    }
    assert!(shell.ok(&["region", "show", "2"]).contains("committed"));
    shell.run(&["region", "show", "4711"], b"").expect(1);
    shell
        .run(&["region", "transfer-leader", "2", "--to", "9"], b"")
        .expect(3);
    assert_eq!(json(&["store", "list"]).as_array().unwrap().len(), 3);
    assert_eq!(json(&["store", "show", "3"])["address"], cluster.address(3));
    shell.run(&["store", "show", "9"], b"").expect(1);
    cluster.assert_replicas_equal().await;
}

#[test]
fn an_engine_alone_is_iterated_over_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let words = ["bench", "iterator", "--keys", "500", "--limit", "100"];
    let more = ["--seconds", "1", "--format", "json", "--dir", dir];
    let printed = strata(&[&words[..], &more[..]].concat(), b"").expect(0);
    let report: serde_json::Value = serde_json::from_str(&printed.stdout).unwrap();
    assert!(report["operations"].as_u64().unwrap() >= 100, "{report}");
    assert_eq!(report["wrong_answers"], 0, "{report}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    let words = ["bench", "iterator", "--keys", "99", "--limit", "100"];
    strata(&words, b"").expect(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_generator_reports_what_it_did() {
    let mut cluster = Cluster::start().await;
    let pids: Vec<String> = (1..=3)
        .map(|id| cluster.node(id).pid().to_string())
        .collect();
    let shell = Shell {
        endpoints: cluster.endpoints_flag(),
    };
    let bench = |words: &[&str]| -> serde_json::Value {
        let size = [
            "--clients",
            "16",
            "--seconds",
            "1",
            "--keys",
            "600",
            "--format",
            "json",
        ];
        let words = [&["bench"], words, &size].concat();
        serde_json::from_str(&shell.ok(&words)).unwrap()
    };
    for kind in ["put", "get"] {
        let report = bench(&[kind]);
        assert!(report["operations"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(report["wrong_answers"], 0, "{report}");
        assert_eq!(report["errors"], 0, "{report}");
        assert_eq!(report["regions"], 6, "{report}");
    }
    assert_eq!(bench(&["put", "--single-region"])["regions"], 1);
    // All keys are there, so that only the load itself is measured.
    let report = bench(&["get", "--loaded", "--server-pids", &pids.join(",")]);
    assert_eq!(report["wrong_answers"], 0, "{report}");
    let servers = &report["servers"];
    assert!(servers["cpu_us_per_op"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!(servers["resident_bytes"].as_array().unwrap().len(), 3);
    assert!(report["longest_gap_us"].as_u64().unwrap() > 0, "{report}");
    let command = report["command"].as_array().unwrap();
    assert!(command.contains(&"--loaded".into()), "{report}");
    for (kind, flag) in [
        ("batch-put", "--batch"),
        ("batch-get", "--batch"),
        ("scan", "--limit"),
    ] {
        let report = bench(&[kind, flag, "20"]);
        let calls = report["calls"].as_u64().unwrap();
        assert!(calls > 0, "{report}");
        assert_eq!(report["operations"], calls * 20, "{report}");
        assert_eq!(report["failures"], 0, "{report}");
        assert_eq!(report["connections"], 1, "{report}");
    }
    // Forty calls are due; on a machine however slow none is neither answered nor counted.
    let report = bench(&["put", "--rate", "40"]);
    let count = |name: &str| report[name].as_u64().unwrap();
    let counted = count("calls") + count("errors") + count("unsent");
    assert_eq!(counted, 40, "{report}");
    // 600 keys over six regions: none has 101.
    let words = ["bench", "scan", "--keys", "600", "--limit", "101"];
    shell.run(&words, b"").expect(2);
    let words = ["bench", "scan", "--target", "etcd"];
    shell.run(&words, b"").expect(2);
    cluster.assert_replicas_equal().await;
}
