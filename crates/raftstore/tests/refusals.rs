//! Requests that are not served: each gets the answer that lets its sender go on, and
//! changes nothing.

mod common;

use bytes::Bytes;
use common::*;
use strata_proto::metapb::{Peer, RegionEpoch};
use strata_proto::stratapb::{
    DataCommand, OpenSessionCommand, RawSpace, SessionOperation, data_command::Body,
};
use strata_raftstore::{Answer, Error, InvalidRequest, ReadCommand, RequestBody, StoreOptions};

#[test]
fn request_for_another_store_comes_first() {
    let mut cluster = elected(1);
    let mut header = cluster.header(4711);
    header.peer = Some(Peer {
        id: 1,
        store_id: 9,
        ..Peer::default()
    });
    let answer = cluster.send_with(1, header, get("a"));
    let error = refused(cluster.wait(&answer));
    assert_eq!(
        error,
        Error::StoreNotMatch {
            requested: 9,
            actual: 1
        }
    );
}

#[test]
fn unknown_region_is_not_found() {
    let mut cluster = elected(1);
    let answer = cluster.send(1, 4711, get("a"));
    assert_eq!(
        refused(cluster.wait(&answer)),
        Error::RegionNotFound { region_id: 4711 }
    );
}

#[test]
fn system_region_is_hidden_from_clients() {
    let mut cluster = elected(1);
    for body in [get("a"), write(&[("a", Some("1"), 0)])] {
        assert_eq!(
            refused(cluster.call(1, body)),
            Error::RegionNotFound { region_id: 1 }
        );
    }
    let region_id = cluster.region_of(b"a");
    for body in [
        RequestBody::SystemRead,
        RequestBody::SystemWrite(Bytes::new()),
    ] {
        let error = refused(cluster.call(region_id, body));
        assert_eq!(error, Error::Invalid(InvalidRequest::WrongKindOfRegion));
    }
}

#[test]
fn follower_names_the_leader() {
    let mut cluster = elected(3);
    let region_id = cluster.region_of(b"a");
    let leader = cluster.leader(region_id).unwrap();
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    for body in [write(&[("a", Some("1"), 0)]), get("a")] {
        let answer = cluster.send(follower, region_id, body);
        match refused(cluster.wait(&answer)) {
            Error::NotLeader {
                region_id: id,
                leader: Some(peer),
            } => {
                assert_eq!((id, peer.store_id), (region_id, leader));
            }
            other => panic!("{other:?}"),
        }
    }
    // Even to a follower the leader matters more than a wrong peer or epoch.
    let mut header = cluster.header(region_id);
    header.peer = Some(Peer {
        id: 77,
        store_id: follower,
        ..Peer::default()
    });
    header.epoch = Some(RegionEpoch {
        conf_ver: 9,
        version: 9,
    });
    let answer = cluster.send_with(follower, header, get("a"));
    assert!(matches!(
        refused(cluster.wait(&answer)),
        Error::NotLeader { .. }
    ));
}

#[test]
fn wrong_peer_term_and_epoch_are_told_in_this_order() {
    let mut cluster = elected(1);
    let region_id = cluster.region_of(b"a");
    let entry = cluster.nodes[&1].core.directory().entry(region_id).unwrap();
    let term = entry.view.term();
    let mut header = cluster.header(region_id);
    header.peer = Some(Peer {
        id: 77,
        store_id: 1,
        ..Peer::default()
    });
    header.term = term - 1;
    header.epoch = Some(RegionEpoch {
        conf_ver: 1,
        version: 9,
    });
    let ask = |cluster: &mut Cluster, header: &strata_raftstore::RequestHeader| {
        let answer = cluster.send_with(1, header.clone(), get("a"));
        cluster.wait(&answer)
    };
    let actual = entry.peer.id;
    assert_eq!(
        refused(ask(&mut cluster, &header)),
        Error::MismatchPeerId {
            requested: 77,
            actual
        }
    );
    header.peer = Some(entry.peer);
    match refused(ask(&mut cluster, &header)) {
        Error::EpochNotMatch { current, .. } => assert_eq!(current, [(*entry.region).clone()]),
        other => panic!("{other:?}"),
    }
    header.term = term - 2;
    assert_eq!(
        refused(ask(&mut cluster, &header)),
        Error::StaleCommand { region_id }
    );
    // The version alone counts.
    header.term = 0;
    header.epoch = Some(RegionEpoch {
        conf_ver: 9,
        version: 1,
    });
    assert!(matches!(
        ask(&mut cluster, &header),
        Ok(Answer::Value(None))
    ));
}

