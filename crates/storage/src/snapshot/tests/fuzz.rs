//! Any bytes where a snapshot is described, named, sent and kept.

use prost::Message;
use rand::Rng;
use strata_fuzz::{Mutator, run};
use strata_proto::eraftpb::Snapshot;
use strata_proto::stratapb::{SnapshotChunk, SnapshotForm};

use super::super::name::{Role, SnapshotKey as Key, is_leftover};
use super::*;

/// A description that came by the network is refused, or is one that fits together and says
/// the same when it is sent on.
#[test]
fn fuzz_descriptions() {
    let (_, _, snapshot) = sender();
    let encoded = snapshot.meta().encode_to_vec();
    let in_message = to_raft(snapshot.meta()).encode_to_vec();
    run("snapshot descriptions", 10_000, |mutator| {
        let data = mutator.message(&encoded);
        if let Ok(mut meta) = SnapshotMeta::decode(&data[..]) {
            if check_meta(&meta, SnapshotForm::Memory).is_ok() {
                // Only what is not part of the message may have changed.
                assert_eq!(&meta, snapshot.meta());
            }
            // With the id that belongs to it everything else is still asked.
            meta.id = snapshot_id(&meta);
            if check_meta(&meta, SnapshotForm::Memory).is_ok() {
                let region = meta.region.as_ref().unwrap();
                assert!(region.id > 0 && meta.index > 0 && meta.term > 0);
                assert!(region.end_key.is_empty() || region.start_key < region.end_key);
                assert!(total_bytes(&meta) <= 1 << 50);
                assert_eq!(from_raft(&to_raft(&meta), SnapshotForm::Memory), Ok(meta));
            }
        }
        let message = mutator.message(&in_message);
        if let Ok(message) = Snapshot::decode(&message[..])
            && let Ok(meta) = from_raft(&message, SnapshotForm::Memory)
        {
            assert_eq!(&meta, snapshot.meta());
        }
    });
}

#[test]
fn fuzz_names_of_files() {
    run("snapshot file names", 20_000, |mutator| {
        let key = Key {
            origin: *mutator.pick(&[Origin::Generated, Origin::Received]),
            region_id: mutator.number(),
            term: mutator.number(),
            index: mutator.number(),
            id: mutator.number(),
        };
        let content = *mutator.pick(&Content::ALL);
        let roles = [
            Role::Table(content),
            Role::Part(content),
            Role::Meta,
            Role::Offer,
            Role::Progress,
        ];
        let role = *mutator.pick(&roles);
        let name = key.name(role, ".sst");
        assert_eq!(Key::parse(&name, ".sst"), Some((key, role)), "{name}");
        assert!(is_leftover(&format!("{name}.new"), ".sst"));
        let damaged = mutator.damaged_text(&name);
        let _ = is_leftover(&damaged, ".sst");
        if let Some((key, role)) = Key::parse(&damaged, ".sst") {
            assert_eq!(key.name(role, ".sst"), damaged);
        }
    });
}

fn mutated_chunk(mutator: &mut Mutator, chunk: &SnapshotChunk) -> SnapshotChunk {
    let encoded = chunk.encode_to_vec();
    let mutated = SnapshotChunk::decode(&mutator.message(&encoded)[..]);
    mutated.unwrap_or_else(|_| chunk.clone())
}

