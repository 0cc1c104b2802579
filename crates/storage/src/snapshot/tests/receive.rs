//! Receiving: chunks that do not fit, restarts, power cuts, damaged and lying senders.

use rand::Rng;
use strata_proto::stratapb::SnapshotChunk;

use super::*;

/// Everything about a receiver that a refused chunk must leave alone.
fn state(receiver: &Receiver<MemFiles>) -> (u64, strata_proto::stratapb::SnapshotProgress) {
    (receiver.held_bytes(), receiver.progress())
}

/// The first chunk of file 0 cut in two.
fn halves(snapshot: &SnapshotRef<MemFiles>) -> (SnapshotChunk, SnapshotChunk) {
    let whole = snapshot.read_chunk(0, 0).unwrap();
    let half = whole.data.len() / 2;
    let piece = |offset: usize, data: Bytes| SnapshotChunk {
        offset: offset as u64,
        crc32: crc32fast::hash(&data),
        data,
        ..whole.clone()
    };
    (
        piece(0, whole.data.slice(..half)),
        piece(half, whole.data.slice(half..)),
    )
}

/// Changes a chunk, expects a refusal, and that the right one is taken after it.
fn refused(change: impl FnOnce(&mut SnapshotChunk)) -> SnapshotError {
    let (_, _, snapshot) = sender();
    let manager = open(&MemFiles::new());
    let mut receiver = receiver(&manager, snapshot.meta());
    let (first, second) = halves(&snapshot);
    receiver.accept(&first).unwrap();
    let before = state(&receiver);
    let mut changed = second.clone();
    change(&mut changed);
    let error = receiver.accept(&changed).unwrap_err();
    assert!(!error.is_fatal());
    assert_eq!(state(&receiver), before);
    receiver.accept(&second).unwrap();
    for file in 1..snapshot.meta().files.len() as u32 {
        receiver
            .accept(&snapshot.read_chunk(file, 0).unwrap())
            .unwrap();
    }
    receiver.finish().unwrap();
    error
}

#[test]
fn bad_input_flipped_bit_snapshot_chunk() {
    for bit in [0, 5, 77] {
        let error = refused(|chunk| {
            let mut data = chunk.data.to_vec();
            data[bit / 8] ^= 1 << (bit % 8);
            chunk.data = data.into();
        });
        assert!(
            matches!(error, SnapshotError::ChunkChecksum { file: 0, .. }),
            "{error}"
        );
    }
}

#[test]
fn bad_input_foreign_snapshot_id_in_stream() {
    let error = refused(|chunk| chunk.id ^= 1);
    assert!(matches!(error, SnapshotError::ForeignId { expected, found }
        if expected ^ found == 1));
}

#[test]
fn bad_input_chunk_beyond_end_of_file() {
    let error = refused(|chunk| chunk.offset = 1 << 40);
    assert!(matches!(error, SnapshotError::BeyondEnd { .. }), "{error}");
    let error = refused(|chunk| chunk.offset = u64::MAX);
    assert!(matches!(
        error,
        SnapshotError::BeyondEnd { end: u64::MAX, .. }
    ));
    let error = refused(|chunk| {
        chunk.data = [&chunk.data[..], b"x"].concat().into();
        chunk.crc32 = crc32fast::hash(&chunk.data);
    });
    assert!(matches!(error, SnapshotError::BeyondEnd { .. }), "{error}");
}

#[test]
fn bad_input_chunk_with_gap_or_overlap() {
    let cut = |chunk: &mut SnapshotChunk, by: u64| {
        chunk.offset += by;
        chunk.data = chunk.data.slice(by as usize..);
        chunk.crc32 = crc32fast::hash(&chunk.data);
    };
    let error = refused(|chunk| cut(chunk, 1));
    assert!(matches!(error, SnapshotError::Gap { expected, found, .. } if found == expected + 1));
    let error = refused(|chunk| chunk.offset -= 1);
    assert!(
        matches!(error, SnapshotError::Overlap { expected, found, .. } if found + 1 == expected)
    );
}

#[test]
fn bad_input_chunk_of_unknown_file_or_size() {
    let error = refused(|chunk| chunk.file = 6);
    assert!(matches!(
        error,
        SnapshotError::UnknownFile {
            file: 6,
            files: 6,
            ..
        }
    ));
    let error = refused(|chunk| chunk.data = Bytes::new());
    assert!(matches!(error, SnapshotError::ChunkSize { bytes: 0, .. }));
    let error = refused(|chunk| chunk.data = vec![0; CHUNK_BYTES + 1].into());
    assert!(matches!(error, SnapshotError::ChunkSize { .. }), "{error}");
}

