//! Messages with random contents, by the hundred thousand: none may make a replica panic,
//! move its commit index back, or fill its queues.
//!
//! Numbers are drawn near the replica's own and at both ends of their range, so that many
//! messages get past the first checks. The driver in between is the plainest one; what a
//! message made the replica believe (a term, a leader, entries) stays and meets the next.

use std::time::Duration;

use bytes::Bytes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use strata_proto::eraftpb::{
    ConfState, Entry, HardState, Message, MessageType, Snapshot, SnapshotMetadata,
};
use strata_raft::{Config, LightReady, MemStorage, RawNode, conf_change_of};

fn number(rng: &mut ChaCha8Rng, near: u64) -> u64 {
    match rng.random_range(0..20) {
        0 => 0,
        1 => u64::MAX - rng.random_range(0..3),
        2 => rng.random(),
        _ => (near + rng.random_range(0..6)).saturating_sub(3),
    }
}

fn entries(rng: &mut ChaCha8Rng, prev: u64, term: u64) -> Vec<Entry> {
    let sound = rng.random_bool(0.8);
    let count = rng.random_range(0..4);
    let entry = |at: u64| Entry {
        index: if sound {
            prev.saturating_add(at + 1)
        } else {
            number(rng, prev)
        },
        term: if sound { term } else { number(rng, term) },
        entry_type: if rng.random_bool(0.05) {
            rng.random_range(0..4)
        } else {
            0
        },
        data: Bytes::from_static(b"data"),
        ..Entry::default()
    };
    (0..count).map(entry).collect()
}

fn snapshot(rng: &mut ChaCha8Rng, index: u64, term: u64) -> Snapshot {
    let conf_state = match rng.random_range(0..4) {
        0 => ConfState::default(),
        1 => ConfState {
            voters: vec![1, 2],
            learners: vec![2],
            ..ConfState::default()
        },
        _ => ConfState {
            voters: vec![1, 2, 3],
            ..ConfState::default()
        },
    };
    Snapshot {
        data: Bytes::new(),
        metadata: rng.random_bool(0.9).then(|| SnapshotMetadata {
            conf_state: Some(conf_state),
            index: number(rng, index + 2),
            term: number(rng, term),
        }),
    }
}

fn message(rng: &mut ChaCha8Rng, node: &RawNode<MemStorage>) -> Message {
    let status = node.status();
    let term = match rng.random_range(0..300) {
        0 => number(rng, status.hard_state.term),
        1..10 => status.hard_state.term + 1,
        _ => status
            .hard_state
            .term
            .saturating_sub(rng.random_range(0..10) / 9),
    };
    let index = number(rng, status.last_index);
    let log_term = number(rng, status.hard_state.term);
    let kinds = [
        MessageType::MsgAppend,
        MessageType::MsgAppendResponse,
        MessageType::MsgRequestVote,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgSnapshot,
        MessageType::MsgHeartbeat,
        MessageType::MsgHeartbeatResponse,
        MessageType::MsgTransferLeader,
        MessageType::MsgTimeoutNow,
        MessageType::MsgReadIndex,
        MessageType::MsgReadIndexResp,
        MessageType::MsgRequestPreVote,
        MessageType::MsgRequestPreVoteResponse,
    ];
    let msg_type = if rng.random_bool(0.02) {
        rng.random_range(-1..30)
    } else {
        kinds[rng.random_range(0..kinds.len())] as i32
    };
    Message {
        msg_type,
        to: u64::from(rng.random_bool(0.95)),
        from: rng.random_range(0..5),
        term,
        log_term,
        index,
        entries: entries(rng, index, log_term),
        commit: number(rng, status.hard_state.commit),
        snapshot: rng
            .random_bool(0.7)
            .then(|| Box::new(snapshot(rng, status.last_index, status.hard_state.term))),
        reject: rng.random(),
        reject_hint: number(rng, status.last_index),
        context: if rng.random_bool(0.2) {
            Bytes::from_static(b"CampaignTransfer")
        } else {
            Bytes::new()
        },
        ..Message::default()
    }
}

