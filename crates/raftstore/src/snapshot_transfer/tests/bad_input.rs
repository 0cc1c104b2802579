//! What the other side may send and must not: each refused by its kind.

use super::*;

/// Changes chunk number 6, expects the stream to be refused, and the next to resume.
fn damaged(change: impl Fn(&mut strata_proto::stratapb::SnapshotChunk)) -> SnapshotError {
    let (snapshot, manager) = (snapshot(), manager(&MemFiles::new()));
    let mut sender = new_sender(&snapshot);
    let mut seen = 0;
    let end = run(&mut sender, &mut new_receiver(&manager), |frame| {
        if let Some(Frame::Chunk(chunk)) = &mut frame.frame {
            seen += 1;
            if seen == 6 {
                change(chunk);
            }
        }
        ControlFlow::Continue(())
    });
    let End::Refused(error, fault) = end else {
        panic!("{end:?}");
    };
    let SendFault::Refused { kind, .. } = &fault else {
        panic!("{fault:?}");
    };
    assert_eq!(*kind, SnapshotRefusalKind::DamagedFrame);
    nothing_is_complete(&manager);
    let mut retry = SendRetry::new(&options(), Duration::ZERO);
    assert!(retry.on_fault(Duration::ZERO, &fault).is_some());
    let again = completes(&snapshot, &manager);
    assert_eq!(again, chunks_of(snapshot.meta()) - 5, "the first five stay");
    error
}

#[test]
fn bad_input_flipped_bit_in_a_streamed_chunk_is_sent_again() {
    let error = damaged(|chunk| {
        let mut data = chunk.data.to_vec();
        data[99] ^= 4;
        chunk.data = data.into();
    });
    assert!(
        matches!(error, SnapshotError::ChunkChecksum { .. }),
        "{error}"
    );
}

#[test]
fn bad_input_foreign_id_in_the_middle_of_a_stream() {
    let error = damaged(|chunk| chunk.id ^= 1);
    assert!(matches!(error, SnapshotError::ForeignId { .. }), "{error}");
}

#[test]
fn bad_input_foreign_id_at_the_end_of_a_stream() {
    let (snapshot, manager) = (snapshot(), manager(&MemFiles::new()));
    let end = run(
        &mut new_sender(&snapshot),
        &mut new_receiver(&manager),
        |frame| {
            if let Some(Frame::End(end)) = &mut frame.frame {
                end.id ^= 1;
            }
            ControlFlow::Continue(())
        },
    );
    assert!(
        matches!(end, End::Refused(SnapshotError::ForeignId { .. }, _)),
        "{end:?}"
    );
    nothing_is_complete(&manager);
    assert_eq!(completes(&snapshot, &manager), 0);
}

#[test]
fn bad_input_end_in_front_of_the_last_chunk() {
    let (snapshot, manager) = (snapshot(), manager(&MemFiles::new()));
    let mut receiver = new_receiver(&manager);
    let end = run(&mut new_sender(&snapshot), &mut receiver, break_at(3));
    assert!(matches!(end, End::Broken), "{end:?}");
    let early = Frame::End(strata_proto::stratapb::SnapshotEnd {
        id: snapshot.meta().id,
    });
    let Received::Refused { error, .. } = receiver.handle(MS, frame(early), wanted) else {
        panic!("a snapshot that is not whole was taken");
    };
    assert!(
        matches!(error, SnapshotError::Incomplete { file: 0, .. }),
        "{error}"
    );
    nothing_is_complete(&manager);
    assert_eq!(
        completes(&snapshot, &manager),
        chunks_of(snapshot.meta()) - 3
    );
}

/// Offers a snapshot to a follower whose check says no.
fn unwanted(error: SnapshotError) -> SendFault {
    answer_to_unwanted(error).unwrap_err()
}

/// What the sender makes of a follower whose check says no.
fn answer_to_unwanted(error: SnapshotError) -> Result<(), SendFault> {
    let (snapshot, manager) = (snapshot(), manager(&MemFiles::new()));
    let (mut sender, mut receiver) = (new_sender(&snapshot), new_receiver(&manager));
    let offer = sender.next_frame().unwrap().unwrap();
    let received = receiver.handle(Duration::ZERO, offer, |_, _| Err(error.clone()));
    let Received::Refused { error: said, reply } = received else {
        panic!("{received:?}");
    };
    assert_eq!(said, error);
    assert!(manager.list().is_empty(), "nothing was begun");
    let handled = sender.handle(Duration::ZERO, reply);
    assert_eq!(sender.is_done(), handled.is_ok());
    handled
}

#[test]
fn bad_input_offered_snapshot_of_an_absent_region() {
    let fault = unwanted(SnapshotError::NoSuchRegion { region_id: REGION });
    assert!(gives_up(&fault), "{fault}");
    assert!(fault.to_string().contains("region 7"), "{fault}");
}

