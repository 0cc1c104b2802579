//! Snapshot files: made, sent, damaged, received, installed, and cut off at each instant.

mod crash;
mod files;
mod fuzz;
mod receive;
mod rocks;

use bytes::Bytes;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use strata_proto::eraftpb::HardState;
use strata_proto::metapb::{Peer, Region, RegionEpoch};
use strata_proto::raft_serverpb::{PeerState, RegionLocalState};
use strata_proto::stratapb::{RaftApplyState, SnapshotMeta};

use super::*;
use crate::batch::WriteBatch;
use crate::bootstrap::SYSTEM_REGION_ID;
use crate::engine::{Cf, Direction, Durability, Engine, Engines, ReadView};
use crate::keys::{self, SESSION_ID_BYTES};
use crate::mem::MemEngine;
use crate::region_records::{write_apply_state, write_region_state};

const REGION: u64 = 7;
const INDEX: u64 = 17;
const TERM: u64 = 6;
const CLOCK_MS: u64 = 1_700_000_000_000;
const BYTES_MAX: u64 = 1 << 30;
const DATA: [Cf; 5] = [Cf::Default, Cf::Lock, Cf::Write, Cf::Raw, Cf::Raw2];

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// A region over [b, m) with two replicas.
fn region(id: u64) -> Region {
    let peer = |store_id| Peer {
        id: id * 10 + store_id,
        store_id,
        ..Peer::default()
    };
    Region {
        id,
        start_key: Bytes::from_static(b"b"),
        end_key: Bytes::from_static(b"m"),
        region_epoch: Some(RegionEpoch {
            conf_ver: 2,
            version: 3,
        }),
        peers: vec![peer(1), peer(2)],
        ..Region::default()
    }
}

fn with_range(id: u64, start: &'static str, end: &'static str) -> Region {
    Region {
        start_key: start.into(),
        end_key: end.into(),
        ..region(id)
    }
}

fn write_states(kv: &impl Engine, region: &Region, index: u64) {
    let mut batch = WriteBatch::new();
    let state = RegionLocalState {
        region: Some(region.clone()),
        ..RegionLocalState::default()
    };
    write_region_state(&mut batch, &state);
    let apply = RaftApplyState {
        applied_index: index,
        applied_term: TERM,
        truncated_index: 5,
        truncated_term: 5,
        region_clock_ms: CLOCK_MS,
    };
    write_apply_state(&mut batch, region.id, &apply);
    kv.write(&batch, Durability::Synced).unwrap();
}

fn put(kv: &impl Engine, cf: Cf, key: &str, value: &str) {
    let mut batch = WriteBatch::new();
    batch.put(cf, key.to_owned(), value.to_owned());
    kv.write(&batch, Durability::Unsynced).unwrap();
}

fn session_key(region_id: u64, mark: u8) -> Vec<u8> {
    keys::session(region_id, &[mark; SESSION_ID_BYTES])
}

/// Fills an engine with the region's data, data on both sides of it, sessions of it and
/// of another region, and records of the system region.
fn fill(kv: &impl Engine) {
    write_states(kv, &region(REGION), INDEX);
    for cf in DATA {
        for key in ["za", "zb", "zc1", "zlast", "zm", "zz"] {
            put(kv, cf, key, &format!("{cf} {key}"));
        }
    }
    let mut batch = WriteBatch::new();
    for (region_id, mark) in [(REGION, 1), (REGION, 2), (REGION + 1, 1)] {
        batch.put(Cf::Raft, session_key(region_id, mark), format!("s{mark}"));
    }
    batch.put(Cf::Raft, keys::system(b"directory"), "regions");
    kv.write(&batch, Durability::Unsynced).unwrap();
}

/// All keys and values of a column family, in order.
fn dump(view: &impl ReadView, cf: Cf) -> Vec<(Bytes, Bytes)> {
    let mut all = Vec::new();
    let mut visit = |key: &[u8], value: &[u8]| {
        all.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        std::ops::ControlFlow::Continue(())
    };
    view.scan(cf, b"", None, Direction::Forward, &mut visit)
        .unwrap();
    all
}

/// What a snapshot of `region` carries, as an engine holds it.
fn carried(view: &impl ReadView, region: &Region) -> Vec<(Content, Vec<(Bytes, Bytes)>)> {
    let contents = Content::ALL.into_iter();
    let share = |content: Content| {
        let (start, end) = content.range(region)?;
        let mut all = dump(view, content.cf());
        all.retain(|(key, _)| start[..] <= key[..] && key[..] < end[..]);
        Some((content, all))
    };
    contents.filter_map(share).collect()
}

fn open<F: FileStore>(files: &F) -> SnapshotManager<F> {
    SnapshotManager::open(files.clone(), BYTES_MAX).unwrap()
}

fn generate<E: SnapshotEngine>(
    manager: &SnapshotManager<E::Files>,
    kv: &E,
    region_id: u64,
) -> SnapshotRef<E::Files> {
    let mut generator = Generator::<E>::begin(manager, kv.snapshot(), region_id).unwrap();
    loop {
        if let Generated::Done(snapshot) = generator.step(32).unwrap() {
            return snapshot;
        }
    }
}

fn receiver<F: FileStore>(manager: &SnapshotManager<F>, meta: &SnapshotMeta) -> Receiver<F> {
    match manager.receive(meta).unwrap() {
        Offered::Receive(receiver) => receiver,
        Offered::Complete(_) => panic!("the snapshot is complete already"),
    }
}

/// Sends what is missing.
fn send<F: FileStore>(from: &SnapshotRef<F>, to: &mut Receiver<F>) {
    for (file, part) in (0..).zip(to.progress().parts) {
        let length = from.meta().files[file as usize].length;
        let mut offset = part.synced;
        while offset < length {
            let chunk = from.read_chunk(file, offset).unwrap();
            to.accept(&chunk).unwrap();
            offset += chunk.data.len() as u64;
        }
    }
}

fn transfer<F: FileStore>(from: &SnapshotRef<F>, manager: &SnapshotManager<F>) -> SnapshotRef<F> {
    let mut receiver = receiver(manager, from.meta());
    send(from, &mut receiver);
    assert!(receiver.is_whole());
    receiver.finish().unwrap()
}

/// Installs a received snapshot from its beginning to its end.
fn install<E: SnapshotEngine>(engines: &Engines<E>, snapshot: SnapshotRef<E::Files>) {
    let hard_state = hard_state(TERM, 1, INDEX);
    let begun = begin_install(None, [], snapshot.meta(), &hard_state).unwrap();
    engines.kv.write(&begun.kv, Durability::Synced).unwrap();
    engines.raft.write(&begun.raft, Durability::Synced).unwrap();
    let mut installer = Installer::new(engines.kv.clone(), snapshot);
    while installer.step([]).unwrap() == Installed::Working {}
}

fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term, vote, commit }
}

fn state_of(kv: &impl ReadView) -> PeerState {
    let state = crate::region_records::read_region_state(kv, REGION).unwrap();
    state.unwrap().state()
}

/// A sender's engine, manager and snapshot in memory.
fn sender() -> (MemEngine, SnapshotManager<MemFiles>, SnapshotRef<MemFiles>) {
    let engines = MemEngine::new_pair();
    fill(&engines.kv);
    let manager = open(&MemFiles::new());
    let snapshot = generate(&manager, &engines.kv, REGION);
    (engines.kv, manager, snapshot)
}

fn names<F: FileStore>(files: &F) -> Vec<String> {
    let listed = files.list().unwrap().into_iter();
    listed.map(|(name, _)| name).collect()
}
