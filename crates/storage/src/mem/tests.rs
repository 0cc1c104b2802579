//! The in-memory engine against a plain map, its crashes and its faults.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::*;

fn put(engine: &MemEngine, key: &str, value: &str, durability: Durability) {
    let mut batch = WriteBatch::new();
    batch.put(Cf::Raw, key.to_owned(), value.to_owned());
    engine.write(&batch, durability).unwrap();
}

fn all(view: &impl ReadView) -> Vec<(String, String)> {
    let mut found = Vec::new();
    view.scan(Cf::Raw, b"", None, Direction::Forward, &mut |key, value| {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        found.push((text(key), text(value)));
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

#[test]
fn mem_crash_keeps_a_prefix_of_unsynced_batches() {
    let mut seen = [false; 6];
    for seed in 0..200 {
        let engine = MemEngine::new(EngineKind::Kv);
        put(&engine, "a", "0", Durability::Unsynced);
        put(&engine, "b", "0", Durability::Synced);
        for n in 1..=5 {
            put(&engine, "a", &n.to_string(), Durability::Unsynced);
            put(&engine, &format!("c{n}"), "", Durability::Unsynced);
        }
        assert_eq!(engine.unsynced_len(), 10);
        let after = engine.crash(&mut ChaCha8Rng::seed_from_u64(seed));
        let found = all(&after);
        assert_eq!(found[1], ("b".into(), "0".into()), "synced data are there");
        let n: usize = found[0].1.parse().unwrap();
        // The batch of `c` directly behind may be kept or not; nothing else.
        let behind = found.len() - 2;
        assert!(behind == n || behind + 1 == n, "seed {seed}: {found:?}");
        seen[n] = true;
        assert!(matches!(
            engine.get(Cf::Raw, b"a"),
            Err(EngineError::Crashed { .. })
        ));
    }
    assert_eq!(seen, [true; 6], "every prefix comes up");
}

#[test]
fn mem_kill_keeps_everything() {
    let engine = MemEngine::new(EngineKind::Kv);
    put(&engine, "a", "1", Durability::Unsynced);
    assert_eq!(all(&engine.kill()).len(), 1);
}

#[test]
fn mem_make_durable_keeps_everything() {
    let engine = MemEngine::new(EngineKind::Kv);
    put(&engine, "a", "1", Durability::Unsynced);
    engine.make_durable().unwrap();
    assert_eq!(all(&engine.crash_keeping(0)).len(), 1);
}

#[test]
fn mem_snapshots_stay_and_history_is_forgotten() {
    let engine = MemEngine::new(EngineKind::Kv);
    put(&engine, "a", "1", Durability::Unsynced);
    put(&engine, "b", "1", Durability::Unsynced);
    let first = engine.snapshot();
    let mut batch = WriteBatch::new();
    batch.delete_range(Cf::Raw, "a", "c");
    engine.write(&batch, Durability::Unsynced).unwrap();
    let second = engine.snapshot();
    put(&engine, "a", "2", Durability::Unsynced);
    assert_eq!(all(&first).len(), 2);
    assert_eq!(all(&second).len(), 0);
    assert_eq!(all(&engine), [("a".into(), "2".into())]);
    drop((first, second));
    put(&engine, "z", "1", Durability::Unsynced);
    let state = engine.shared.state.read();
    assert_eq!(state.visible[Cf::Raw.position()].cells_len(), 2, "a and z");
}

#[test]
fn mem_failed_write_poisons_and_leaves_nothing() {
    let engine = MemEngine::new(EngineKind::Kv);
    engine.fail_next(Fault::Write);
    let mut batch = WriteBatch::new();
    batch.put(Cf::Raw, "a", "1");
    let error = engine.write(&batch, Durability::Unsynced).unwrap_err();
    assert!(error.is_fatal(), "{error}");
    let again = engine.write(&batch, Durability::Unsynced).unwrap_err();
    assert!(matches!(again, EngineError::Poisoned { .. }), "{again}");
    assert!(all(&engine.kill()).is_empty());
}

#[test]
fn mem_failed_read_is_played_once() {
    let engine = MemEngine::new(EngineKind::Kv);
    engine.fail_next(Fault::Read);
    let error = engine.get(Cf::Raw, b"a").unwrap_err();
    assert!(matches!(error, EngineError::ReadFailed { .. }));
    assert_eq!(engine.get(Cf::Raw, b"a"), Ok(None));
}

#[test]
fn mem_refuses_foreign_column_family() {
    let engine = MemEngine::new(EngineKind::Raft);
    let mut batch = WriteBatch::new();
    batch.put(Cf::Raw, "a", "1");
    let foreign = EngineError::ForeignColumnFamily {
        engine: EngineKind::Raft,
        cf: Cf::Raw,
    };
    assert_eq!(
        engine.write(&batch, Durability::Synced),
        Err(foreign.clone())
    );
    assert_eq!(engine.get(Cf::Raw, b"a"), Err(foreign));
}

#[test]
fn mem_unsynced_batches_are_bounded() {
    let engine = MemEngine::new(EngineKind::Kv);
    let value = "v".repeat(1 << 20);
    for n in 0..100 {
        put(&engine, &format!("{n:03}"), &value, Durability::Unsynced);
    }
    assert!(engine.unsynced_len() <= 64);
    let kept = all(&engine.crash_keeping(0));
    assert!(kept.len() >= 36, "{}", kept.len());
    assert_eq!(kept[0].0, "000");
}
