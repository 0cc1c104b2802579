//! The table on every replica: equal after restarts, in a snapshot, and damaged.

use super::*;

/// Replicas that batch differently, or start again between any two entries and read their
/// tables from disk, hold the same bytes.
#[test]
fn sessions_are_the_same_on_every_replica() {
    let mut steady = Replica::new();
    let mut restarting = Replica::new();
    let mut sessions: Vec<(Bytes, u64)> = Vec::new();
    for step in 0..300_u64 {
        let clock_ms = 400 * step;
        let mut commands = vec![open(5)];
        for at in 0..3 {
            let Some(pick) = (step * 7 + at * 3).checked_rem(sessions.len() as u64) else {
                break;
            };
            let (id, sequence) = &mut sessions[pick as usize];
            // Now and then the last one again, or one that leaves a gap.
            *sequence += [1, 0, 1, 1, 2][(step + at) as usize % 5];
            commands.push(append(id, *sequence, "x"));
        }
        if step % 4 != 0 {
            commands.remove(0);
        }
        let outcomes = steady.apply(clock_ms, commands.clone());
        restarting = restarting.restart();
        assert_eq!(restarting.apply(clock_ms, commands), outcomes);
        for outcome in outcomes {
            if let CommandOutcome::SessionOpened(id) = outcome {
                sessions.push((id, 0));
                sessions.drain(..sessions.len().saturating_sub(7));
            }
        }
        for cf in [Cf::Raw, Cf::Raft] {
            assert_eq!(steady.dump(cf), restarting.dump(cf), "step {step}");
        }
    }
    let metrics = &steady.metrics;
    assert!(metrics.sessions_expired.get() + metrics.sessions_evicted.get() > 10);
    assert!(steady.metrics.session_repeats.get() > 10);
}

#[test]
fn damaged_record_stops_the_store() {
    let mut replica = Replica::new();
    let session = replica.open(1);
    let id: SessionId = session[..].try_into().unwrap();
    let mut batch = WriteBatch::new();
    batch.put(Cf::Raft, keys::session(REGION, &id), "damaged");
    replica.kv.write(&batch, Durability::Unsynced).unwrap();
    let mut replica = replica.restart();
    let task = EntriesTask {
        region_id: REGION,
        entries: vec![entry(7, 1, 2, vec![append(&session, 1, "a")])],
        proposals: vec![],
        committed: Duration::ZERO,
    };
    let fault = replica
        .shard
        .apply(&replica.kv, vec![ApplyTask::Entries(task)])
        .unwrap_err();
    assert!(fault.to_string().contains("session"), "{fault}");
}

/// A replica that got the region by a snapshot knows every session and its last answer.
#[test]
fn session_table_in_snapshot_answers_repeated_operations() {
    let mut replica = Replica::new();
    let session = replica.open(1);
    let idle = replica.open(2);
    let first = replica.one(3, swap(&session, 1, None, "a"));
    let files = MemFiles::new();
    let snapshot = replica.send_snapshot(&SnapshotManager::open(files, 1 << 20).unwrap());
    let engines = MemEngine::new_pair();
    // What the other replica knew before is replaced.
    let mut batch = WriteBatch::new();
    let stale = keys::session(REGION, &session_id(REGION, 3, 0));
    batch.put(Cf::Raft, stale, "left behind");
    engines.kv.write(&batch, Durability::Unsynced).unwrap();
    install(&engines, snapshot);
    let mut other = Replica::over(engines.kv, replica.index);
    for replica in [&mut replica, &mut other] {
        assert_eq!(replica.sessions(), 2);
        assert_eq!(replica.one(4, swap(&session, 1, None, "a")), first);
        assert_eq!(
            replica.one(5, append(&session, 2, "b")),
            CommandOutcome::Done
        );
        assert_eq!(replica.one(6, append(&idle, 1, "c")), CommandOutcome::Done);
        assert_eq!(replica.value("k").as_deref(), Some("abc"));
    }
    for cf in [Cf::Raw, Cf::Raft] {
        let own = |(key, _): &(Vec<u8>, Vec<u8>)| *key != keys::region_state(REGION);
        let dump =
            |replica: &Replica| -> Vec<_> { replica.dump(cf).into_iter().filter(own).collect() };
        assert_eq!(dump(&other), dump(&replica));
    }
}
