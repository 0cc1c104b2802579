//! One lie after the other, each of which a client has believed once.

use super::*;

/// One that says of every key that it lies in the first region.
#[tokio::test]
async fn a_region_that_does_not_hold_the_key_is_not_believed() {
    let server = server(|path, _| {
        let first = || Say::Answer(found(0).encode_to_vec());
        (path == GET_REGION || path == GET_PREVIOUS).then(first)
    })
    .await;
    let client = client(&server).await;
    for scan in [everything(), backwards()] {
        let error = ends(client.scan(scan)).await.unwrap_err();
        assert!(error.to_string().contains("elsewhere"), "{error}");
    }
    let error = ends(client.delete_range(b"b", b"")).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    let error = ends(client.checksum(b"b", b"")).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert!(server.requests() < 400, "{} requests", server.requests());
}

/// A scheduler that lags behind the stores: it still has the region as it was before the
/// split of which a store has told.
#[tokio::test]
async fn an_older_range_from_the_scheduler_does_not_send_a_scan_back() {
    let lagging = |version, end: &'static [u8]| {
        let mut found = found(0);
        let region = found.region.as_mut().unwrap();
        region.end_key = Bytes::from_static(end);
        region.region_epoch.as_mut().unwrap().version = version;
        found
    };
    let server = server(move |path, request| {
        if path != GET_REGION {
            return None;
        }
        let key = pdpb::GetRegionRequest::decode(request).unwrap().region_key;
        let found = match &key[..] {
            b"" => lagging(6, b"h"),
            _ => lagging(5, b""),
        };
        Some(Say::Answer(found.encode_to_vec()))
    })
    .await;
    let client = client(&server).await;
    let mut seen = Vec::new();
    let walk = client.scan_each(everything(), |key, _| seen.push(key));
    let error = ends(walk).await.unwrap_err();
    assert!(error.to_string().contains("older range"), "{error}");
    assert!(seen.windows(2).all(|two| two[0] < two[1]), "{seen:?}");
    assert_eq!(seen.len(), 7, "the first region's keys, once");
}

/// A full page is followed by the one behind its last key, wherever that is.
#[tokio::test]
async fn pairs_outside_of_a_scan_or_out_of_order_are_refused() {
    for out_of_place in [&b"b"[..], b"z", b"f"] {
        let server = server(move |path, request| {
            (path == RAW_SCAN).then(|| {
                let request = kvrpcpb::RawScanRequest::decode(request).unwrap();
                let pair = |key: &[u8]| kvrpcpb::KvPair {
                    key: Bytes::copy_from_slice(key),
                    ..Default::default()
                };
                let answer = kvrpcpb::RawScanResponse {
                    kvs: vec![pair(out_of_place); request.limit as usize],
                    ..Default::default()
                };
                Say::Answer(answer.encode_to_vec())
            })
        })
        .await;
        let client = client(&server).await;
        for reverse in [false, true] {
            let scan = Scan {
                start: Bytes::from_static(b"c"),
                end: Bytes::from_static(b"g"),
                reverse,
                ..Scan::default()
            };
            let error = ends(client.scan(scan)).await.unwrap_err();
            assert!(matches!(error, Error::Malformed(_)), "{error:?}");
        }
    }
}

/// Followed once, then looked up again: an operation does not end over a wrong hint.
#[tokio::test]
async fn a_leader_that_does_not_exist_is_forgotten() {
    let hints = Arc::new(Mutex::new(0));
    let count = hints.clone();
    let server = server(move |path, request| match path {
        "/tikvpb.Tikv/RawGet" if *count.lock() < 3 => {
            *count.lock() += 1;
            let nobody = metapb::Peer {
                id: 999,
                store_id: 999,
                ..Default::default()
            };
            let error = errorpb::Error {
                not_leader: Some(errorpb::NotLeader {
                    region_id: 2,
                    leader: Some(nobody),
                }),
                ..Default::default()
            };
            let answer = kvrpcpb::RawGetResponse {
                region_error: Some(error),
                ..Default::default()
            };
            Some(Say::Answer(answer.encode_to_vec()))
        }
        "/pdpb.PD/GetStore" => {
            let request = pdpb::GetStoreRequest::decode(request).unwrap();
            (request.store_id == 999).then(|| {
                let mut header = header().unwrap();
                header.error = Some(pdpb::Error {
                    r#type: pdpb::ErrorType::EntryNotFound.into(),
                    message: "there is no store 999".into(),
                });
                let answer = pdpb::GetStoreResponse {
                    header: Some(header),
                    ..Default::default()
                };
                Say::Answer(answer.encode_to_vec())
            })
        }
        _ => None,
    })
    .await;
    let client = client(&server).await;
    let value = ends(client.get(b"a")).await.unwrap();
    assert_eq!(value.as_deref(), Some(&b"v"[..]));
    assert_eq!(*hints.lock(), 3);
}

