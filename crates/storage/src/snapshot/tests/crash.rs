//! Installing: what is refused, and what a crash leaves between any two writes.

use strata_proto::eraftpb::Entry;
use strata_proto::raft_serverpb::RaftLocalState;

use super::*;
use crate::peer_storage::{PeerStorage, PeerStorageOptions};
use crate::region_records::{read_raft_state, write_raft_state};
use crate::{Error, StartFault};
use prost::Message;
use strata_raft::Storage;

/// The receiver's log before the install: truncated and applied at 5, entries to 8.
const OLD_LAST: u64 = 8;
const OLD_TERM: u64 = 5;

/// A node that receives: both engines and its snapshot files.
struct Node {
    engines: Engines<MemEngine>,
    files: MemFiles,
}

/// The region as the receiver knows it before: wider than the snapshot's.
fn old_region() -> Region {
    Region {
        region_epoch: Some(RegionEpoch {
            conf_ver: 1,
            version: 1,
        }),
        ..with_range(REGION, "a", "y")
    }
}

fn follower() -> Node {
    let engines = MemEngine::new_pair();
    let mut kv = WriteBatch::new();
    let state = RegionLocalState {
        region: Some(old_region()),
        ..RegionLocalState::default()
    };
    write_region_state(&mut kv, &state);
    let apply = RaftApplyState {
        applied_index: 5,
        applied_term: OLD_TERM,
        truncated_index: 5,
        truncated_term: OLD_TERM,
        region_clock_ms: 1,
    };
    write_apply_state(&mut kv, REGION, &apply);
    kv.put(Cf::Raft, session_key(REGION, 9), "old session");
    for cf in DATA {
        for key in ["za", "zb1", "zx", "zz"] {
            kv.put(cf, key, "old");
        }
    }
    engines.kv.write(&kv, Durability::Synced).unwrap();
    let mut raft = WriteBatch::new();
    for index in 6..=OLD_LAST {
        let entry = Entry {
            index,
            term: OLD_TERM,
            ..Entry::default()
        };
        raft.put(
            Cf::RaftLog,
            keys::raft_log(REGION, index),
            entry.encode_to_vec(),
        );
    }
    let state = RaftLocalState {
        hard_state: Some(hard_state(OLD_TERM, 72, 5)),
        last_index: OLD_LAST,
    };
    write_raft_state(&mut raft, REGION, &state);
    engines.raft.write(&raft, Durability::Synced).unwrap();
    Node {
        engines,
        files: MemFiles::new(),
    }
}

/// Stops before write or step number `stop`; true if all were done.
fn run_install(node: &Node, stop: usize) -> bool {
    let manager = open(&node.files);
    let snapshot = manager.find_received(REGION, INDEX, TERM).unwrap();
    let own = old_region();
    check_install(snapshot.meta(), Some((&own, 5)), []).unwrap();
    let hard = hard_state(TERM, 71, INDEX);
    let begun = begin_install(Some(&own), [], snapshot.meta(), &hard).unwrap();
    if stop == 0 {
        return false;
    }
    node.engines
        .kv
        .write(&begun.kv, Durability::Synced)
        .unwrap();
    if stop == 1 {
        return false;
    }
    node.engines
        .raft
        .write(&begun.raft, Durability::Synced)
        .unwrap();
    let mut installer = Installer::new(node.engines.kv.clone(), snapshot);
    (2..stop).any(|_| installer.step([]).unwrap() == Installed::Done)
}

/// What a start does; false if there was no install to go on with.
fn recover(node: &Node) -> bool {
    let Some(found) = recover_install(&node.engines, REGION).unwrap() else {
        return false;
    };
    if let Some(raft) = &found.raft {
        node.engines.raft.write(raft, Durability::Synced).unwrap();
    }
    let manager = open(&node.files);
    let snapshot = manager
        .find_received(REGION, found.index, found.term)
        .unwrap();
    assert_eq!(snapshot.region(), &found.region);
    let mut installer = Installer::new(node.engines.kv.clone(), snapshot);
    while installer.step([]).unwrap() == Installed::Working {}
    true
}