/// Handles all Readys as a driver does; returns how many messages came out.
fn drive(node: &mut RawNode<MemStorage>, storage: &MemStorage, now: Duration) -> usize {
    let mut sent = 0;
    for round in 0.. {
        assert!(round < 100, "a replica without input goes on by itself");
        if !node.has_ready() {
            break;
        }
        let ready = node.ready(now);
        if let Some(snapshot) = ready.snapshot.clone() {
            storage.apply_snapshot(snapshot).unwrap();
        }
        storage.append(&ready.entries);
        if let Some(hard_state) = ready.hard_state {
            storage.set_hard_state(hard_state);
        }
        sent += ready.messages.len() + ready.persisted_messages.len();
        apply(node, storage, &ready.committed_entries);
        let LightReady {
            committed_entries,
            messages,
            ..
        } = node.advance(ready);
        sent += messages.len();
        apply(node, storage, &committed_entries);
        node.advance_apply();
    }
    sent
}

fn apply(node: &mut RawNode<MemStorage>, storage: &MemStorage, entries: &[Entry]) {
    for entry in entries {
        if let Ok(Some(change)) = conf_change_of(entry)
            && let Ok(state) = node.apply_conf_change(&change)
        {
            storage.set_conf_state(state);
        }
    }
}

fn run(seed: u64) -> (u64, u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let storage = MemStorage::new_with_conf_state([1, 2, 3], []);
    let config = Config {
        id: 1,
        quiet_after_start: false,
        check_quorum: seed.is_multiple_of(2),
        pre_vote: seed.is_multiple_of(3),
        max_bytes_per_message: 50,
        max_inflight_messages: 2,
        seed,
        ..Config::default()
    };
    let mut now = Duration::ZERO;
    let mut node = RawNode::new(&config, storage.clone(), now).unwrap();
    let (mut taken, mut led) = (0, 0);
    for _ in 0..1_500 {
        now += Duration::from_millis(rng.random_range(0..60));
        let commit = node.status().hard_state.commit;
        match rng.random_range(0..12) {
            0 => _ = node.tick(now),
            1 => _ = node.campaign(now),
            2 => _ = node.propose(Bytes::new(), Bytes::from_static(b"x")),
            3 => _ = node.read_index(Bytes::from_static(b"r")),
            _ => {
                let message = message(&mut rng, &node);
                taken += u64::from(node.step(now, message).is_ok());
            }
        }
        if rng.random_bool(0.7) {
            let sent = drive(&mut node, &storage, now);
            assert!(sent < 200, "{sent} messages at once");
        }
        let status = node.status();
        let after = status.hard_state.commit;
        assert!(after >= commit, "commit regression {commit} -> {after}");
        led += u64::from(!status.progress.is_empty());
        for (id, progress) in status.progress {
            assert!(progress.matched < progress.next, "{id}: {progress:?}");
        }
    }
    (taken, led)
}

#[test]
fn random_messages_break_nothing() {
    let (mut taken, mut led) = (0, 0);
    for seed in 0..400 {
        let outcome = std::panic::catch_unwind(|| run(seed));
        let (t, l) = outcome.unwrap_or_else(|_| panic!("seed {seed}"));
        (taken, led) = (taken + t, led + l);
    }
    assert!(taken > 50_000, "only {taken} messages passed the gate");
    assert!(led > 5_000, "only {led} steps as a leader");
}

/// What the disk holds after all that is a state to start from.
#[test]
fn hard_states_at_the_end_of_their_range_start() {
    let storage = MemStorage::new_with_conf_state([1], []);
    storage.set_hard_state(HardState {
        term: u64::MAX,
        vote: 0,
        commit: 0,
    });
    let config = Config {
        id: 1,
        quiet_after_start: false,
        ..Config::default()
    };
    let mut node = RawNode::new(&config, storage.clone(), Duration::ZERO).unwrap();
    assert!(node.campaign(Duration::ZERO).is_err(), "no term is left");
    assert_eq!(drive(&mut node, &storage, Duration::ZERO), 0);
}
