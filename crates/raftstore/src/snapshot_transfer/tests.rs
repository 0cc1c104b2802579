//! Both sides against each other: broken, lossy and lying streams, restarts, refusals.

use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use strata_proto::eraftpb::{Message, MessageType};
use strata_proto::metapb::{Peer, Region, RegionEpoch};
use strata_proto::raft_serverpb::{RaftMessage, RegionLocalState};
use strata_proto::stratapb::{
    RaftApplyState, SnapshotFrame, SnapshotMeta, SnapshotProgress, SnapshotRefusalKind,
    SnapshotReply, SnapshotTaken, snapshot_frame::Frame, snapshot_reply::Reply,
};
use strata_storage::snapshot::{
    FileFault, Generated, Generator, MemFiles, SnapshotError, SnapshotManager, SnapshotRef,
    check_install, to_raft,
};
use strata_storage::{
    Cf, Direction, Durability, Engine, MemEngine, ReadView, WriteBatch, write_apply_state,
    write_region_state,
};

use super::*;

mod bad_input;
mod resume;

const REGION: u64 = 7;
const LEADER: u64 = 1;
const FOLLOWER: u64 = 2;
const TERM: u64 = 6;
const CHUNK: usize = 1000;
const MS: Duration = Duration::from_millis(1);

fn options() -> TransferOptions {
    TransferOptions {
        chunk_bytes: CHUNK,
        ..TransferOptions::default()
    }
}

fn peer(store_id: u64) -> Peer {
    Peer {
        id: REGION * 10 + store_id,
        store_id,
        ..Peer::default()
    }
}

fn region() -> Region {
    Region {
        id: REGION,
        start_key: Bytes::from_static(b"b"),
        end_key: Bytes::from_static(b"m"),
        region_epoch: Some(RegionEpoch {
            conf_ver: 2,
            version: 3,
        }),
        peers: vec![peer(LEADER), peer(FOLLOWER)],
        ..Region::default()
    }
}

fn manager(files: &MemFiles) -> SnapshotManager<MemFiles> {
    SnapshotManager::open(files.clone(), 1 << 30).unwrap()
}

/// A leader's snapshot at an index, with `count` values of `bytes` bytes in each of two
/// column families.
fn snapshot_of(index: u64, count: usize, bytes: usize) -> SnapshotRef<MemFiles> {
    let kv = MemEngine::new_pair().kv;
    let mut batch = WriteBatch::new();
    write_region_state(
        &mut batch,
        &RegionLocalState {
            region: Some(region()),
            ..RegionLocalState::default()
        },
    );
    let apply = RaftApplyState {
        applied_index: index,
        applied_term: TERM,
        truncated_index: 5,
        truncated_term: 5,
        region_clock_ms: 1,
    };
    write_apply_state(&mut batch, REGION, &apply);
    for number in 0..count {
        for cf in [Cf::Write, Cf::Raw] {
            let value = vec![number as u8 ^ index as u8; bytes];
            batch.put(cf, format!("zc{number:04}"), value);
        }
    }
    kv.write(&batch, Durability::Synced).unwrap();
    let manager = manager(&MemFiles::new());
    let mut generator = Generator::<MemEngine>::begin(&manager, kv.snapshot(), REGION).unwrap();
    loop {
        if let Generated::Done(snapshot) = generator.step(1 << 16).unwrap() {
            return snapshot;
        }
    }
}

/// Two files of 20 chunks and a bit each.
fn snapshot() -> SnapshotRef<MemFiles> {
    snapshot_of(17, 20, CHUNK)
}

fn chunks_of(meta: &SnapshotMeta) -> u64 {
    let lengths = meta.files.iter().map(|file| file.length);
    lengths.map(|length| length.div_ceil(CHUNK as u64)).sum()
}

fn raft_message(meta: &SnapshotMeta) -> RaftMessage {
    let raft = Message {
        msg_type: MessageType::MsgSnapshot.into(),
        term: TERM,
        snapshot: Some(Box::new(to_raft(meta))),
        ..Message::default()
    };
    RaftMessage {
        region_id: REGION,
        from_peer: Some(peer(LEADER)),
        to_peer: Some(peer(FOLLOWER)),
        message: Some(raft),
        ..RaftMessage::default()
    }
}

fn new_sender(snapshot: &SnapshotRef<MemFiles>) -> SnapshotSender<MemFiles> {
    let message = raft_message(snapshot.meta());
    SnapshotSender::new(snapshot.clone(), message, &options(), Duration::ZERO)
}

fn new_receiver(manager: &SnapshotManager<MemFiles>) -> SnapshotReceiver<MemFiles> {
    SnapshotReceiver::new(
        manager.clone(),
        LEADER,
        FOLLOWER,
        &options(),
        Duration::ZERO,
    )
}

fn wanted(_: &SnapshotMeta, _: &RaftMessage) -> Result<(), SnapshotError> {
    Ok(())
}

fn frame(frame: Frame) -> SnapshotFrame {
    SnapshotFrame { frame: Some(frame) }
}

fn reply(reply: Reply) -> SnapshotReply {
    SnapshotReply { reply: Some(reply) }
}

/// What one stream came to.
#[derive(Debug)]
enum End {
    Delivered(Box<RaftMessage>),
    Refused(SnapshotError, SendFault),
    Broken,
}