fn load(node: &Node) -> Result<PeerStorage<MemEngine>, Error> {
    let options = PeerStorageOptions::default();
    PeerStorage::load(&node.engines, REGION, 71, &options).map(Option::unwrap)
}

fn assert_installed(node: &Node, sender: &MemEngine, context: &str) {
    let region = region(REGION);
    assert_eq!(state_of(&node.engines.kv), PeerState::Normal, "{context}");
    assert_eq!(
        carried(&node.engines.kv, &region),
        carried(sender, &region),
        "{context}"
    );
    for cf in DATA {
        // Behind the new range, inside the old one: gone. Outside of both: untouched.
        assert_eq!(node.engines.kv.get(cf, b"zx").unwrap(), None, "{context}");
        assert_eq!(node.engines.kv.get(cf, b"za").unwrap(), None, "{context}");
        assert!(
            node.engines.kv.get(cf, b"zz").unwrap().is_some(),
            "{context}"
        );
    }
    let storage = load(node).unwrap();
    assert_eq!(storage.first_index(), Ok(INDEX + 1), "{context}");
    assert_eq!(storage.last_index(), Ok(INDEX), "{context}");
    assert_eq!(storage.term(INDEX), Ok(TERM), "{context}");
    assert_eq!(storage.region(), &region, "{context}");
    assert!(
        recover_install(&node.engines, REGION).unwrap().is_none(),
        "{context}"
    );
}

/// After which a crash test has tried every step.
const STEPS_MAX: usize = 40;

#[test]
fn crash_rule_snapshot_install_between_any_two_writes() {
    let (kv, _, snapshot) = sender();
    let mut finished = false;
    let mut recovered = 0;
    for stop in 0..STEPS_MAX {
        for seed in 0..8 {
            let node = follower();
            drop(transfer(&snapshot, &open(&node.files)));
            finished = run_install(&node, stop);
            let mut rng = rng(seed);
            let engines = Engines::new(
                node.engines.kv.crash(&mut rng),
                node.engines.raft.crash(&mut rng),
            );
            let files = node.files.crash(&mut rng);
            let node = Node { engines, files };
            let context = format!("stop {stop}, seed {seed}");
            if stop == 0 {
                // Nothing was begun: the replica is what it was.
                assert!(!recover(&node), "{context}");
                assert_eq!(load(&node).unwrap().last_index(), Ok(OLD_LAST));
                assert!(node.engines.kv.get(Cf::Raw, b"zx").unwrap().is_some());
                continue;
            }
            recovered += usize::from(recover(&node));
            assert_installed(&node, &kv, &context);
        }
    }
    assert!(finished, "the last stop was reached before the end");
    assert!(recovered > 80, "only {recovered} installs were cut off");
}

#[test]
fn crash_rule_snapshot_install_cut_off_twice() {
    let (kv, _, snapshot) = sender();
    for first in 1..18 {
        for second in 0..18 {
            let mut rng = rng(first * 100 + second);
            let mut node = follower();
            drop(transfer(&snapshot, &open(&node.files)));
            run_install(&node, first as usize);
            for stop in [second as usize, usize::MAX] {
                node = Node {
                    engines: Engines::new(
                        node.engines.kv.crash(&mut rng),
                        node.engines.raft.crash(&mut rng),
                    ),
                    files: node.files.crash(&mut rng),
                };
                let Some(found) = recover_install(&node.engines, REGION).unwrap() else {
                    break;
                };
                if let Some(raft) = found.raft.filter(|_| stop > 0) {
                    node.engines.raft.write(&raft, Durability::Synced).unwrap();
                }
                let manager = open(&node.files);
                let snapshot = manager.find_received(REGION, INDEX, TERM).unwrap();
                let mut installer = Installer::new(node.engines.kv.clone(), snapshot);
                for _ in 1..stop {
                    if installer.step([]).unwrap() == Installed::Done {
                        break;
                    }
                }
            }
            assert_installed(&node, &kv, &format!("{first}, then {second}"));
        }
    }
}