/// Chunks with anything in them, between the right ones: what is complete in the end is what
/// was sent, or the receiver has said that it is not.
#[test]
fn fuzz_chunks() {
    let (_, _, snapshot) = sender();
    run("snapshot chunks", 400, |mutator| {
        let manager = open(&MemFiles::new());
        let mut receiver = receiver(&manager, snapshot.meta());
        for (file, described) in (0..).zip(&snapshot.meta().files) {
            let mut offset = 0;
            while offset < described.length {
                let chunk = snapshot.read_chunk(file, offset).unwrap();
                let held = receiver.held_bytes();
                let mutated = mutated_chunk(mutator, &chunk);
                match receiver.accept(&mutated) {
                    // As a chunk of this file, or of another one that looks the same so far:
                    // then the whole file's checksum tells.
                    Ok(()) => assert_eq!(receiver.held_bytes(), held + mutated.data.len() as u64),
                    Err(error) => {
                        assert!(!error.is_fatal(), "{error}");
                        assert_eq!(receiver.held_bytes(), held, "a refused chunk was taken");
                        drop(receiver.accept(&chunk));
                    }
                }
                offset += chunk.data.len() as u64;
            }
        }
        match receiver.finish() {
            Ok(received) => {
                for file in 0..snapshot.meta().files.len() as u32 {
                    received.verify_file(file).unwrap();
                }
            }
            Err(SnapshotError::FileChecksum { .. } | SnapshotError::Incomplete { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    });
}

/// A folder of snapshot files with damage in names, records and tables: the start takes what
/// is whole, and an install finds every damaged table before it clears anything.
#[test]
fn fuzz_folders_of_files() {
    let (_, _, sent) = sender();
    let (mut kept, mut damaged) = (0, 0);
    run("snapshot folders", 1_500, |mutator| {
        let files = MemFiles::new();
        let manager = open(&files);
        if mutator.one_in(2) {
            transfer(&sent, &manager);
        } else {
            let mut receiver = receiver(&manager, sent.meta());
            let chunk = sent.read_chunk(0, 0).unwrap();
            receiver.accept(&chunk).unwrap();
            receiver.sync().unwrap();
        }
        drop(manager);
        let names = names(&files);
        for _ in 0..mutator.rng().random_range(1..4) {
            let name = mutator.pick(&names).clone();
            change_file(mutator, &files, &name);
        }
        let files = files.kill();
        let manager = open(&files);
        for info in manager.list() {
            assert_eq!(info.key.id, sent.meta().id);
            if !info.complete {
                continue;
            }
            kept += 1;
            let found = manager.get(&info.key).unwrap();
            assert_eq!(found.meta(), sent.meta());
            let engines = MemEngine::new_pair();
            fill(&engines.kv);
            let before = dump(&engines.kv, Cf::Raw);
            let mut installer = Installer::new(engines.kv.clone(), found);
            match installer.step([]).and_then(|_| installer.step([])) {
                Ok(_) => {}
                Err(SnapshotError::FileChecksum { .. } | SnapshotError::FileLength { .. }) => {
                    damaged += 1;
                    assert_eq!(dump(&engines.kv, Cf::Raw), before, "cleared for nothing");
                }
                Err(other) => panic!("{other}"),
            }
        }
        // Whatever was found, the same snapshot can be received now.
        match manager.receive(sent.meta()).unwrap() {
            Offered::Complete(_) => {}
            Offered::Receive(mut receiver) => {
                send(&sent, &mut receiver);
                // A part that was damaged behind its progress begins again with the next.
                drop(receiver.finish());
            }
        }
    });
    if strata_fuzz::is_whole_run() {
        assert!(kept > 100 && damaged > 20, "{kept} kept, {damaged} damaged");
    }
}

fn change_file(mutator: &mut Mutator, files: &MemFiles, name: &str) {
    let Some(length) = files.length(name).unwrap() else {
        return;
    };
    let bytes = files.read(name, 0, length as usize).unwrap();
    if mutator.one_in(5) {
        let other = mutator.damaged_text(name);
        files.rename(name, &other).unwrap();
        return;
    }
    let changed = if mutator.one_in(2) && !bytes.is_empty() {
        mutator.flip(&bytes)
    } else {
        mutator.bytes(&bytes)
    };
    files.create(name).unwrap();
    files.append(name, 0, &changed).unwrap();
}

/// A table of the in-memory engine with any bytes is taken in or refused.
#[test]
fn fuzz_tables() {
    let (_, _, sent) = sender();
    let table = |file: u32| sent.read_chunk(file, 0).unwrap().data;
    let tables: Vec<Bytes> = (0..sent.meta().files.len() as u32).map(table).collect();
    run("snapshot tables", 5_000, |mutator| {
        let files = MemFiles::new();
        let bytes = mutator.pick(&tables).clone();
        files.create("t").unwrap();
        files.append("t", 0, &mutator.bytes(&bytes)).unwrap();
        let kv = MemEngine::new_pair().kv;
        match kv.ingest_table(&files, "t", Cf::Raw) {
            Ok(()) | Err(SnapshotError::Table { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    });
}