#[test]
fn bad_input_offered_snapshot_of_an_older_epoch_or_index() {
    let snapshot = snapshot();
    let newer = Region {
        region_epoch: Some(RegionEpoch {
            conf_ver: 3,
            version: 3,
        }),
        ..region()
    };
    let error = check_install(snapshot.meta(), Some((&newer, 9)), []).unwrap_err();
    assert!(matches!(error, SnapshotError::StaleEpoch { .. }), "{error}");
    assert!(gives_up(&unwanted(error)));
    let error = check_install(snapshot.meta(), Some((&region(), 17)), []).unwrap_err();
    assert!(matches!(error, SnapshotError::Stale { .. }), "{error}");
    // Found by seed 149 of the default swarm: a leader that has not heard that the follower is
    // there already would offer it again for ever.
    assert!(answer_to_unwanted(error).is_ok());
}

#[test]
fn bad_input_offered_snapshot_overlaps_another_region() {
    let other = Region {
        id: 8,
        start_key: Bytes::from_static(b"l"),
        ..region()
    };
    let error = check_install(snapshot().meta(), None, [&other]).unwrap_err();
    assert!(matches!(error, SnapshotError::Overlapping { .. }));
    assert!(gives_up(&unwanted(error)));
}

#[test]
fn too_many_at_once_are_refused_as_busy_and_tried_again() {
    let mut slots = ReceiveSlots::new(1);
    let other = slots.enter(8, LEADER, TERM).unwrap();
    let refused = slots.enter(REGION, LEADER, TERM).unwrap_err();
    let fault = unwanted(refused.error);
    assert!(!gives_up(&fault), "{fault}");
    let SendFault::Refused { kind, .. } = fault else {
        panic!("{fault}");
    };
    assert_eq!(kind, SnapshotRefusalKind::Busy);
    slots.leave(other);
    slots.enter(REGION, LEADER, TERM).unwrap();
    completes(&snapshot(), &manager(&MemFiles::new()));
}

#[test]
fn a_second_stream_of_the_region_is_busy_until_the_first_is_closed() {
    let (snapshot, manager) = (snapshot(), manager(&MemFiles::new()));
    let mut first = new_receiver(&manager);
    let end = run(&mut new_sender(&snapshot), &mut first, break_at(4));
    assert!(matches!(end, End::Broken), "{end:?}");
    let end = run(
        &mut new_sender(&snapshot),
        &mut new_receiver(&manager),
        go_on,
    );
    let End::Refused(SnapshotError::Busy { region_id: REGION }, fault) = end else {
        panic!("{end:?}");
    };
    assert!(!gives_up(&fault), "{fault}");
    first.close().unwrap();
    assert_eq!(
        completes(&snapshot, &manager),
        chunks_of(snapshot.meta()) - 4
    );
}

#[test]
fn bad_input_offers_that_do_not_fit_are_refused() {
    let snapshot = snapshot();
    let refused = |change: &dyn Fn(&mut RaftMessage)| {
        let manager = manager(&MemFiles::new());
        let mut message = raft_message(snapshot.meta());
        change(&mut message);
        let mut sender = SnapshotSender::new(snapshot.clone(), message, &options(), Duration::ZERO);
        let end = run(&mut sender, &mut new_receiver(&manager), go_on);
        let End::Refused(error, fault) = end else {
            panic!("{end:?}");
        };
        assert!(gives_up(&fault), "{fault}");
        assert!(manager.list().is_empty());
        error
    };
    fn raft(message: &mut RaftMessage) -> &mut Message {
        message.message.as_mut().unwrap()
    }
    for change in [
        &(|m: &mut RaftMessage| m.from_peer = None) as &dyn Fn(&mut RaftMessage),
        &|m| m.to_peer = Some(peer(3)),
        &|m| m.from_peer = Some(peer(3)),
        &|m| m.message = None,
        &|m| raft(m).set_msg_type(MessageType::MsgAppend),
        &|m| raft(m).snapshot = None,
        &|m| *m = RaftMessage::default(),
    ] {
        let error = refused(change);
        assert!(matches!(error, SnapshotError::NotForHere { .. }), "{error}");
    }
    for change in [
        &(|m: &mut RaftMessage| m.region_id = 8) as &dyn Fn(&mut RaftMessage),
        &|m| raft(m).snapshot.as_mut().unwrap().data = Bytes::from_static(b"\xff\xff"),
        &|m| raft(m).snapshot.as_mut().unwrap().data = Bytes::new(),
        &|m| raft(m).snapshot.as_mut().unwrap().metadata = None,
    ] {
        let error = refused(change);
        assert!(matches!(error, SnapshotError::BadMeta(_)), "{error}");
    }
}