#[test]
fn crash_rule_snapshot_install_keeps_what_was_appended_since() {
    let (_, _, snapshot) = sender();
    let node = follower();
    drop(transfer(&snapshot, &open(&node.files)));
    run_install(&node, 4);
    // The replica goes on in raft while the worker installs: an entry and a new vote.
    let mut raft = WriteBatch::new();
    let entry = Entry {
        index: INDEX + 1,
        term: TERM + 1,
        ..Entry::default()
    };
    raft.put(
        Cf::RaftLog,
        keys::raft_log(REGION, INDEX + 1),
        entry.encode_to_vec(),
    );
    let state = RaftLocalState {
        hard_state: Some(hard_state(TERM + 1, 72, INDEX)),
        last_index: INDEX + 1,
    };
    write_raft_state(&mut raft, REGION, &state);
    node.engines.raft.write(&raft, Durability::Synced).unwrap();
    let found = recover_install(&node.engines, REGION).unwrap().unwrap();
    assert_eq!(found.raft, None);
    assert!(recover(&node));
    let storage = load(&node).unwrap();
    assert_eq!(storage.last_index(), Ok(INDEX + 1));
    assert_eq!(
        read_raft_state(&node.engines.raft, REGION).unwrap(),
        Some(state)
    );
}

#[test]
fn crash_rule_snapshot_install_keeps_the_higher_term_with_its_vote() {
    let (_, _, snapshot) = sender();
    // Found in the raft engine; in the copy; after the raft batch is repeated.
    let cases = [
        ((9, 72), (6, 71), (9, 72)),
        ((9, 0), (6, 71), (9, 0)),
        ((5, 72), (6, 71), (6, 71)),
        ((5, 72), (6, 0), (6, 0)),
        ((6, 72), (6, 0), (6, 72)),
        ((6, 0), (6, 71), (6, 71)),
    ];
    for (found, copied, expected) in cases {
        let node = follower();
        let hard = hard_state(copied.0, copied.1, INDEX);
        let begun = begin_install(None, [], snapshot.meta(), &hard).unwrap();
        node.engines
            .kv
            .write(&begun.kv, Durability::Synced)
            .unwrap();
        let mut raft = WriteBatch::new();
        let state = RaftLocalState {
            hard_state: Some(hard_state(found.0, found.1, 5)),
            last_index: OLD_LAST,
        };
        write_raft_state(&mut raft, REGION, &state);
        node.engines.raft.write(&raft, Durability::Synced).unwrap();
        let batch = recover_install(&node.engines, REGION)
            .unwrap()
            .unwrap()
            .raft;
        node.engines
            .raft
            .write(&batch.unwrap(), Durability::Synced)
            .unwrap();
        let repeated = read_raft_state(&node.engines.raft, REGION)
            .unwrap()
            .unwrap();
        assert_eq!(
            repeated,
            RaftLocalState {
                hard_state: Some(hard_state(expected.0, expected.1, INDEX)),
                last_index: INDEX
            },
            "found {found:?}, copied {copied:?}"
        );
        assert_eq!(
            recover_install(&node.engines, REGION)
                .unwrap()
                .unwrap()
                .raft,
            None
        );
    }
}

#[test]
fn start_between_the_two_batches_needs_recovery() {
    // The start check finds the state that recover_install repairs: it must run first.
    let (_, _, snapshot) = sender();
    let node = follower();
    drop(transfer(&snapshot, &open(&node.files)));
    run_install(&node, 1);
    let fault = load(&node).err();
    assert!(
        matches!(
            fault,
            Some(Error::StartCheck {
                fault: StartFault::AppliedAboveLast { .. },
                ..
            })
        ),
        "{fault:?}"
    );
    recover(&node);
    load(&node).unwrap();
}

#[test]
fn install_without_its_records_or_files_is_fatal() {
    let (_, _, snapshot) = sender();
    let node = follower();
    let hard = hard_state(TERM, 71, INDEX);
    let begun = begin_install(None, [], snapshot.meta(), &hard).unwrap();
    node.engines
        .kv
        .write(&begun.kv, Durability::Synced)
        .unwrap();
    let found = recover_install(&node.engines, REGION).unwrap().unwrap();
    let manager = open(&node.files);
    let error = manager
        .find_received(REGION, found.index, found.term)
        .unwrap_err();
    assert!(matches!(
        error,
        SnapshotError::FilesMissing { index: INDEX, .. }
    ));
    assert!(error.is_fatal());
    let mut batch = WriteBatch::new();
    batch.delete(Cf::Raft, keys::raft_state_copy(REGION));
    node.engines.kv.write(&batch, Durability::Synced).unwrap();
    let error = recover_install(&node.engines, REGION).unwrap_err();
    assert!(matches!(error, SnapshotError::InstallRecord { .. }) && error.is_fatal());
}

