//! Streams that break, and receivers and senders that start again.

use super::*;

#[test]
fn a_broken_stream_resumes_at_what_was_synced() {
    let (snapshot, manager) = (snapshot(), manager(&MemFiles::new()));
    let all = chunks_of(snapshot.meta());
    for cut in [0, 1, 7] {
        let (mut sender, mut receiver) = (new_sender(&snapshot), new_receiver(&manager));
        let end = run(&mut sender, &mut receiver, break_at(cut));
        assert!(matches!(end, End::Broken), "{end:?}");
        receiver.close().unwrap();
    }
    // The next one carries what is missing and not a chunk more.
    assert_eq!(completes(&snapshot, &manager), all - 8);
}

#[test]
fn a_restarted_receiver_resumes_at_what_was_synced() {
    // More than is received between two syncs.
    let snapshot = snapshot_of(17, 20, 1 << 20);
    let files = MemFiles::new();
    let options = TransferOptions::default();
    let sender = || {
        let message = raft_message(snapshot.meta());
        SnapshotSender::new(snapshot.clone(), message, &options, Duration::ZERO)
    };
    let whole = |bytes: u64| bytes.div_ceil(1 << 20);
    let all: u64 = snapshot.meta().files.iter().map(|f| whole(f.length)).sum();
    let mut receiver = new_receiver(&manager(&files));
    let end = run(&mut sender(), &mut receiver, break_at(19));
    assert!(matches!(end, End::Broken), "{end:?}");
    // A power cut: nothing is closed, and what was not synced is gone.
    let files = files.crash_hard();
    drop(receiver);
    let manager = manager(&files);
    let mut second = sender();
    let end = run(&mut second, &mut new_receiver(&manager), go_on);
    assert!(matches!(end, End::Delivered(_)), "{end:?}");
    assert_eq!(second.chunks_sent(), all - 16, "16 MiB of 19 were synced");
    assert_same(&snapshot, &manager);
}

#[test]
fn another_snapshot_discards_the_parts_of_the_last() {
    let (old, new, manager) = (
        snapshot(),
        snapshot_of(18, 20, CHUNK),
        manager(&MemFiles::new()),
    );
    let mut receiver = new_receiver(&manager);
    let end = run(&mut new_sender(&old), &mut receiver, break_at(9));
    assert!(matches!(end, End::Broken), "{end:?}");
    receiver.close().unwrap();
    assert_eq!(completes(&new, &manager), chunks_of(new.meta()));
    assert_eq!(manager.list().len(), 1, "{manager:?}");
}

#[test]
fn a_restarted_sender_offers_the_same_snapshot_and_resumes() {
    // Generated anew from the same state, in a folder of its own: the id is the same.
    let (first, second) = (snapshot(), snapshot());
    let manager = manager(&MemFiles::new());
    let mut receiver = new_receiver(&manager);
    let end = run(&mut new_sender(&first), &mut receiver, break_at(5));
    assert!(matches!(end, End::Broken), "{end:?}");
    receiver.close().unwrap();
    assert_eq!(completes(&second, &manager), chunks_of(first.meta()) - 5);
}

#[test]
fn a_damaged_part_is_found_at_the_end_and_sent_again_alone() {
    let (snapshot, files) = (snapshot(), MemFiles::new());
    let manager = manager(&files);
    let flip = |frame: &mut SnapshotFrame| {
        if matches!(frame.frame, Some(Frame::End(_))) {
            let names = strata_storage::snapshot::FileStore::list(&files).unwrap();
            let part = names.iter().find(|(name, _)| name.ends_with("raw.part"));
            files.flip_bit(&part.unwrap().0, 77);
        }
        ControlFlow::Continue(())
    };
    let end = run(
        &mut new_sender(&snapshot),
        &mut new_receiver(&manager),
        flip,
    );
    let End::Refused(SnapshotError::FileChecksum { .. }, SendFault::Refused { kind, .. }) = end
    else {
        panic!("{end:?}");
    };
    assert_eq!(kind, SnapshotRefusalKind::DamagedFile);
    nothing_is_complete(&manager);
    // One of two files of the same length.
    assert_eq!(
        completes(&snapshot, &manager),
        chunks_of(snapshot.meta()) / 2
    );
}

