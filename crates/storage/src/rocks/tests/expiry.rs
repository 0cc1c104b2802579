//! Compaction drops what expired by published clocks, and nothing that can be seen.

use std::sync::Arc;

use super::open;
use crate::batch::WriteBatch;
use crate::engine::{Cf, Durability, Engine, ReadView};
use crate::expiry::ExpiryLookup;
use crate::raw_value;
use crate::rocks::RocksEngine;

fn write(engine: &RocksEngine, cf: Cf, key: &str, expires_at_ms: Option<u64>) {
    let mut batch = WriteBatch::new();
    batch.put(cf, key.to_owned(), raw_value::encode(b"v", expires_at_ms));
    engine.write(&batch, Durability::Unsynced).unwrap();
}

fn clocks(clock_ms: u64) -> Arc<ExpiryLookup> {
    Arc::new(move |_, key| (key < &b"zq"[..]).then_some(clock_ms))
}

fn present(view: &impl ReadView, cf: Cf, key: &str) -> bool {
    view.get(cf, key.as_bytes()).unwrap().is_some()
}

#[test]
fn ttl_filter_drops_expired_values_of_live_regions() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).unwrap();
    for cf in [Cf::Raw, Cf::Raw2] {
        // An older value that never expires lies in a deeper file.
        write(&engine, cf, "za", None);
        engine.flush().unwrap();
        engine.compact(cf).unwrap();
        write(&engine, cf, "za", Some(100));
        write(&engine, cf, "zb", Some(101));
        write(&engine, cf, "zc", None);
        write(&engine, cf, "zz", Some(1));
    }
    engine.compact(Cf::Raw).unwrap();
    assert!(present(&engine, Cf::Raw, "za"), "nothing is published");
    engine.publish_expiry_clocks(clocks(100));
    for cf in [Cf::Raw, Cf::Raw2] {
        engine.compact(cf).unwrap();
        assert!(
            !present(&engine, cf, "za"),
            "expired, and nothing older shows"
        );
        assert!(present(&engine, cf, "zb"));
        assert!(present(&engine, cf, "zc"));
        assert!(present(&engine, cf, "zz"), "of no live region");
    }
}

#[test]
fn ttl_filter_spares_what_an_open_snapshot_sees() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).unwrap();
    write(&engine, Cf::Raw, "za", Some(100));
    let snapshot = engine.snapshot();
    engine.publish_expiry_clocks(clocks(200));
    let other = snapshot.clone();
    drop(snapshot);
    engine.compact(Cf::Raw).unwrap();
    assert!(present(&other, Cf::Raw, "za"));
    assert!(present(&engine, Cf::Raw, "za"));
    drop(other);
    assert_eq!(engine.expiry_clocks().open_snapshots(), 0);
    // RocksDB compacts again what a later write joins.
    write(&engine, Cf::Raw, "zb", None);
    engine.flush().unwrap();
    engine.compact(Cf::Raw).unwrap();
    assert!(!present(&engine, Cf::Raw, "za"));
}