#[test]
fn bad_input_overlapping_snapshot() {
    let (_, _, snapshot) = sender();
    let meta = snapshot.meta();
    let overlapping = |other: &Region| {
        matches!(
            check_install(meta, None, [other]),
            Err(SnapshotError::Overlapping { other: 8, .. })
        )
    };
    assert!(overlapping(&with_range(8, "", "")));
    assert!(overlapping(&with_range(8, "l", "n")));
    assert!(overlapping(&with_range(8, "c", "d")));
    assert!(!overlapping(&with_range(8, "", "b")));
    assert!(!overlapping(&with_range(8, "m", "")));
    // The worker looks again before it clears.
    let node = follower();
    let received = transfer(&snapshot, &open(&node.files));
    let mut installer = Installer::new(node.engines.kv.clone(), received);
    let late = with_range(8, "c", "d");
    let error = loop {
        match installer.step([&late]) {
            Ok(step) => assert_eq!(step, Installed::Working),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SnapshotError::Overlapping { other: 8, .. }));
    assert!(node.engines.kv.get(Cf::Raw, b"zb1").unwrap().is_some());
}

#[test]
fn bad_input_snapshot_of_older_index_term_or_epoch() {
    let (_, _, snapshot) = sender();
    let meta = snapshot.meta();
    let own = region(REGION);
    check_install(meta, Some((&own, INDEX - 1)), []).unwrap();
    let stale = check_install(meta, Some((&own, INDEX)), []);
    assert!(matches!(
        stale,
        Err(SnapshotError::Stale { applied: INDEX, .. })
    ));
    for epoch in [(3, 3), (2, 4)] {
        let mut newer = own.clone();
        newer.region_epoch = Some(RegionEpoch {
            conf_ver: epoch.0,
            version: epoch.1,
        });
        let refused = check_install(meta, Some((&newer, 5)), []);
        assert!(
            matches!(refused, Err(SnapshotError::StaleEpoch { current, .. })
            if current == epoch)
        );
    }
    let behind = begin_install(None, [], meta, &hard_state(TERM - 1, 0, 0));
    assert!(matches!(
        behind,
        Err(SnapshotError::TermBehind { term: 5, .. })
    ));
}

#[test]
fn bad_input_flipped_bit_snapshot_file_clears_nothing() {
    let (_, _, snapshot) = sender();
    let node = follower();
    let received = transfer(&snapshot, &open(&node.files));
    let table = names(&node.files)
        .into_iter()
        .find(|name| name.ends_with("_write.mem"));
    node.files.flip_bit(&table.unwrap(), 91);
    let before = dump(&node.engines.kv, Cf::Raw);
    let mut installer = Installer::new(node.engines.kv.clone(), received);
    let error = loop {
        if let Err(error) = installer.step([]) {
            break error;
        }
    };
    assert!(
        matches!(error, SnapshotError::FileChecksum { .. }),
        "{error}"
    );
    assert_eq!(dump(&node.engines.kv, Cf::Raw), before);
}

#[test]
fn old_remainder_of_another_live_replica_is_not_cleared() {
    let (_, _, snapshot) = sender();
    let node = follower();
    let (own, child) = (old_region(), with_range(8, "w", "y"));
    let hard = hard_state(TERM, 71, INDEX);
    let begun = begin_install(Some(&own), [&child], snapshot.meta(), &hard).unwrap();
    node.engines
        .kv
        .write(&begun.kv, Durability::Synced)
        .unwrap();
    assert!(node.engines.kv.get(Cf::Raw, b"zx").unwrap().is_some());
    assert_eq!(node.engines.kv.get(Cf::Raw, b"za").unwrap(), None);
    // Inside the snapshot's range nothing is cleared before its files are checked.
    assert!(node.engines.kv.get(Cf::Raw, b"zb1").unwrap().is_some());
}