#[test]
fn bad_input_frames_out_of_turn_end_the_stream() {
    let (snapshot, manager) = (snapshot(), manager(&MemFiles::new()));
    let chunk = || frame(Frame::Chunk(snapshot.read_chunk(0, 0).unwrap()));
    let offer = || new_sender(&snapshot).next_frame().unwrap().unwrap();
    let empty = SnapshotFrame::default();
    let hello = frame(Frame::Hello(Default::default()));
    let out_of_turn = |receiver: &mut SnapshotReceiver<MemFiles>, frame| {
        let received = receiver.handle(MS, frame, wanted);
        let Received::Refused { error, .. } = received else {
            panic!("{received:?}");
        };
        assert!(matches!(error, SnapshotError::OutOfTurn { .. }), "{error}");
    };
    for first in [chunk(), empty, hello] {
        out_of_turn(&mut new_receiver(&manager), first);
    }
    let mut receiver = new_receiver(&manager);
    assert!(matches!(
        receiver.handle(MS, offer(), wanted),
        Received::Reply(_)
    ));
    out_of_turn(&mut receiver, offer());
    out_of_turn(&mut receiver, offer());
    out_of_turn(&mut receiver, chunk());
    completes(&snapshot, &manager);
}

#[test]
fn bad_input_answers_that_do_not_fit_end_the_stream() {
    let snapshot = snapshot();
    let meta = snapshot.meta();
    let progress = |id, synced: &[u64]| {
        let parts = synced
            .iter()
            .map(|synced| strata_proto::stratapb::SnapshotPart {
                synced: *synced,
                crc32: 0,
            });
        reply(Reply::Progress(SnapshotProgress {
            id,
            parts: parts.collect(),
        }))
    };
    let taken = |id, held_bytes| reply(Reply::Taken(SnapshotTaken { id, held_bytes }));
    let done = |id| reply(Reply::Done(strata_proto::stratapb::SnapshotDone { id }));
    let unexpected = |replies: Vec<SnapshotReply>| {
        let mut sender = new_sender(&snapshot);
        sender.next_frame().unwrap();
        let mut last = Ok(());
        for reply in replies {
            assert_eq!(last, Ok(()), "only the last one does not fit");
            last = sender.handle(MS, reply);
            while last.is_ok() && sender.next_frame().unwrap().is_some() {}
        }
        assert!(matches!(last, Err(SendFault::Unexpected(_))), "{last:?}");
        assert!(!sender.is_done());
    };
    unexpected(vec![SnapshotReply::default()]);
    unexpected(vec![progress(meta.id ^ 1, &[0, 0])]);
    unexpected(vec![progress(meta.id, &[0])]);
    unexpected(vec![progress(meta.id, &[0, 0, 0])]);
    unexpected(vec![progress(meta.id, &[0, u64::MAX])]);
    unexpected(vec![done(meta.id ^ 1)]);
    unexpected(vec![taken(meta.id, 0)]);
    let begun = || progress(meta.id, &[0, 0]);
    unexpected(vec![begun(), begun()]);
    unexpected(vec![begun(), taken(meta.id ^ 1, 10)]);
    unexpected(vec![begun(), taken(meta.id, u64::MAX)]);
    unexpected(vec![begun(), taken(meta.id, 10), taken(meta.id, 9)]);
    unexpected(vec![begun(), done(meta.id)]);
}

#[test]
fn bad_input_full_disk_refuses_the_stream_and_keeps_what_is_synced() {
    let (snapshot, files) = (snapshot(), MemFiles::new());
    let manager = manager(&files);
    let mut seen = 0;
    let end = run(
        &mut new_sender(&snapshot),
        &mut new_receiver(&manager),
        |frame| {
            seen += u64::from(matches!(frame.frame, Some(Frame::Chunk(_))));
            if seen == 4 {
                files.fail_next(FileFault::DiskFull);
            }
            ControlFlow::Continue(())
        },
    );
    let End::Refused(SnapshotError::DiskFull { .. }, fault) = end else {
        panic!("{end:?}");
    };
    assert!(gives_up(&fault), "raft comes back later");
    assert_eq!(
        completes(&snapshot, &manager),
        chunks_of(snapshot.meta()) - 3
    );
}

#[test]
fn a_failed_sync_while_a_stream_ends_is_fatal() {
    let (snapshot, files) = (snapshot(), MemFiles::new());
    let manager = manager(&files);
    let mut receiver = new_receiver(&manager);
    let end = run(&mut new_sender(&snapshot), &mut receiver, break_at(4));
    assert!(matches!(end, End::Broken), "{end:?}");
    files.fail_next(FileFault::Sync);
    let received = receiver.handle(MS, SnapshotFrame::default(), wanted);
    let Received::Refused { error, .. } = received else {
        panic!("{received:?}");
    };
    assert!(error.is_fatal(), "{error}");
}
