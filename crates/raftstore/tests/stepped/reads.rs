//! Reads: under the lease, by read index, of ranges, of both versions of the API.

use super::*;

#[test]
fn scans_are_clipped_and_directed() {
    let mut cluster = cluster(1);
    let region_id = cluster.region_of(b"a");
    for key in ["a", "b", "c", "d"] {
        written(cluster.put(key, key));
    }
    let mut scan = |start: &str, end: &str, limit, key_only, reverse| {
        let read = ReadCommand::Scan {
            space: RawSpace::RawV1,
            start: bytes(start),
            end: bytes(end),
            limit,
            key_only,
            reverse,
        };
        match cluster.call(region_id, RequestBody::Read(read)) {
            Ok(Answer::Pairs(pairs)) => pairs
                .iter()
                .map(|(key, value)| format!("{}={}", text(key), text(value)))
                .collect::<Vec<_>>()
                .join(" "),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(scan("", "", 10, false, false), "a=a b=b c=c d=d");
    assert_eq!(scan("b", "d", 10, false, false), "b=b c=c");
    assert_eq!(scan("b", "", 2, true, false), "b= c=");
    assert_eq!(scan("", "", 3, false, true), "d=d c=c b=b");
    assert_eq!(scan("c", "a", 10, false, true), "b=b a=a");
    assert_eq!(scan("a", "b", 0, false, false), "");
    assert_eq!(scan("zz", "zzz", 10, false, false), "");
}

#[test]
fn checksums_are_the_same_on_all_replicas() {
    let mut cluster = cluster(3);
    let region_id = cluster.region_of(b"a");
    for key in ["a", "b", "c"] {
        written(cluster.put(key, "value"));
    }
    written(cluster.call(region_id, write(&[("d", Some("short"), 1)])));
    let mut sums = Vec::new();
    for id in 1..=3 {
        let mut header = cluster.header(region_id);
        header.replica_read = true;
        let read = ReadCommand::Checksum {
            space: RawSpace::RawV1,
            ranges: vec![(Bytes::new(), Bytes::new())],
        };
        let answer = cluster.send_with(id, header, RequestBody::Read(read));
        match cluster.wait(&answer) {
            Ok(Answer::Checksum {
                crc64,
                pairs,
                bytes,
            }) => sums.push((crc64, pairs, bytes)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((sums[0].1, sums[0].2), (4, 24));
    assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
}

#[test]
fn replicas_answer_by_read_index() {
    let mut cluster = cluster(3);
    let region_id = cluster.region_of(b"a");
    let leader = cluster.leader(region_id).unwrap();
    for at in 0..10 {
        written(cluster.put("a", &at.to_string()));
        for id in (1..=3).filter(|id| *id != leader) {
            let mut header = cluster.header(region_id);
            header.replica_read = true;
            let answer = cluster.send_with(id, header, get("a"));
            match cluster.wait(&answer) {
                Ok(Answer::Value(Some(value))) => assert_eq!(text(&value), at.to_string()),
                other => panic!("store {id}: {other:?}"),
            }
        }
    }
    assert!(
        cluster
            .nodes
            .values()
            .any(|node| node.core.metrics().reads_index.get() > 0)
    );
}

#[test]
fn leader_reads_under_its_lease() {
    let mut cluster = cluster(3);
    written(cluster.put("a", "1"));
    cluster.run(Duration::from_millis(500));
    let leader = cluster.leader(cluster.region_of(b"a")).unwrap();
    let metrics = cluster.nodes[&leader].core.metrics().clone();
    let before = (metrics.reads_lease.get(), metrics.read_index_rounds.get());
    assert_eq!(cluster.get("a").as_deref(), Some("1"));
    assert_eq!(
        (metrics.reads_lease.get(), metrics.read_index_rounds.get()),
        (before.0 + 1, before.1)
    );
}

/// The lease of a leader that is cut off runs out before another can lead; from then on it
/// answers no read.
#[test]
fn cut_off_leader_answers_no_stale_read() {
    let mut cluster = cluster(3);
    written(cluster.put("a", "old"));
    let region_id = cluster.region_of(b"a");
    let old = cluster.leader(region_id).unwrap();
    cluster.cut.insert(old);
    cluster.until("another leader", |cluster| {
        cluster.leader(region_id).is_some()
    });
    written(cluster.put("a", "new"));
    let answer = cluster.send(old, region_id, get("a"));
    let refused = cluster.wait(&answer);
    assert!(
        matches!(refused, Err(Error::NotLeader { .. })),
        "{refused:?}"
    );
    cluster.cut.clear();
    cluster.run(Duration::from_secs(1));
    assert_eq!(cluster.stored(old, "a").as_deref(), Some("new"));
}

/// Keys of API v2 live where their encodings do, apart from keys of API v1.
#[test]
fn keys_of_both_versions_live_side_by_side() {
    use strata_proto::stratapb::{Mutation, WriteCommand};
    use strata_storage::keys;
    let mut cluster = cluster(1);
    let key = bytes("r\0\0\x01user");
    let region_id = cluster.region_of(&keys::compared_form(RawSpace::RawV2, &key));
    let mutation = Mutation {
        key: key.clone(),
        value: Some(bytes("two")),
        ttl_seconds: 0,
    };
    let put = WriteCommand {
        space: RawSpace::RawV2.into(),
        mutations: vec![mutation],
    };
    let put = RequestBody::Write(vec![command(Body::Write(put))]);
    written(cluster.call(region_id, put));
    let scan = |space| {
        RequestBody::Read(ReadCommand::Scan {
            space,
            start: Bytes::new(),
            end: Bytes::new(),
            limit: 10,
            key_only: false,
            reverse: false,
        })
    };
    for (space, expected) in [
        (RawSpace::RawV2, vec![(key, bytes("two"))]),
        (RawSpace::RawV1, vec![]),
    ] {
        match cluster.call(region_id, scan(space)) {
            Ok(Answer::Pairs(pairs)) => assert_eq!(pairs, expected),
            other => panic!("{other:?}"),
        }
    }
}
