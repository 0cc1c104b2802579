//! The client against servers that lie, or that are newer than it knows.
//!
//! Whatever a server answers, an operation ends in time, with a value or with an error in one
//! line; it neither panics nor goes round for ever, and it does not send more than its pauses
//! allow.

mod honest;
mod liar;

use bytes::Bytes;
use honest::{CLUSTER, found, header, region};
use liar::{Liar, Say};
use parking_lot::Mutex;
use prost::Message;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use strata_client::clerk::Clerk;
use strata_client::{Error, Options, RawClient, Result, Scan, Timestamps};
use strata_fuzz::Mutator;
use strata_proto::{errorpb, kvrpcpb, metapb, pdpb};
use tonic::{Code, Status};

/// Time that one operation of these tests may take.
const OPERATION_TIME: Duration = Duration::from_millis(120);
/// Time after which an operation is taken for endless.
const PATIENCE: Duration = Duration::from_secs(20);

fn options() -> Options {
    Options {
        operation_timeout: OPERATION_TIME,
        attempt_timeout: Duration::from_millis(40),
        pause_min: Duration::from_millis(2),
        pause_max: Duration::from_millis(10),
        ..Options::default()
    }
}

/// Calls within the service of the scheduler and of a store.
const GET_REGION: &str = "/pdpb.PD/GetRegion";
const GET_PREVIOUS: &str = "/pdpb.PD/GetPrevRegion";
const GET_MEMBERS: &str = "/pdpb.PD/GetMembers";
const RAW_SCAN: &str = "/tikvpb.Tikv/RawScan";

/// A server that is honest but for what `lie` answers.
async fn server(lie: impl Fn(&str, Bytes) -> Option<Say> + Send + Sync + 'static) -> Liar {
    Liar::start(move |own, path, request| {
        let lie = lie(path, request.clone());
        lie.unwrap_or_else(|| Say::Answer(honest::answer(own, path, request)))
    })
    .await
}

async fn client(server: &Liar) -> RawClient {
    RawClient::connect(&[&server.address], options())
        .await
        .unwrap()
}

/// An operation that ends.
async fn ends<T>(operation: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(PATIENCE, operation).await;
    ended.unwrap_or_else(|_| panic!("no end after {PATIENCE:?}"))
}

fn check_line(error: &Error) {
    let line = error.to_string();
    assert!(
        !line.is_empty() && line.len() < 4_000,
        "{} bytes",
        line.len()
    );
    assert!(!line.chars().any(char::is_control), "{line:?}");
}

fn everything() -> Scan {
    Scan::default()
}

fn backwards() -> Scan {
    Scan {
        reverse: true,
        ..Scan::default()
    }
}

/// Pairs of a scan are in order, in the range and within the limit, or it has failed.
fn check_scan(scan: &Scan, answer: &Result<Vec<(Bytes, Bytes)>>) {
    let Ok(pairs) = answer else { return };
    assert!(pairs.len() <= scan.limit.unwrap_or(usize::MAX));
    let in_order = |two: &[(Bytes, Bytes)]| (two[0].0 < two[1].0) != scan.reverse;
    assert!(pairs.windows(2).all(in_order), "{pairs:?}");
    let within = |key: &Bytes| *key >= scan.start && (scan.end.is_empty() || *key < scan.end);
    assert!(pairs.iter().all(|(key, _)| within(key)), "{pairs:?}");
}

/// One operation of many kinds, drawn; its outcome only has to be one.
async fn operate(mutator: &mut Mutator, client: &RawClient, clerk: &mut Clerk) -> Result<()> {
    let key = vec![b'a' + (mutator.number() % 26) as u8];
    let keys: Vec<Bytes> = (b'a'..=b'z').map(|letter| vec![letter].into()).collect();
    let scheduler = client.scheduler();
    match mutator.number() % 18 {
        0 => client.get(&key).await.map(drop),
        1 => client.put(&key, "v").await,
        2 => client.delete(&key).await,
        3 => client.compare_and_swap(&key, None, "v").await.map(drop),
        4 => client.ttl(&key).await.map(drop),
        5 => client.batch_get(keys).await.map(drop),
        6 => {
            let pairs = keys.into_iter().map(|key| (key.clone(), key));
            client.batch_put(pairs.collect(), 0).await
        }
        7 => client.batch_delete(keys).await,
        8 => client.delete_range(b"c", b"s").await,
        9 => client.checksum(&key, b"").await.map(drop),
        10 => {
            let scan = Scan {
                start: key.into(),
                limit: mutator.one_in(2).then_some(5),
                reverse: mutator.one_in(2),
                ..Scan::default()
            };
            let answer = client.scan(scan.clone()).await;
            check_scan(&scan, &answer);
            answer.map(drop)
        }
        11 => clerk.append(&key, "v").await,
        12 => clerk.compare_and_swap(&key, None, "v").await.map(drop),
        13 => scheduler.all_regions().await.map(drop),
        14 => Timestamps::new(scheduler).take(3).await.map(drop),
        15 => client.admin().status().await.map(drop),
        16 => client.admin().transfer_leader(2, honest::STORE).await,
        _ => match client.admin().watch_regions().await {
            Ok(mut stream) => {
                // A stream may say nothing as long as it likes.
                let first = tokio::time::timeout(Duration::from_millis(20), stream.message());
                let _ = first.await;
                Ok(())
            }
            Err(error) => Err(error),
        },
    }
}

