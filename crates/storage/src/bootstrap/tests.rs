//! The layout as the interfaces page fixes it, and crashes of its writing.

use std::collections::BTreeSet;

use strata_raft::Storage;

use super::*;
use crate::engine::{Durability, Engine, EngineKind, Engines, ReadView};
use crate::error::{Error, IdentFault};
use crate::mem::{Fault, MemEngine};
use crate::peer_storage::{PeerStorage, PeerStorageOptions};
use crate::region_records::read_all_region_states;
use crate::{Cf, WriteBatch, keys};

fn spec(stores: &[u64], regions: u32, replicas: u32) -> ClusterSpec {
    ClusterSpec::new(stores, "strata", regions, replicas).unwrap()
}

#[test]
fn bootstrap_layout_of_the_fixed_cuts() {
    let layout = spec(&[3, 1, 2], 6, 3).layout();
    assert_eq!(layout.len(), 7);
    assert_eq!(layout[0].id, SYSTEM_REGION_ID);
    let stores = |r: &Region| r.peers.iter().map(|p| p.store_id).collect::<Vec<_>>();
    assert_eq!(stores(&layout[0]), [1, 2, 3]);
    assert!(layout[0].start_key.is_empty() && layout[0].end_key.is_empty());
    let cuts: Vec<_> = layout[1..6].iter().map(|r| r.end_key.to_vec()).collect();
    let enc = memcomparable::encode;
    assert_eq!(
        cuts,
        [
            enc(b"r\0\0\0"),
            enc(b"r\0\0\x01"),
            enc(b"x\0\0\0"),
            enc(b"x\0\0\x01"),
            enc(&[0xff; 4])
        ]
    );
    // Region 2 lives on the stores in places 2, 3, 4 of the list, counted round.
    assert_eq!(stores(&layout[1]), [3, 1, 2]);
    assert_eq!(stores(&layout[2]), [1, 2, 3]);
    let epoch = layout[1].region_epoch.unwrap();
    assert_eq!((epoch.conf_ver, epoch.version), (1, 1));
}

#[test]
fn bootstrap_layout_covers_the_key_space_with_unique_ids() {
    for regions in [6, 7, 8, 100, REGIONS_MAX] {
        let layout = spec(&[1, 2, 3, 4, 5, 6, 7], regions, 5).layout();
        assert_eq!(layout.len(), regions as usize + 1);
        assert_eq!(layout[0].peers.len(), 5);
        let mut end = Vec::new();
        let mut ids = BTreeSet::new();
        for (at, region) in layout.iter().enumerate() {
            assert_eq!(region.id, at as u64 + 1);
            assert!(ids.insert(region.id));
            let stores: BTreeSet<_> = region.peers.iter().map(|p| p.store_id).collect();
            assert_eq!(stores.len(), 5, "one replica a store");
            for peer in &region.peers {
                assert!(ids.insert(peer.id), "peer id {} twice", peer.id);
                assert!(peer.id < FIRST_ALLOCATED_ID);
            }
            if at > 0 {
                assert_eq!(region.start_key, end, "region {}", region.id);
                assert!(region.end_key.is_empty() || region.start_key < region.end_key);
                assert!(region.end_key.is_empty() || memcomparable::is_encoding(&region.end_key));
                end = region.end_key.to_vec();
            }
        }
        assert!(end.is_empty(), "the last region ends at the end");
    }
}

#[test]
fn bootstrap_further_cuts_are_even() {
    let layout = spec(&[1], 7, 1).layout();
    let further = memcomparable::encode(&[0x80, 0]);
    assert!(layout.iter().any(|region| region.end_key == further));
}

#[test]
fn bootstrap_cluster_id_is_a_function_of_the_command_line() {
    let id = spec(&[1, 2, 3], 6, 3).cluster_id();
    assert_eq!(id, spec(&[3, 2, 1], 6, 3).cluster_id());
    assert_ne!(id, spec(&[1, 2, 4], 6, 3).cluster_id());
    assert_ne!(id, spec(&[1, 2, 3], 7, 3).cluster_id());
    assert_ne!(id, spec(&[1, 2, 3], 6, 1).cluster_id());
    let other = ClusterSpec::new(&[1, 2, 3], "other", 6, 3).unwrap();
    assert_ne!(id, other.cluster_id());
    // Fixed for ever: nodes of different versions must agree.
    assert_eq!(hash64(b"strata"), 0x5a4f_965e_8a9b_0ac3);
}

#[test]
fn bootstrap_refuses_unfit_command_lines() {
    let refused = |stores: &[u64], regions, replicas| {
        ClusterSpec::new(stores, "", regions, replicas).unwrap_err()
    };
    assert!(matches!(refused(&[], 6, 1), SpecError::Stores(_)));
    assert!(matches!(refused(&[1, 1], 6, 1), SpecError::Stores(_)));
    assert!(matches!(refused(&[0], 6, 1), SpecError::Stores(_)));
    assert_eq!(refused(&[1], 5, 1), SpecError::Regions(5));
    assert_eq!(refused(&[1], 10_001, 1), SpecError::Regions(10_001));
    for replicas in [0, 2, 5] {
        let expected = SpecError::Replicas {
            replicas,
            stores: 3,
        };
        assert_eq!(refused(&[1, 2, 3], 6, replicas), expected);
    }
}