#[test]
fn a_silent_receiver_is_given_up_after_the_stall_time() {
    let (snapshot, manager) = (snapshot(), manager(&MemFiles::new()));
    let (mut sender, mut receiver) = (new_sender(&snapshot), new_receiver(&manager));
    let stall = options().stall_time;
    let offer = sender.next_frame().unwrap().unwrap();
    sender.check_stall(stall - MS).unwrap();
    let received = receiver.handle(MS, offer, wanted);
    let Received::Reply(answer) = received else {
        panic!("{received:?}");
    };
    sender.handle(stall - MS, answer).unwrap();
    sender.check_stall(stall * 2 - MS * 2).unwrap();
    assert_eq!(sender.stalls_at(), stall * 2 - MS);
    let fault = sender.check_stall(stall * 2 - MS).unwrap_err();
    assert!(matches!(fault, SendFault::Stalled { .. }));
    assert!(!gives_up(&fault), "another stream may do better");
    // Time spent for the rate limit is not the receiver's.
    sender.forgive(stall * 2);
    sender.check_stall(stall * 3 - MS).unwrap();
}

#[test]
fn a_silent_sender_is_given_up_and_its_parts_stay() {
    let (snapshot, manager) = (snapshot(), manager(&MemFiles::new()));
    let mut receiver = new_receiver(&manager);
    let end = run(&mut new_sender(&snapshot), &mut receiver, break_at(4));
    assert!(matches!(end, End::Broken), "{end:?}");
    let stall = options().stall_time;
    assert_eq!(receiver.stalls_at(), stall);
    assert!(receiver.check_stall(stall - MS).is_none());
    assert_eq!(receiver.progress().unwrap().0, 4 * CHUNK as u64);
    let Some(Received::Refused { error, reply }) = receiver.check_stall(stall) else {
        panic!("the stream was not given up");
    };
    assert!(matches!(
        error,
        SnapshotError::Stalled { silent_ms: 10_000 }
    ));
    assert!(matches!(reply.reply, Some(Reply::Refused(_))));
    assert!(receiver.check_stall(stall * 9).is_none(), "once is enough");
    assert!(receiver.progress().is_none());
    assert_eq!(
        completes(&snapshot, &manager),
        chunks_of(snapshot.meta()) - 4
    );
}

/// Frames and answers are lost, doubled, damaged and cut off, and the receiver loses its
/// power, by a seed. Whatever comes, the snapshot arrives whole within a bounded number of
/// streams, and its message is given out only then.
#[test]
fn any_stream_of_faults_ends_with_the_whole_snapshot() {
    let snapshot = snapshot();
    for seed in 0..300 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut files = MemFiles::new();
        let mut manager = manager(&files);
        let mut delivered = false;
        for _ in 0..400 {
            let mut sender = new_sender(&snapshot);
            let mut receiver = new_receiver(&manager);
            delivered = faulty_stream(&mut rng, &mut sender, &mut receiver);
            assert!(!sender.is_done() || delivered, "seed {seed}");
            if delivered {
                break;
            }
            nothing_is_complete(&manager);
            if rng.random_bool(0.2) {
                files = files.crash(&mut rng);
                drop(receiver);
                manager = self::manager(&files);
            } else {
                receiver.close().unwrap();
            }
        }
        assert!(delivered, "seed {seed}");
        assert_same(&snapshot, &manager);
    }
}

/// Returns true if the message was given out.
fn faulty_stream(
    rng: &mut ChaCha8Rng,
    sender: &mut SnapshotSender<MemFiles>,
    receiver: &mut SnapshotReceiver<MemFiles>,
) -> bool {
    while let Ok(Some(mut frame)) = sender.next_frame() {
        let fault = rng.random_range(0..120);
        if fault == 0 {
            return false;
        }
        if let (1, Some(Frame::Chunk(chunk))) = (fault, &mut frame.frame) {
            let mut data = chunk.data.to_vec();
            let at = rng.random_range(0..data.len());
            data[at] ^= 1 << rng.random_range(0..8);
            chunk.data = data.into();
        }
        let copies = if fault == 2 { 2 } else { u32::from(fault != 3) };
        for _ in 0..copies {
            let lost = rng.random_range(0..120) == 0;
            let answered = match receiver.handle(Duration::ZERO, frame.clone(), wanted) {
                Received::Reply(reply) if lost => {
                    drop(reply);
                    Ok(())
                }
                Received::Reply(reply) => sender.handle(Duration::ZERO, reply),
                Received::Complete { reply, .. } => {
                    if !lost {
                        sender.handle(Duration::ZERO, reply).unwrap();
                    }
                    return true;
                }
                Received::Refused { error, reply } => {
                    assert!(!error.is_fatal(), "{error}");
                    sender.handle(Duration::ZERO, reply)
                }
            };
            if answered.is_err() {
                return false;
            }
        }
    }
    // It waits for an answer that was lost.
    assert!(sender.check_stall(options().stall_time).is_err());
    false
}
