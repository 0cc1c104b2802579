//! The overlay against a plain map: reads, ranges and deletions of a pending batch.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use strata_storage::{Durability, Engine, EngineKind, MemEngine};

use super::*;

fn key(at: u8) -> Vec<u8> {
    vec![at]
}

/// Random changes, half of them written and half pending: reads through the overlay agree
/// with a plain map.
#[test]
fn reads_agree_with_a_map() {
    for seed in 0..50 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let engine = MemEngine::new(EngineKind::Kv);
        let mut model: BTreeMap<Vec<u8>, Bytes> = BTreeMap::new();
        let mut overlay = Overlay::default();
        for step in 0..120 {
            if step == 60 {
                engine
                    .write(
                        &std::mem::take(&mut overlay).into_batch(),
                        Durability::Unsynced,
                    )
                    .unwrap();
            }
            let at = rng.random_range(0..20u8);
            match rng.random_range(0..4) {
                0 | 1 => {
                    let bytes = [1, SUPERSEDED_BYTES_MIN][rng.random_range(0..2)];
                    let value = Bytes::from(vec![step as u8; bytes]);
                    overlay.batch_mut().put(Cf::Raw, key(at), value.clone());
                    model.insert(key(at), value);
                }
                2 => {
                    overlay.batch_mut().delete(Cf::Raw, key(at));
                    model.remove(&key(at));
                }
                _ => {
                    let end = at + rng.random_range(0..5u8);
                    overlay.batch_mut().delete_range(Cf::Raw, key(at), key(end));
                    model.retain(|one, _| *one < key(at) || *one >= key(end));
                }
            }
            let probe = key(rng.random_range(0..24u8));
            let found = overlay.get(&engine, Cf::Raw, &probe).unwrap();
            assert_eq!(found.as_ref(), model.get(&probe), "seed {seed} step {step}");
        }
    }
}

/// Each command of an entry may replace a large value whose bytes are not in the log.
#[test]
fn batch_holds_one_value_of_a_key_that_is_replaced_again_and_again() {
    const VALUE_BYTES: usize = 1 << 20;
    let engine = MemEngine::new(EngineKind::Kv);
    let mut overlay = Overlay::default();
    for step in 0..100u8 {
        let found = overlay.get(&engine, Cf::Raw, b"journal").unwrap();
        let expected = step.checked_sub(1).map(|last| vec![last; VALUE_BYTES]);
        assert_eq!(found.as_deref(), expected.as_deref());
        let batch = overlay.batch_mut();
        batch.put(Cf::Raw, "journal", vec![step; VALUE_BYTES]);
        let bytes = batch.approximate_bytes();
        assert!(bytes < 3 * VALUE_BYTES, "{bytes} after {step} changes");
    }
    let batch = overlay.into_batch();
    engine.write(&batch, Durability::Unsynced).unwrap();
    let found = engine.get(Cf::Raw, b"journal").unwrap();
    assert_eq!(found, Some(vec![99; VALUE_BYTES].into()));
}

/// Scans of the system region merge pending records into the engine's, both ways, and stop
/// where the visitor says so.
#[test]
fn system_scans_agree_with_a_map() {
    for seed in 0..50 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let engine = MemEngine::new(EngineKind::Kv);
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut overlay = Overlay::default();
        for step in 0..60u8 {
            if step == 30 {
                engine
                    .write(
                        &std::mem::take(&mut overlay).into_batch(),
                        Durability::Unsynced,
                    )
                    .unwrap();
            }
            let at = key(rng.random_range(0..30u8));
            let mut writes = SystemWrites::default();
            if rng.random_ratio(2, 3) {
                writes.put(at.clone(), vec![step]);
                model.insert(at, vec![step]);
            } else {
                writes.delete(at.clone());
                model.remove(&at);
            }
            overlay.add_system_writes(&writes);
        }
        for _ in 0..20 {
            let (start, end) = (key(rng.random_range(0..30)), key(rng.random_range(0..30)));
            let end = if rng.random_ratio(1, 4) {
                Vec::new()
            } else {
                end
            };
            let (reverse, limit) = (rng.random_bool(0.5), rng.random_range(1..10usize));
            let mut found = Vec::new();
            overlay
                .system_view(&engine)
                .scan(&start, &end, reverse, &mut |key, value| {
                    found.push((key.to_vec(), value.to_vec()));
                    if found.len() < limit {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                })
                .unwrap();
            let inside = |key: &Vec<u8>| *key >= start && (end.is_empty() || *key < end);
            let mut expected: Vec<_> = model
                .iter()
                .filter(|(key, _)| inside(key))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            if reverse {
                expected.reverse();
            }
            expected.truncate(limit);
            assert_eq!(
                found, expected,
                "seed {seed} {start:?}..{end:?} reverse {reverse}"
            );
        }
    }
}