/// Members that are no nodes are not asked, and no more of them than a cluster has.
#[tokio::test]
async fn members_that_are_no_nodes_are_left_out() {
    let server = server(|path, _| {
        (path == GET_MEMBERS).then(|| {
            let wrong = ["http://a b:1", "http://a/b:1", "nonsense", "http://a\n:1"];
            let urls = wrong.map(str::to_owned).into_iter();
            let member = pdpb::Member {
                client_urls: urls
                    .chain((0..100_000).map(|n| format!("http://h{n}:1")))
                    .collect(),
                ..Default::default()
            };
            let answer = pdpb::GetMembersResponse {
                header: header(),
                members: vec![member],
                ..Default::default()
            };
            Say::Answer(answer.encode_to_vec())
        })
    })
    .await;
    let client = client(&server).await;
    let known = client.scheduler().endpoints();
    assert_eq!(known.len(), 1024);
    assert!(
        known[1..].iter().all(|one| one.starts_with('h')),
        "{:?}",
        &known[..9]
    );
}

/// The nodes of another cluster that has come to the same port.
#[tokio::test]
async fn members_of_another_cluster_are_refused() {
    let answers = Arc::new(Mutex::new([CLUSTER, CLUSTER, 8, 0].into_iter()));
    let server = server(move |path, _| {
        (path == GET_MEMBERS).then(|| {
            let answer = pdpb::GetMembersResponse {
                header: Some(pdpb::ResponseHeader {
                    cluster_id: answers.lock().next().unwrap(),
                    error: None,
                }),
                ..Default::default()
            };
            Say::Answer(answer.encode_to_vec())
        })
    })
    .await;
    let client = client(&server).await;
    client.scheduler().members().await.unwrap();
    for _ in 0..2 {
        let error = client.scheduler().members().await.unwrap_err();
        assert!(matches!(error, Error::Malformed(_)), "{error:?}");
        assert_eq!(client.scheduler().cluster_id(), CLUSTER);
    }
}

#[tokio::test]
async fn an_answer_that_begins_and_never_comes_ends_in_time() {
    let server = server(|path, _| match path {
        "/pdpb.PD/GetRegionByID" => {
            let mut found = found(0);
            let other = metapb::Peer {
                id: 99,
                store_id: honest::STORE + 1,
                ..Default::default()
            };
            found.region.as_mut().unwrap().peers.push(other);
            Some(Say::Answer(found.encode_to_vec()))
        }
        _ => path.starts_with("/stratapb.").then_some(Say::Nothing),
    })
    .await;
    let client = client(&server).await;
    let admin = client.admin();
    let error = ends(admin.status()).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    let moving = admin.transfer_leader(2, honest::STORE + 1);
    let error = ends(moving).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    let mut clerk = Clerk::new(client);
    let error = ends(clerk.append(b"a", "v")).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn timestamps_that_are_missing_or_go_back_are_refused() {
    let given = Arc::new(Mutex::new(
        [Some(5), None, Some(5), Some(4), Some(6)].into_iter(),
    ));
    let server = server(move |path, _| {
        (path == "/pdpb.PD/Tso").then(|| {
            let physical = given.lock().next().unwrap();
            let answer = pdpb::TsoResponse {
                header: header(),
                count: 1,
                timestamp: physical.map(|physical| pdpb::Timestamp {
                    physical,
                    ..Default::default()
                }),
            };
            Say::Answer(answer.encode_to_vec())
        })
    })
    .await;
    let client = client(&server).await;
    let mut timestamps = Timestamps::new(client.scheduler());
    assert_eq!(ends(timestamps.take(1)).await.unwrap().physical, 5);
    for _ in 0..3 {
        let error = ends(timestamps.take(1)).await.unwrap_err();
        assert!(matches!(error, Error::Malformed(_)), "{error:?}");
    }
    assert_eq!(ends(timestamps.take(1)).await.unwrap().physical, 6);
}

/// What a server says is one line of the user's terminal.
#[tokio::test]
async fn words_of_a_server_are_one_line_and_nothing_for_a_terminal() {
    let words = format!("\u{1b}[2J\r{}\nmore", "x".repeat(100_000));
    let server = server(move |path, _| {
        let answer = kvrpcpb::RawGetResponse {
            error: words.clone(),
            ..Default::default()
        };
        (path == "/tikvpb.Tikv/RawGet").then(|| Say::Answer(answer.encode_to_vec()))
    })
    .await;
    let error = client(&server).await.get(b"a").await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    check_line(&error);
}
