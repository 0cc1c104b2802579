//! Crash rule 9: a failed sync, or a broken invariant, ends the process and is never retried.
//!
//! A test starts itself again as a child whose raft engine fails, or whose shard panics; the child
//! must not live to acknowledge anything.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use strata_proto::pdpb::RegionHeartbeatRequest;
use strata_proto::raft_serverpb::RaftMessage;
use strata_raftstore::{
    HeartbeatSink, Request, RequestBody, RequestHeader, Store, StoreHandle, StoreOptions,
    Surroundings, SystemStateMachine, SystemView, SystemViewError, SystemWrites, Transport,
};
use strata_storage::bootstrap::{ClusterSpec, write_bootstrap};
use strata_storage::snapshot::{MemFiles, SnapshotManager};
use strata_storage::{Fault, MemEngine};

const CHILD: &str = "STRATA_TEST_CHILD_OF_FAILED_SYNC";
/// The next report panics, in the task of its shard.
static PANICS: AtomicBool = AtomicBool::new(false);

struct Nothing;

impl Transport for Nothing {
    fn send(&self, _: u64, _: Vec<RaftMessage>) {}

    fn send_snapshot(&self, _: u64, message: RaftMessage) {
        panic!("region {}: a snapshot is sent", message.region_id);
    }
}

impl HeartbeatSink for Nothing {
    fn report(&self, _: Vec<RegionHeartbeatRequest>) {
        assert!(!PANICS.load(Ordering::SeqCst), "played by the test");
    }
}

impl SystemStateMachine for Nothing {
    fn apply(
        &self,
        _: &dyn SystemView,
        _: &[u8],
        _: &mut SystemWrites,
    ) -> Result<Bytes, SystemViewError> {
        Ok(Bytes::new())
    }
}

fn child(fail: impl FnOnce(&MemEngine, &StoreHandle)) {
    let spec = ClusterSpec::new(&[1], "failed sync", 6, 1).unwrap();
    let engines = MemEngine::new_pair();
    write_bootstrap(&engines, &spec.ident(1, 1), &spec.layout()).unwrap();
    let snapshots = SnapshotManager::open(MemFiles::new(), u64::MAX).unwrap();
    let nothing = Arc::new(Nothing);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .unwrap();
    let surroundings = Surroundings {
        transport: nothing.clone(),
        heartbeats: nothing.clone(),
        system: nothing,
        logger: slog::Logger::root(slog::Discard, slog::o!()),
        runtime: runtime.handle().clone(),
    };
    let store = Store::start(
        1,
        StoreOptions::default(),
        engines.clone(),
        snapshots,
        surroundings,
    )
    .unwrap();
    let handle = store.handle();
    let (sender, receiver) = std::sync::mpsc::channel();
    let ask = |request: &'static [u8]| {
        let deadline = handle.now() + Duration::from_secs(20);
        let header = RequestHeader {
            region_id: 1,
            deadline,
            ..RequestHeader::default()
        };
        let body = RequestBody::SystemWrite(Bytes::from_static(request));
        let sender = sender.clone();
        let reply = Box::new(move |result| drop(sender.send(result)));
        handle.execute(Request { header, body }, reply).detach();
        receiver.recv_timeout(Duration::from_secs(30)).unwrap()
    };
    while ask(b"before").is_err() {}
    println!("serving");
    fail(&engines.raft, &handle);
    let result = ask(b"after");
    println!("answered {result:?}");
}

/// Runs the test of this name in a process of its own, which must end once it fails.
fn expect_to_end(name: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("serving"), "the child never served: {text}");
    assert!(!text.contains("answered"), "the child went on: {text}");
    assert!(!output.status.success(), "the child ended well");
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

#[test]
fn crash_rule_failed_sync_ends_the_process() {
    if is_child() {
        return child(|raft, _| raft.fail_next(Fault::Sync));
    }
    expect_to_end("crash_rule_failed_sync_ends_the_process");
}

#[test]
fn crash_rule_panic_of_a_shard_ends_the_process() {
    if is_child() {
        return child(|_, handle| {
            PANICS.store(true, Ordering::SeqCst);
            handle.report_all_regions();
            // Longer than ending takes: nothing more is asked of a store that goes on.
            let (_open, never) = std::sync::mpsc::channel::<()>();
            assert!(never.recv_timeout(Duration::from_secs(20)).is_err());
        });
    }
    expect_to_end("crash_rule_panic_of_a_shard_ends_the_process");
}