/// Runs a stream frame by frame until it ends, or until `on_frame` breaks it. Every chunk
/// is answered before the next is asked for.
fn run(
    sender: &mut SnapshotSender<MemFiles>,
    receiver: &mut SnapshotReceiver<MemFiles>,
    mut on_frame: impl FnMut(&mut SnapshotFrame) -> ControlFlow<()>,
) -> End {
    while let Some(mut frame) = sender.next_frame().unwrap() {
        if on_frame(&mut frame).is_break() {
            return End::Broken;
        }
        match receiver.handle(Duration::ZERO, frame, wanted) {
            Received::Reply(reply) => sender.handle(Duration::ZERO, reply).unwrap(),
            Received::Complete { message, reply } => {
                sender.handle(Duration::ZERO, reply).unwrap();
                assert!(sender.is_done());
                return End::Delivered(message);
            }
            Received::Refused { error, reply } => {
                let fault = sender.handle(Duration::ZERO, reply).unwrap_err();
                return End::Refused(error, fault);
            }
        }
    }
    panic!("the sender waits for something that does not come: {sender:?}");
}

fn go_on(_: &mut SnapshotFrame) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Breaks the stream in front of chunk number `count`.
fn break_at(count: u64) -> impl FnMut(&mut SnapshotFrame) -> ControlFlow<()> {
    let mut seen = 0;
    move |frame| {
        seen += u64::from(matches!(frame.frame, Some(Frame::Chunk(_))));
        if seen > count {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

/// Runs a last stream, expects it to complete, and returns the chunks that it carried.
fn completes(snapshot: &SnapshotRef<MemFiles>, manager: &SnapshotManager<MemFiles>) -> u64 {
    let mut sender = new_sender(snapshot);
    let end = run(&mut sender, &mut new_receiver(manager), go_on);
    let End::Delivered(message) = end else {
        panic!("{end:?}");
    };
    assert_eq!(*message, raft_message(snapshot.meta()));
    assert_same(snapshot, manager);
    sender.chunks_sent()
}

/// The follower holds the leader's snapshot, byte for byte.
fn assert_same(snapshot: &SnapshotRef<MemFiles>, manager: &SnapshotManager<MemFiles>) {
    let meta = snapshot.meta();
    let found = manager
        .find_received(REGION, meta.index, meta.term)
        .unwrap();
    assert_eq!(found.meta(), meta);
    for file in 0..meta.files.len() as u32 {
        found.verify_file(file).unwrap();
    }
}

fn nothing_is_complete(manager: &SnapshotManager<MemFiles>) {
    assert!(manager.list().iter().all(|info| !info.complete));
}

#[test]
fn a_snapshot_travels_and_is_delivered_once() {
    let (snapshot, manager) = (snapshot(), manager(&MemFiles::new()));
    assert_eq!(completes(&snapshot, &manager), chunks_of(snapshot.meta()));
    // Offered again: it is there, so no chunk travels, and the message is delivered anew.
    assert_eq!(completes(&snapshot, &manager), 0);
}

#[test]
fn a_snapshot_without_files_travels() {
    let (snapshot, manager) = (snapshot_of(17, 0, 0), manager(&MemFiles::new()));
    assert!(snapshot.meta().files.is_empty());
    assert_eq!(completes(&snapshot, &manager), 0);
}

#[test]
fn a_sender_is_never_more_than_its_window_ahead() {
    let (snapshot, manager) = (snapshot(), manager(&MemFiles::new()));
    let (mut sender, mut receiver) = (new_sender(&snapshot), new_receiver(&manager));
    let mut on_the_way = std::collections::VecDeque::new();
    let mut most = 0;
    loop {
        while let Some(frame) = sender.next_frame().unwrap() {
            on_the_way.push_back(frame);
        }
        assert!(sender.next_to_send().is_none(), "the window is used up");
        most = most.max(on_the_way.len() as u64);
        let frame = on_the_way.pop_front().unwrap();
        match receiver.handle(Duration::ZERO, frame, wanted) {
            Received::Reply(reply) => sender.handle(Duration::ZERO, reply).unwrap(),
            Received::Complete { reply, .. } => {
                sender.handle(Duration::ZERO, reply).unwrap();
                break;
            }
            Received::Refused { error, .. } => panic!("{error}"),
        }
    }
    assert!(sender.is_done());
    // The shorter chunk at a file's end lets one more in, and so does the end.
    assert!(
        (WINDOW_CHUNKS..=WINDOW_CHUNKS + 2).contains(&most),
        "{most}"
    );
    assert_eq!(sender.chunks_sent(), chunks_of(snapshot.meta()));
}

fn gives_up(fault: &SendFault) -> bool {
    let mut retry = SendRetry::new(&options(), Duration::ZERO);
    retry.on_fault(Duration::ZERO, fault).is_none()
}

/// What was received can be read by an engine again: the keys are those of the leader.
#[test]
fn the_received_files_hold_the_leaders_keys() {
    let (snapshot, manager) = (snapshot(), manager(&MemFiles::new()));
    completes(&snapshot, &manager);
    let engines = MemEngine::new_pair();
    let meta = snapshot.meta();
    let hard_state = strata_proto::eraftpb::HardState {
        term: TERM,
        vote: 0,
        commit: meta.index,
    };
    let begun = strata_storage::snapshot::begin_install(None, [], meta, &hard_state).unwrap();
    engines.kv.write(&begun.kv, Durability::Synced).unwrap();
    engines.raft.write(&begun.raft, Durability::Synced).unwrap();
    let found = manager
        .find_received(REGION, meta.index, meta.term)
        .unwrap();
    let mut installer = strata_storage::snapshot::Installer::new(engines.kv.clone(), found);
    while installer.step([]).unwrap() == strata_storage::snapshot::Installed::Working {}
    let mut count = 0;
    let mut visit = |_: &[u8], value: &[u8]| {
        assert_eq!(value.len(), CHUNK);
        count += 1;
        ControlFlow::Continue(())
    };
    for cf in [Cf::Write, Cf::Raw] {
        engines
            .kv
            .scan(cf, b"z", None, Direction::Forward, &mut visit)
            .unwrap();
    }
    assert_eq!(count, 40);
}