/// What stands in the place of an honest answer.
fn damage(mutator: &mut Mutator, honest: Vec<u8>) -> Say {
    match mutator.number() % 12 {
        0..4 => Say::Answer(honest),
        4 => Say::Answer(mutator.noise(60)),
        5 => Say::Answer(region_error(mutator)),
        6 if mutator.one_in(4) => Say::Nothing,
        7 => {
            let code = Code::from_i32((mutator.number() % 20) as i32);
            Say::Refuse(Status::new(code, mutator.text(&["one\ntwo", "\u{1b}[2J"])))
        }
        _ => Say::Answer(mutator.message(&honest)),
    }
}

/// A region error in the place where all raw answers have it, with any of its parts.
fn region_error(mutator: &mut Mutator) -> Vec<u8> {
    let some = |mutator: &mut Mutator| mutator.one_in(4);
    let place = (mutator.number() % 3) as usize;
    let strange = metapb::Peer {
        id: mutator.number(),
        store_id: mutator.number(),
        ..Default::default()
    };
    let mut other = region(place);
    other.region_epoch = some(mutator).then(|| metapb::RegionEpoch {
        conf_ver: mutator.near(1),
        version: mutator.near(5),
    });
    if some(mutator) {
        std::mem::swap(&mut other.start_key, &mut other.end_key);
    }
    let error = errorpb::Error {
        message: mutator.text(&["a\nb", "no"]),
        not_leader: some(mutator).then(|| errorpb::NotLeader {
            region_id: mutator.number(),
            leader: some(mutator).then_some(strange),
        }),
        epoch_not_match: some(mutator).then(|| errorpb::EpochNotMatch {
            current_regions: vec![other; (mutator.number() % 3) as usize],
        }),
        server_is_busy: some(mutator).then(|| errorpb::ServerIsBusy {
            backoff_ms: mutator.number(),
            ..Default::default()
        }),
        undetermined_result: mutator.one_in(10).then(Default::default),
        store_not_match: some(mutator).then(Default::default),
        ..Default::default()
    };
    let answer = kvrpcpb::RawGetResponse {
        region_error: Some(error),
        ..Default::default()
    };
    let encoded = answer.encode_to_vec();
    match mutator.one_in(3) {
        true => mutator.message(&encoded),
        false => encoded,
    }
}

/// Operations of one client against a server of its own.
async fn case(seed: u64) -> (u64, u64) {
    let lies = Arc::new(Mutex::new(Mutator::new(seed)));
    let connected = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let begun = connected.clone();
    let server = Liar::start(move |own, path, request| {
        let honest = honest::answer(own, path, request);
        match begun.load(std::sync::atomic::Ordering::Relaxed) {
            true => damage(&mut lies.lock(), honest),
            false => Say::Answer(honest),
        }
    })
    .await;
    let client = client(&server).await;
    connected.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut clerk = Clerk::new(client.clone());
    let mut mutator = Mutator::new(!seed);
    let (mut answered, mut failed) = (0, 0);
    for _ in 0..6 {
        let before = server.requests();
        let outcome = ends(operate(&mut mutator, &client, &mut clerk)).await;
        let sent = server.requests() - before;
        assert!(
            sent < 1_500,
            "seed {seed}: {sent} requests of one operation"
        );
        match outcome {
            Ok(()) => answered += 1,
            Err(error) => {
                failed += 1;
                check_line(&error);
            }
        }
    }
    (answered, failed)
}

/// Cases run side by side: most of their time is pauses.
#[tokio::test]
async fn fuzz_answers_of_servers() {
    const AT_ONCE: usize = 16;
    let seeds = strata_fuzz::seeds("answers of servers", 240);
    let (mut answered, mut failed) = (0, 0);
    for some in seeds.chunks(AT_ONCE) {
        let run = |seed: &u64| (*seed, tokio::spawn(case(*seed)));
        let running: Vec<_> = some.iter().map(run).collect();
        for (seed, case) in running {
            let ended = case.await;
            let (one, other) = ended.unwrap_or_else(|_| panic!("repeat it with FUZZ_SEED={seed}"));
            answered += one;
            failed += other;
        }
    }
    if strata_fuzz::is_whole_run() {
        assert!(
            answered > 300 && failed > 200,
            "{answered} answered, {failed} failed"
        );
    }
}

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
