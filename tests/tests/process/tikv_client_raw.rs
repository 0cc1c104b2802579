//! The published `tikv-client` crate against `strata up`: unmodified, all raw calls.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use strata_tests::{DEADLINE, reserve_consecutive, strata_binary};
use tikv_client::{Key, KvPair, RawClient};

/// A cluster by `strata up`, in the foreground of this process.
struct Up {
    process: Child,
    endpoints: Vec<String>,
    _ports: Vec<strata_tests::ReservedPort>,
    _folder: tempfile::TempDir,
}

impl Up {
    fn start(regions: u64) -> Self {
        let ports = reserve_consecutive(3).expect("three free ports in a row");
        let folder = tempfile::tempdir().unwrap();
        let mut process = Command::new(strata_binary())
            .args(["up", "--regions", &regions.to_string()])
            .args(["--port", &ports[0].number().to_string(), "--data-dir"])
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (lines, seen) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // Nobody listens any more once the cluster is ready.
                let _ = lines.send(line);
            }
        });
        let until = std::time::Instant::now() + DEADLINE;
        let mut nodes = 0;
        loop {
            let left = until.saturating_duration_since(std::time::Instant::now());
            let line = seen.recv_timeout(left).expect("the ready line in time");
            println!("{line}");
            if line.starts_with("node ") {
                nodes += 1;
            }
            if line.starts_with("cluster ready in ") && line.ends_with(" ms") {
                break;
            }
        }
        assert_eq!(nodes, 3, "a line for each node comes first");
        Self {
            process,
            endpoints: ports.iter().map(|port| port.address()).collect(),
            _ports: ports,
            _folder: folder,
        }
    }

    /// Stops the cluster as an operator does.
    fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = self.process.wait().unwrap();
        assert!(status.success(), "{status}");
        for endpoint in &self.endpoints {
            assert!(
                std::net::TcpStream::connect(endpoint).is_err(),
                "{endpoint} still answers"
            );
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn text(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

fn keys(pairs: &[KvPair]) -> Vec<Vec<u8>> {
    pairs
        .iter()
        .map(|pair| Vec::from(pair.key().clone()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tikv_client_raw_calls_against_strata_up() {
    let up = Up::start(8);
    let client = RawClient::new(up.endpoints.clone()).await.unwrap();

    // One key.
    assert_eq!(client.get("absent".to_owned()).await.unwrap(), None);
    client.put("one".to_owned(), "1").await.unwrap();
    assert_eq!(
        client.get("one".to_owned()).await.unwrap(),
        Some(b"1".to_vec())
    );
    client.put("empty".to_owned(), "").await.unwrap();
    assert_eq!(
        client.get("empty".to_owned()).await.unwrap(),
        Some(Vec::new())
    );
    client.delete("empty".to_owned()).await.unwrap();
    assert_eq!(client.get("empty".to_owned()).await.unwrap(), None);

    // Batches over all regions, more than one request each.
    let pairs: Vec<(Key, Vec<u8>)> = (0..=255u8)
        .flat_map(|first| {
            (0..8u8).map(move |second| (vec![first, second].into(), vec![second; 64]))
        })
        .collect();
    client.batch_put(pairs.clone()).await.unwrap();
    let asked: Vec<Key> = pairs.iter().map(|(key, _)| key.clone()).collect();
    let found = client.batch_get(asked.clone()).await.unwrap();
    assert_eq!(found.len(), pairs.len());
    for (key, value) in &pairs {
        let pair = found.iter().find(|pair| pair.key() == key).unwrap();
        assert_eq!(pair.value(), value);
    }

    // Scans: over boundaries, with limits, keys alone, in reverse within one region.
    client.batch_delete(asked).await.unwrap();
    let names = ["b", "k", "q1", "q2", "t", "w", "z"];
    for name in names {
        client.put(name.to_owned(), name).await.unwrap();
    }
    client.delete("one".to_owned()).await.unwrap();
    let all = client
        .scan("a".to_owned().."zz".to_owned(), 100)
        .await
        .unwrap();
    assert_eq!(keys(&all), text(&names));
    let three = client
        .scan("a".to_owned().."zz".to_owned(), 3)
        .await
        .unwrap();
    assert_eq!(keys(&three), text(&names[..3]));
    let some = client
        .scan_keys("k".to_owned()..="t".to_owned(), 100)
        .await
        .unwrap();
    let some: Vec<Vec<u8>> = some.into_iter().map(Vec::from).collect();
    assert_eq!(some, text(&names[1..5]));
    let back = client
        .scan_reverse("q".to_owned().."q9".to_owned(), 10)
        .await
        .unwrap();
    assert_eq!(keys(&back), text(&["q2", "q1"]));
    let none = client
        .scan("m".to_owned().."n".to_owned(), 10)
        .await
        .unwrap();
    assert!(none.is_empty());

    // Ranges.
    client
        .delete_range("k".to_owned().."t".to_owned())
        .await
        .unwrap();
    let left = client
        .scan("a".to_owned().."zz".to_owned(), 100)
        .await
        .unwrap();
    assert_eq!(keys(&left), text(&["b", "t", "w", "z"]));

    // Compare-and-swap.
    let atomic = client.with_atomic_for_cas();
    let key = || "cas".to_owned();
    let (before, swapped) = atomic
        .compare_and_swap(key(), None::<Vec<u8>>, b"1".to_vec())
        .await
        .unwrap();
    assert_eq!((before, swapped), (None, true));
    let (before, swapped) = atomic
        .compare_and_swap(key(), None::<Vec<u8>>, b"2".to_vec())
        .await
        .unwrap();
    assert_eq!((before, swapped), (Some(b"1".to_vec()), false));
    let (before, swapped) = atomic
        .compare_and_swap(key(), Some(b"1".to_vec()), b"2".to_vec())
        .await
        .unwrap();
    assert_eq!((before, swapped), (Some(b"1".to_vec()), true));
    assert_eq!(atomic.get(key()).await.unwrap(), Some(b"2".to_vec()));

    // Time to live.
    client.put("forever".to_owned(), "v").await.unwrap();
    assert_eq!(
        client.get_key_ttl_secs("forever".to_owned()).await.unwrap(),
        Some(0)
    );
    client
        .put_with_ttl("long".to_owned(), "v", 1000)
        .await
        .unwrap();
    let left = client
        .get_key_ttl_secs("long".to_owned())
        .await
        .unwrap()
        .unwrap();
    assert!((1..=1000).contains(&left), "{left} seconds of 1000");
    assert_eq!(
        client.get_key_ttl_secs("absent".to_owned()).await.unwrap(),
        None
    );
    client
        .put_with_ttl("short".to_owned(), "v", 1)
        .await
        .unwrap();
    strata_tests::eventually("the key to expire", || async {
        match client.get("short".to_owned()).await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(
        client.get("long".to_owned()).await.unwrap(),
        Some(b"v".to_vec())
    );
    let nodes: Vec<_> = (1..).zip(up.endpoints.clone()).collect();
    let pairs = strata_tests::replicas_equal(&nodes, DEADLINE)
        .await
        .unwrap();
    assert!(pairs > 0, "nothing was compared");
    up.stop();
}
