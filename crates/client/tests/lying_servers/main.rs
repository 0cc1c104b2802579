//! The client against servers that lie, or that are newer than it knows.
//!
//! Whatever a server answers, an operation ends in time, with a value or with an error in one
//! line; it neither panics nor goes round for ever, and it does not send more than its pauses
//! allow.

mod honest;
mod liar;
mod lies;

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
