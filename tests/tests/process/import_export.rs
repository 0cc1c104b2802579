//! Export and import: what was written is there again, byte for byte.

use bytes::Bytes;
use strata_client::{RawClient, Scan};
use strata_tests::{Cluster, strata};

const TTL_SECONDS: u64 = 3600;

/// Keys of every byte value and in every region, more than a page holds.
async fn fill(client: &RawClient) -> Vec<(Bytes, Bytes)> {
    let mut pairs: Vec<(Bytes, Bytes)> = (0..=255u8)
        .map(|byte| {
            (
                Bytes::from(vec![byte, byte]),
                Bytes::from(vec![b'v', byte, b'\\']),
            )
        })
        .collect();
    for number in 0..1500 {
        let (key, value) = (format!("row-{number:04}"), format!("value\t{number}\n"));
        pairs.push((key.into(), value.into()));
    }
    client.batch_put(pairs.clone(), 0).await.unwrap();
    let expiring = (Bytes::from_static(b"row-ttl"), Bytes::from_static(b"short"));
    let (key, value) = expiring.clone();
    client.put_with_ttl(&key, value, TTL_SECONDS).await.unwrap();
    pairs.push(expiring);
    pairs.sort();
    pairs
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_is_imported_again() {
    let cluster = Cluster::start().await;
    let endpoints = cluster.endpoints_flag();
    let client = cluster.client().await;
    let pairs = fill(&client).await;
    let folder = tempfile::tempdir().unwrap();
    let kv = |words: &[&str], input: &[u8]| {
        let words = [&["--endpoints", &endpoints, "kv"], words].concat();
        strata(&words, input).expect(0)
    };
    for (name, more) in [
        ("rows.tsv", &[][..]),
        ("rows.json", &[]),
        ("hex.tsv", &["--hex"]),
        ("rows", &["--rows", "tsv"]),
    ] {
        let path = folder.path().join(name);
        let file = path.to_str().unwrap();
        kv(&[&["export", file], more].concat(), b"");
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert_eq!(lines, pairs.len(), "{name}");
        client.delete_range(b"", b"").await.unwrap();
        assert_eq!(client.checksum(b"", b"").await.unwrap().pairs, 0);
        kv(&[&["import", file], more].concat(), b"");
        assert_eq!(client.scan(Scan::default()).await.unwrap(), pairs, "{name}");
        let ttl = client.ttl(b"row-ttl").await.unwrap().unwrap();
        assert!((1..=TTL_SECONDS).contains(&ttl), "{name}: {ttl} s are left");
        assert_eq!(client.ttl(b"row-0001").await.unwrap(), Some(0), "{name}");
    }
    // To stdout, a part of all, and back in by stdin.
    let part = kv(&["export", "--start", "row-", "--end", "row-0010"], b"").stdout;
    assert_eq!(part.lines().count(), 10, "{part}");
    client.delete_range(b"row-", b"row-0010").await.unwrap();
    kv(&["import", "-"], part.as_bytes());
    assert_eq!(client.scan(Scan::default()).await.unwrap(), pairs);
    // The later of two rows with one key counts.
    let twice: String = (0..200)
        .map(|number| format!("twice\t{number}\n"))
        .collect();
    kv(&["import", "-"], twice.as_bytes());
    assert_eq!(
        client.get(b"twice").await.unwrap().as_deref(),
        Some(&b"199"[..])
    );
    cluster.assert_replicas_equal().await;
}