#[test]
fn bad_input_read_beyond_end_is_refused() {
    let (_, _, snapshot) = sender();
    let length = snapshot.meta().files[1].length;
    let error = snapshot.read_chunk(1, length).unwrap_err();
    assert!(matches!(error, SnapshotError::BeyondEnd { file: 1, end, .. } if end == length));
    let error = snapshot.read_chunk(9, 0).unwrap_err();
    assert!(matches!(error, SnapshotError::UnknownFile { file: 9, .. }));
}

#[test]
fn bad_input_length_that_lies() {
    let (_, _, snapshot) = sender();
    let manager = open(&MemFiles::new());
    // A length that the id does not cover.
    let mut meta = snapshot.meta().clone();
    meta.files[0].length += 1;
    let error = manager.receive(&meta).err().unwrap();
    assert!(matches!(
        error,
        SnapshotError::BadMeta(MetaFault::Id { .. })
    ));
    // One that it covers: the end never comes, and what is here stays to be resumed.
    meta.id = snapshot_id(&meta);
    let mut longer = receiver(&manager, &meta);
    let mut chunk = snapshot.read_chunk(0, 0).unwrap();
    chunk.id = meta.id;
    longer.accept(&chunk).unwrap();
    let held = chunk.data.len() as u64;
    let error = longer.finish().err().unwrap();
    assert_eq!(
        error,
        SnapshotError::Incomplete {
            file: 0,
            held,
            length: held + 1
        }
    );
    assert_eq!(receiver(&manager, &meta).progress().parts[0].synced, held);
    // Lengths beyond all bounds.
    meta.files[0].length = u64::MAX;
    meta.id = snapshot_id(&meta);
    let error = manager.receive(&meta).err().unwrap();
    assert!(matches!(
        error,
        SnapshotError::BadMeta(MetaFault::Length { .. })
    ));
    assert_eq!(manager.list().len(), 1);
}