#[test]
fn key_outside_the_region_is_told_with_its_boundaries() {
    let mut cluster = elected(1);
    let region_id = cluster.region_of(b"a");
    let other = cluster.region_of(b"z");
    assert_ne!(region_id, other);
    for body in [
        get("z"),
        write(&[("z", Some("1"), 0)]),
        RequestBody::Write(vec![cas("z", None, None)]),
    ] {
        match refused(cluster.call(region_id, body)) {
            Error::KeyNotInRegion { key, end_key, .. } => {
                assert_eq!(text(&key), "z");
                assert!(end_key[..] <= b"z"[..]);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn malformed_requests_are_refused_at_the_edge() {
    let mut cluster = elected(1);
    let region_id = cluster.region_of(b"a");
    let mut refuse = |body: RequestBody| match refused(cluster.call(region_id, body)) {
        Error::Invalid(reason) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(refuse(get("")), InvalidRequest::EmptyKey);
    assert_eq!(
        refuse(write(&[("", Some("1"), 0)])),
        InvalidRequest::EmptyKey
    );
    let long = "k".repeat(8193);
    let too_large = InvalidRequest::KeyTooLarge {
        bytes: 8193,
        limit_bytes: 8192,
    };
    assert_eq!(refuse(get(&long)), too_large);
    assert_eq!(refuse(write(&[(&long, None, 0)])), too_large);
    assert_eq!(
        refuse(RequestBody::Write(vec![])),
        InvalidRequest::NoCommand
    );
    assert_eq!(
        refuse(RequestBody::Write(vec![DataCommand::default()])),
        InvalidRequest::NoCommand
    );
    let inverted = RequestBody::Write(vec![delete_range("b", "a")]);
    assert_eq!(refuse(inverted), InvalidRequest::RangeInverted);
    let scan = |start: &str, end: &str, reverse| {
        RequestBody::Read(ReadCommand::Scan {
            space: RawSpace::RawV1,
            start: bytes(start),
            end: bytes(end),
            limit: 1,
            key_only: false,
            reverse,
        })
    };
    assert_eq!(refuse(scan("b", "a", false)), InvalidRequest::RangeInverted);
    assert_eq!(refuse(scan("a", "b", true)), InvalidRequest::RangeInverted);
    let plain_v2 = ReadCommand::Get {
        space: RawSpace::RawV2,
        key: bytes("x\0\0\0a"),
    };
    assert_eq!(
        refuse(RequestBody::Read(plain_v2)),
        InvalidRequest::NotAVersion2Key
    );
    let mut session = write_command(&[("a", Some("1"), 0)]);
    session.session = Some(SessionOperation::default());
    assert_eq!(
        refuse(RequestBody::Write(vec![session.clone()])),
        InvalidRequest::MalformedSession { bytes: 0 }
    );
    session.session = Some(SessionOperation {
        session_id: vec![0; 20].into(),
        sequence: 0,
    });
    assert_eq!(
        refuse(RequestBody::Write(vec![session.clone()])),
        InvalidRequest::SequenceZero
    );
    session.session.as_mut().unwrap().sequence = 1;
    session.body = Some(Body::OpenSession(OpenSessionCommand::default()));
    assert_eq!(
        refuse(RequestBody::Write(vec![session])),
        InvalidRequest::NotForSessions
    );
}

#[test]
fn entry_over_the_limit_is_refused() {
    let options = StoreOptions {
        max_entry_bytes: 1000,
        ..StoreOptions::default()
    };
    let mut cluster = Cluster::new(1, options);
    let fits = "v".repeat(800);
    written(cluster.put("a", &fits));
    let error = refused(cluster.put("a", &"v".repeat(1000)));
    assert!(
        matches!(
            error,
            Error::RaftEntryTooLarge {
                limit_bytes: 1000,
                ..
            }
        ),
        "{error:?}"
    );
    let region_id = cluster.region_of(b"a");
    let batch = write(&[("a", Some(&fits), 0), ("b", Some(&fits), 0)]);
    assert!(matches!(
        refused(cluster.call(region_id, batch)),
        Error::RaftEntryTooLarge { .. }
    ));
    assert_eq!(cluster.get("a"), Some(fits));
}

/// Three pairs of 11 bytes against a limit of 22: scans, batch scans and batch gets, served
/// at the gate and by a reader, are whole or refused.
#[test]
fn answer_over_the_limit_is_refused_and_never_shortened() {
    let options = StoreOptions {
        max_answer_bytes: 22,
        ..StoreOptions::default()
    };
    let mut cluster = Cluster::new(1, options);
    cluster.elect_all();
    for key in ["a", "b", "c"] {
        written(cluster.put(key, "0123456789"));
    }
    let region_id = cluster.region_of(b"a");
    let scan = |limit, reverse| {
        let (start, end) = if reverse { ("c0", "a") } else { ("a", "c0") };
        ReadCommand::Scan {
            space: RawSpace::RawV1,
            start: bytes(start),
            end: bytes(end),
            limit,
            key_only: false,
            reverse,
        }
    };
    let batch_scan = |each_limit, key_only| ReadCommand::BatchScan {
        space: RawSpace::RawV1,
        ranges: vec![(bytes("a"), bytes("b")), (bytes("b"), bytes("d"))],
        each_limit,
        key_only,
        reverse: false,
    };
    let batch_get = |keys: &[&str]| ReadCommand::BatchGet {
        space: RawSpace::RawV1,
        keys: keys.iter().map(|key| bytes(key)).collect(),
    };
    let many = ["ax"; 100].into_iter().chain(["a", "b", "c"]);
    let many: Vec<&str> = many.collect();
    let rows = [
        (scan(2, false), Some(2)),
        (scan(3, false), None),
        (scan(3, true), None),
        (batch_scan(1, false), Some(2)),
        (batch_scan(2, false), None),
        (batch_scan(2, true), Some(3)),
        (batch_get(&["a", "ax", "c"]), Some(2)),
        (batch_get(&["a", "b", "c"]), None),
        (batch_get(&many), None),
    ];
    for (read, expected) in rows {
        let shown = format!("{read:?}");
        match (cluster.call(region_id, RequestBody::Read(read)), expected) {
            (Ok(Answer::Pairs(pairs)), Some(count)) => assert_eq!(pairs.len(), count, "{shown}"),
            (Err(error), None) => assert_eq!(
                error,
                Error::AnswerTooLarge {
                    region_id,
                    limit_bytes: 22
                },
                "{shown}"
            ),
            (answer, _) => panic!("{shown}: {answer:?}"),
        }
    }
    // What could be written can be read: one pair always goes.
    let long = "v".repeat(100);
    written(cluster.put("b", &long));
    let one = cluster.call(region_id, RequestBody::Read(batch_get(&["b"])));
    let Ok(Answer::Pairs(pairs)) = one else {
        panic!("{one:?}");
    };
    assert_eq!(pairs, [(bytes("b"), bytes(&long))]);
}

/// Without a quorum nothing is proposed once the leader has noticed: requests park, and
/// are told that there is no leader.
/// Clock and time to live must have a sum.
#[test]
fn bad_input_ttl_overflow() {
    let mut cluster = elected(1);
    let region_id = cluster.region_of(b"a");
    let longest = i64::MAX as u64 / 1000;
    for seconds in [u64::MAX, u64::MAX / 1000, longest + 1] {
        let mut swap = cas("a", None, Some("1"));
        if let Some(Body::CompareAndSwap(cas)) = &mut swap.body {
            cas.ttl_seconds = seconds;
        }
        let put = write(&[("a", Some("1"), seconds)]);
        for body in [put, RequestBody::Write(vec![swap])] {
            match refused(cluster.call(region_id, body)) {
                Error::Invalid(reason) => assert_eq!(
                    reason,
                    InvalidRequest::TtlTooLong {
                        seconds,
                        limit_seconds: longest
                    }
                ),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(cluster.get("a"), None);
    // The longest that is allowed is a very long life, not none.
    written(cluster.call(region_id, write(&[("a", Some("1"), longest)])));
    assert_eq!(cluster.get("a").as_deref(), Some("1"));
}