fn bootstrapped() -> (Engines<MemEngine>, StoreIdent) {
    let engines = MemEngine::new_pair();
    let spec = spec(&[1, 2, 3, 4], 6, 3);
    let ident = spec.ident(2, 77);
    write_bootstrap(&engines, &ident, &spec.layout()).unwrap();
    (engines, ident)
}

#[test]
fn bootstrap_writes_the_share_of_one_store() {
    let (engines, ident) = bootstrapped();
    assert_eq!(read_ident(&engines).unwrap(), Some(ident.clone()));
    let layout = layout_of_ident(&ident).unwrap();
    let mut count = 0;
    for region in layout {
        let own = region.peers.iter().find(|peer| peer.store_id == 2);
        let id = own.map_or(0, |peer| peer.id);
        let loaded =
            PeerStorage::load(&engines, region.id, id, &PeerStorageOptions::default()).unwrap();
        assert_eq!(loaded.is_some(), own.is_some());
        let Some(storage) = loaded else { continue };
        count += 1;
        let state = storage.initial_state().unwrap();
        assert_eq!(
            (
                state.hard_state.term,
                state.hard_state.vote,
                state.hard_state.commit
            ),
            (5, 0, 5)
        );
        assert_eq!(state.conf_state.voters.len(), 3);
        assert_eq!(storage.first_index(), Ok(6));
        assert_eq!(storage.last_index(), Ok(5));
        assert_eq!(storage.term(5), Ok(5));
        assert_eq!(storage.applied_index(), 5);
    }
    assert_eq!(count, read_all_region_states(&engines.kv).unwrap().len());
    assert!(count >= 4);
}

#[test]
fn bootstrap_interrupted_between_its_writes_is_repeated() {
    let engines = MemEngine::new_pair();
    let first = spec(&[1, 2, 3], 10, 3);
    engines.kv.fail_next(Fault::Write);
    write_bootstrap(&engines, &first.ident(1, 7), &first.layout()).unwrap_err();
    let engines = Engines::new(engines.kv.crash_keeping(0), engines.raft.crash_keeping(0));
    assert_eq!(read_ident(&engines).unwrap(), None, "still a new folder");
    // With fewer regions this time: nothing of the first attempt may remain.
    let second = spec(&[1, 2, 3], 6, 3);
    write_bootstrap(&engines, &second.ident(1, 8), &second.layout()).unwrap();
    assert_eq!(read_ident(&engines).unwrap().unwrap().incarnation, 8);
    assert_eq!(read_all_region_states(&engines.kv).unwrap().len(), 7);
    let last = keys::raft_state(11);
    assert_eq!(engines.raft.get(Cf::RaftLog, &last), Ok(None));
}

#[test]
fn bootstrap_is_refused_in_an_initialised_folder() {
    let (engines, ident) = bootstrapped();
    let answer = write_bootstrap(&engines, &ident, &[]);
    assert_eq!(answer, Err(Error::Ident(IdentFault::NotNew)));
}

#[test]
fn bootstrap_ident_lost_by_one_engine_is_refused() {
    let missing = |engine| Err(Error::Ident(IdentFault::Missing { engine }));
    let (engines, _) = bootstrapped();
    assert!(mark_admitted(&engines).unwrap().admitted);
    assert!(read_ident(&engines).unwrap().unwrap().admitted);
    let without_raft = Engines::new(engines.kv.clone(), MemEngine::new(EngineKind::Raft));
    assert_eq!(read_ident(&without_raft), missing(EngineKind::Raft));
    let without_kv = Engines::new(MemEngine::new(EngineKind::Kv), engines.raft.clone());
    assert_eq!(read_ident(&without_kv), missing(EngineKind::Kv));
}

#[test]
fn bootstrap_engines_of_different_folders_are_refused() {
    let (first, ident) = bootstrapped();
    let second = MemEngine::new_pair();
    let other = StoreIdent {
        incarnation: 78,
        ..ident
    };
    write_bootstrap(&second, &other, &[]).unwrap();
    let mixed = Engines::new(first.kv, second.raft);
    assert!(matches!(
        read_ident(&mixed),
        Err(Error::Ident(IdentFault::Differ { .. }))
    ));
}

#[test]
fn bootstrap_kv_engine_lost_beside_a_log_is_refused() {
    let (engines, _) = bootstrapped();
    let mut batch = WriteBatch::new();
    batch.put(Cf::RaftLog, keys::raft_log(1, 6), "an entry");
    engines.raft.write(&batch, Durability::Synced).unwrap();
    let without_kv = Engines::new(MemEngine::new(EngineKind::Kv), engines.raft.clone());
    let missing = IdentFault::Missing {
        engine: EngineKind::Kv,
    };
    assert_eq!(read_ident(&without_kv), Err(Error::Ident(missing)));
}