#[test]
fn bad_input_description_that_contradicts_itself() {
    let (_, _, snapshot) = sender();
    let manager = open(&MemFiles::new());
    let fault = |change: fn(&mut SnapshotMeta)| {
        let mut meta = snapshot.meta().clone();
        change(&mut meta);
        meta.id = snapshot_id(&meta);
        match manager.receive(&meta).err() {
            Some(SnapshotError::BadMeta(fault)) => fault,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(fault(|meta| meta.region = None), MetaFault::Region);
    assert_eq!(
        fault(|meta| meta.region.as_mut().unwrap().peers.clear()),
        MetaFault::Region
    );
    assert_eq!(
        fault(|meta| meta.region.as_mut().unwrap().end_key = Bytes::from_static(b"a")),
        MetaFault::Range
    );
    assert_eq!(
        fault(|meta| meta.term = 0),
        MetaFault::Position {
            index: INDEX,
            term: 0
        }
    );
    assert_eq!(fault(|meta| meta.conf_state = None), MetaFault::ConfState);
    assert!(matches!(
        fault(|meta| meta.form = 1),
        MetaFault::Form { found: 1, .. }
    ));
    let file = |name: &str| MetaFault::File(name.to_owned());
    assert_eq!(
        fault(|meta| meta.files[0].name = "../x".into()),
        file("../x")
    );
    assert_eq!(
        fault(|meta| meta.files[1].name = "default".into()),
        file("default")
    );
    assert_eq!(fault(|meta| meta.files.swap(0, 1)), file("default"));
    assert_eq!(
        fault(|meta| meta.files[5].name = "system".into()),
        file("system")
    );
    assert!(matches!(
        fault(|meta| meta.files[3].length = 0),
        MetaFault::Length { .. }
    ));
    let mut raft = to_raft(snapshot.meta());
    raft.metadata.as_mut().unwrap().index += 1;
    let error = from_raft(&raft, MemFiles::FORM).unwrap_err();
    assert_eq!(error, SnapshotError::BadMeta(MetaFault::Message));
    raft.data = Bytes::from_static(&[0xff; 9]);
    let error = from_raft(&raft, MemFiles::FORM).unwrap_err();
    assert_eq!(error, SnapshotError::BadMeta(MetaFault::Malformed));
    assert!(names(manager.files()).is_empty());
}

#[test]
fn bad_input_flipped_bit_in_part_is_found_and_fetched_again() {
    let (_, _, snapshot) = sender();
    let files = MemFiles::new();
    let manager = open(&files);
    let mut first = receiver(&manager, snapshot.meta());
    send(&snapshot, &mut first);
    let part = names(&files)
        .into_iter()
        .find(|name| name.ends_with("_lock.part"));
    files.flip_bit(&part.unwrap(), 130);
    let error = first.finish().unwrap_err();
    assert!(
        matches!(error, SnapshotError::FileChecksum { .. }),
        "{error}"
    );
    let mut second = receiver(&manager, snapshot.meta());
    let synced: Vec<_> = second
        .progress()
        .parts
        .iter()
        .map(|p| p.synced > 0)
        .collect();
    assert_eq!(synced, [true, false, true, true, true, true]);
    send(&snapshot, &mut second);
    second.finish().unwrap();
}

#[test]
fn bad_input_disk_full_snapshot_receive() {
    let (_, _, snapshot) = sender();
    let files = MemFiles::new();
    let manager = open(&files);
    let mut receiver = receiver(&manager, snapshot.meta());
    let (first, second) = halves(&snapshot);
    receiver.accept(&first).unwrap();
    let before = state(&receiver);
    files.fail_next(FileFault::DiskFull);
    let error = receiver.accept(&second).unwrap_err();
    assert!(matches!(error, SnapshotError::DiskFull { .. }) && !error.is_fatal());
    assert_eq!(state(&receiver), before);
    // There is room again: the same chunk is taken.
    receiver.accept(&second).unwrap();
    receiver.sync().unwrap();
    send(&snapshot, &mut receiver);
    receiver.finish().unwrap();
}

#[test]
fn failed_sync_of_a_part_is_fatal() {
    let (_, _, snapshot) = sender();
    let files = MemFiles::new();
    let manager = open(&files);
    let mut receiver = receiver(&manager, snapshot.meta());
    receiver
        .accept(&snapshot.read_chunk(0, 0).unwrap())
        .unwrap();
    files.fail_next(FileFault::Sync);
    let error = receiver.sync().unwrap_err();
    assert!(error.is_fatal(), "{error}");
    assert_eq!(receiver.progress().parts[0].synced, 0);
}

#[test]
fn one_receiver_for_a_region_at_a_time() {
    let (kv, sending, snapshot) = sender();
    let manager = open(&MemFiles::new());
    let first = receiver(&manager, snapshot.meta());
    let busy = SnapshotError::Busy { region_id: REGION };
    assert_eq!(manager.receive(snapshot.meta()).err(), Some(busy.clone()));
    write_states(&kv, &region(REGION), INDEX + 1);
    let newer = generate(&sending, &kv, REGION);
    assert_eq!(manager.receive(newer.meta()).err(), Some(busy));
    assert_eq!(
        manager.retain(|_| false).unwrap(),
        [],
        "a receiver holds it"
    );
    drop(first);
    assert_eq!(manager.retain(|_| false).unwrap().len(), 1);
    assert!(names(manager.files()).is_empty());
}

#[test]
fn crash_rule_snapshot_identity_of_parts_after_restart() {
    let (kv, sending, snapshot) = sender();
    let files = MemFiles::new();
    let mut before = receiver(&open(&files), snapshot.meta());
    let (first, _) = halves(&snapshot);
    before.accept(&first).unwrap();
    before.accept(&snapshot.read_chunk(2, 0).unwrap()).unwrap();
    before.sync().unwrap();
    before.accept(&snapshot.read_chunk(3, 0).unwrap()).unwrap();
    let synced = before.progress();
    assert_eq!(synced.parts[0].synced, first.data.len() as u64);
    assert_eq!(synced.parts[3].synced, 0, "taken, but not synced");
    // The same id: resumed where it was synced, no byte of that is sent again.
    let manager = open(&files.crash_hard());
    let mut after = receiver(&manager, snapshot.meta());
    assert_eq!(after.progress(), synced);
    send(&snapshot, &mut after);
    let whole = after.finish().unwrap();
    for file in 0..6 {
        whole.verify_file(file).unwrap();
    }
    assert!(matches!(
        manager.receive(snapshot.meta()),
        Ok(Offered::Complete(_))
    ));
    // Another id: the parts are discarded.
    let manager = open(&MemFiles::new());
    let mut old = receiver(&manager, snapshot.meta());
    old.accept(&first).unwrap();
    old.sync().unwrap();
    drop(old);
    put(&kv, Cf::Raw, "zc1", "another value");
    write_states(&kv, &region(REGION), INDEX + 1);
    let newer = generate(&sending, &kv, REGION);
    let new = receiver(&manager, newer.meta());
    assert!(new.progress().parts.iter().all(|part| part.synced == 0));
    assert_eq!(manager.list().len(), 1);
    let id = format!("{:016x}", newer.meta().id);
    assert!(names(manager.files()).iter().all(|name| name.contains(&id)));
}

#[test]
fn power_cuts_at_random_never_lose_what_was_synced() {
    let (kv, _, snapshot) = sender();
    for seed in 0..200 {
        let mut rng = rng(seed);
        let mut files = MemFiles::new();
        let mut cuts = 0;
        let whole = loop {
            let manager = open(&files);
            let mut to = match manager.receive(snapshot.meta()).unwrap() {
                Offered::Receive(receiver) => receiver,
                Offered::Complete(whole) => break whole,
            };
            let cut_after = rng.random_range(0..8);
            let mut taken = 0;
            'cut: for (file, part) in (0..).zip(to.progress().parts) {
                let described = &snapshot.meta().files[file as usize];
                let mut offset = part.synced;
                while offset < described.length {
                    if taken == cut_after && cuts < 6 {
                        break 'cut;
                    }
                    taken += 1;
                    let mut chunk = snapshot.read_chunk(file, offset).unwrap();
                    chunk.data.truncate(50);
                    chunk.crc32 = crc32fast::hash(&chunk.data);
                    to.accept(&chunk).unwrap();
                    offset += chunk.data.len() as u64;
                    if rng.random_bool(0.3) {
                        to.sync().unwrap();
                    }
                }
            }
            let synced = to.progress();
            if to.is_whole() && rng.random_bool(0.5) {
                to.finish().unwrap();
            }
            files = files.crash(&mut rng);
            cuts += 1;
            assert!(cuts < 100, "seed {seed}: it never ends");
            // Known again, with all that was promised.
            match open(&files).receive(snapshot.meta()).unwrap() {
                Offered::Receive(again) => {
                    for (now, promised) in again.progress().parts.iter().zip(&synced.parts) {
                        assert!(now.synced >= promised.synced, "seed {seed}");
                    }
                }
                Offered::Complete(_) => {}
            }
        };
        let other = MemEngine::new_pair();
        install(&other, whole);
        assert_eq!(
            carried(&other.kv, &region(REGION)),
            carried(&kv, &region(REGION)),
            "seed {seed}"
        );
    }
}

#[test]
fn finish_cut_off_after_any_operation_loses_nothing() {
    let (_, _, snapshot) = sender();
    let mut cut_off = 0;
    for stop in 0..60 {
        for seed in 0..20 {
            let files = MemFiles::new();
            let mut first = receiver(&open(&files), snapshot.meta());
            send(&snapshot, &mut first);
            first.sync().unwrap();
            let synced = first.progress();
            files.stop_after(stop);
            cut_off += usize::from(first.finish().is_err());
            let manager = open(&files.crash(&mut rng(seed)));
            let whole = match manager.receive(snapshot.meta()).unwrap() {
                Offered::Complete(whole) => whole,
                Offered::Receive(again) => {
                    assert_eq!(again.progress(), synced, "stop {stop}, seed {seed}");
                    again.finish().unwrap()
                }
            };
            for file in 0..6 {
                whole.verify_file(file).unwrap();
            }
        }
    }
    assert!(
        (100..1200).contains(&cut_off),
        "{cut_off} of 1200 were cut off"
    );
}

/// Nothing but the id covers an offer on its way.
#[test]
fn bad_input_flipped_bit_in_an_offered_description() {
    let (_, _, snapshot) = sender();
    let meta = snapshot.meta();
    let offered = to_raft(meta);
    for bit in 0..offered.data.len() * 8 {
        let mut data = offered.data.to_vec();
        data[bit / 8] ^= 1 << (bit % 8);
        let damaged = strata_proto::eraftpb::Snapshot {
            data: data.into(),
            ..offered.clone()
        };
        if let Ok(found) = from_raft(&damaged, MemFiles::FORM) {
            assert_eq!(&found, meta, "bit {bit}");
        }
    }
}
