//! The files: offered again or made anew, claimed, collected, and refused.

use super::*;

/// A leader's snapshot that never was answered counts as failed after its time, and is sent
/// again.
#[test]
fn a_sending_without_an_answer_is_given_up_in_time() {
    let (mut cluster, region, away) = one_away();
    let leader = cluster.leader(region).unwrap();
    cluster.options.snapshot_send_timeout = 3 * SECOND;
    cluster.answer_snapshots = false;
    cluster.cut.remove(&away);
    cluster.run(2 * SECOND);
    let sent = |cluster: &Cluster| cluster.nodes[&leader].core.metrics().snapshots_sent.get();
    let first = sent(&cluster);
    assert!(first > 0, "no snapshot was sent");
    cluster.run(5 * SECOND);
    assert_eq!(sent(&cluster), first, "one at a time");
    // The default is ten minutes.
    cluster.run(Duration::from_secs(601));
    assert!(sent(&cluster) > first, "it was not given up");
    cluster.answer_snapshots = true;
    cluster.run(Duration::from_secs(601));
    cluster.until("it arrives in the end", |cluster| {
        cluster.stored(away, "b").as_deref() == Some("29")
    });
}

/// A snapshot whose files were found damaged, or were removed, is not offered again and
/// again: the next one is made as soon as a sending has failed.
#[test]
fn a_snapshot_whose_files_are_gone_is_made_anew() {
    let (mut cluster, region, away) = one_away();
    let leader = cluster.leader(region).unwrap();
    cluster.answer_snapshots = false;
    cluster.cut.remove(&away);
    let generated = |cluster: &Cluster| {
        let made = cluster.nodes[&leader].core.snapshots().list();
        let of_region =
            |key: &SnapshotKey| (key.origin, key.region_id) == (Origin::Generated, region);
        made.into_iter().map(|info| info.key).find(of_region)
    };
    let sent = |cluster: &Cluster| cluster.nodes[&leader].core.metrics().snapshots_sent.get();
    cluster.until("a snapshot is sent", |cluster| sent(cluster) == 1);
    let key = generated(&cluster).unwrap();
    cluster.nodes[&leader].core.snapshots().condemn(&key);
    let entry = cluster.nodes[&away].core.directory().entry(region).unwrap();
    cluster.answer_snapshots = true;
    let failed = StoreEvent::SnapshotSent {
        region_id: region,
        to_peer_id: entry.peer.id,
        ok: false,
    };
    cluster.event(leader, failed);
    cluster.until("a later snapshot arrives", |cluster| {
        cluster.stored(away, "b").as_deref() == Some("29")
    });
    assert!(
        sent(&cluster) <= 3,
        "{} snapshots were sent",
        sent(&cluster)
    );
}

/// One that is here still is offered again, and not made anew, when a sending has failed.
#[test]
fn a_snapshot_whose_sending_failed_is_offered_again() {
    let (mut cluster, region, away) = one_away();
    let leader = cluster.leader(region).unwrap();
    cluster.answer_snapshots = false;
    cluster.cut.remove(&away);
    let metrics = cluster.nodes[&leader].core.metrics().clone();
    let made = metrics.snapshots_generated.get();
    cluster.until("a snapshot is sent", |_| metrics.snapshots_sent.get() == 1);
    assert_eq!(metrics.snapshots_generated.get(), made + 1);
    let entry = cluster.nodes[&away].core.directory().entry(region).unwrap();
    for sending in 2..5 {
        let failed = StoreEvent::SnapshotSent {
            region_id: region,
            to_peer_id: entry.peer.id,
            ok: false,
        };
        cluster.event(leader, failed);
        cluster.until("it is sent again", |_| {
            metrics.snapshots_sent.get() == sending
        });
    }
    assert_eq!(metrics.snapshots_generated.get(), made + 1);
}

/// Files that were received stay while a region is installed from them, and while it may be
/// told to; once it has applied as much, they go with the next collection.
#[test]
fn received_files_go_once_they_are_of_no_use() {
    let (mut cluster, region, away) = one_away();
    let options = cluster.options.clone();
    let received = |cluster: &Cluster| {
        let list = cluster.nodes[&away].core.snapshots().list();
        let of_region = |info: &SnapshotInfo| {
            (info.key.origin, info.key.region_id) == (Origin::Received, region)
        };
        list.into_iter().filter(of_region).count()
    };
    let collect = |cluster: &mut Cluster, after: Duration| {
        let now = cluster.now + after;
        let worker = &mut cluster.nodes.get_mut(&away).unwrap().workers.region;
        worker.step(now, 1).unwrap()
    };
    // One of a place that was never reached here, which nobody has told raft of.
    let leader = cluster.leader(region).unwrap();
    received_from(&cluster, leader, away, region);
    assert_eq!(collect(&mut cluster, Duration::ZERO), None);
    collect(&mut cluster, options.snapshot_gc_interval);
    assert_eq!(received(&cluster), 1, "it may be wanted");

    cluster.nodes.get_mut(&away).unwrap().jobs_work = false;
    cluster.put("b", "later").unwrap();
    cluster.cut.remove(&away);
    cluster.until("the install begins", |cluster| {
        local_state(cluster, away, region) == PeerState::Applying
    });
    cluster.run(SECOND);
    assert_eq!(received(&cluster), 2);
    collect(&mut cluster, options.snapshot_keep_time * 3);
    assert_eq!(received(&cluster), 1, "one is being installed");
    cluster.release_jobs(away);
    cluster.until("the install ends", |cluster| {
        cluster.stored(away, "b").as_deref() == Some("later")
    });
    assert_eq!(received(&cluster), 1);
    let soon = options.snapshot_keep_time * 3 + options.snapshot_gc_interval;
    collect(&mut cluster, soon);
    assert_eq!(received(&cluster), 0);
}

/// A change of the region's peers that reaches the directory while a snapshot waits for
/// raft to take it does not give the snapshot's claim away.
#[test]
fn a_claim_outlives_a_change_of_peers() {
    let cluster = Cluster::new(3, short_logs());
    let (store, region_id) = (1, 2);
    let node = &cluster.nodes[&store];
    let files = node.core.snapshots().clone();
    let (mut fsm, directory) = store_fsm(&cluster, store);
    let message = received_from(&cluster, 2, store, region_id);
    let uses = || files.list().iter().map(|info| info.uses).sum::<usize>();
    assert_eq!(uses(), 0);
    let now = cluster.clock(store);
    let claim = StoreRequest::Claim {
        region: (*directory.entry(region_id).unwrap().region).clone(),
        message: Box::new(message),
    };
    let answers = fsm.handle(now, claim);
    assert!(
        matches!(
            &answers[0].event,
            ShardEvent::Claimed { result: Ok(()), .. }
        ),
        "{answers:?}"
    );
    assert_eq!(uses(), 1);
    let entry = directory.entry(region_id).unwrap();
    let mut region = (*entry.region).clone();
    region.region_epoch.as_mut().unwrap().conf_ver += 1;
    let peer = entry.peer;
    let region = std::sync::Arc::new(region);
    fsm.handle(now, StoreRequest::SetRegion { region, peer });
    assert_eq!(uses(), 1, "the files are held");
    fsm.handle(now, StoreRequest::EndClaim { region_id });
    assert_eq!(uses(), 0);
}

/// Two leaders made a snapshot at the same place of the log; their files are not the same
/// bytes, so neither are their ids. The one that is offered is the one that is claimed.
#[test]
fn a_snapshot_is_claimed_beside_another_of_the_same_index() {
    let cluster = Cluster::new(3, short_logs());
    let (store, region_id) = (1, 2);
    let (mut fsm, _) = store_fsm(&cluster, store);
    let first = received_from(&cluster, 2, store, region_id);
    let mut batch = WriteBatch::new();
    let range = cluster.regions.iter().find(|region| region.id == region_id);
    let (start, _) = keys::data_range(&range.unwrap().start_key, &range.unwrap().end_key);
    batch.put(Cf::Default, start, "another byte");
    let other = &cluster.nodes[&3].engines.kv;
    other.write(&batch, Durability::Synced).unwrap();
    let second = received_from(&cluster, 3, store, region_id);
    for message in [first, second] {
        let claim = StoreRequest::Claim {
            region: range.unwrap().clone(),
            message: Box::new(message),
        };
        let answers = fsm.handle(cluster.clock(store), claim);
        assert!(
            matches!(
                &answers[0].event,
                ShardEvent::Claimed { result: Ok(()), .. }
            ),
            "{answers:?}"
        );
    }
}

/// The store FSM of a store that was loaded from what the cluster's store holds.
fn store_fsm(cluster: &Cluster, id: u64) -> (StoreFsm<MemEngine>, Arc<DirectoryCell>) {
    let node = &cluster.nodes[&id];
    let mut fsm = StoreFsm::new(id, node.core.snapshots().clone());
    let system: Arc<dyn SystemStateMachine> = Arc::new(common::Journal);
    let metrics = node.core.metrics();
    let loaded = fsm
        .load(
            &cluster.options,
            &node.engines,
            &system,
            metrics,
            cluster.clock(id),
        )
        .unwrap();
    (fsm, loaded.directory)
}

/// Makes a snapshot on one store and takes its files to another; the raft message for it.
fn received_from(cluster: &Cluster, from: u64, to: u64, region_id: u64) -> RaftMessage {
    let source = &cluster.nodes[&from];
    let view = source.engines.kv.snapshot();
    let mut generator =
        Generator::<MemEngine>::begin(source.core.snapshots(), view, region_id).unwrap();
    let made = loop {
        if let Generated::Done(made) = generator.step(1 << 20).unwrap() {
            break made;
        }
    };
    let meta = made.meta().clone();
    let message = RaftMessage {
        region_id,
        message: Some(Message {
            msg_type: MessageType::MsgSnapshot.into(),
            snapshot: Some(Box::new(to_raft(&meta))),
            ..Message::default()
        }),
        ..RaftMessage::default()
    };
    assert!(cluster.copy_snapshot(from, to, &message));
    message
}

/// A snapshot message without its files, or for a region that is not here, is dropped with a
/// counter, and the offer of it is refused before a byte is sent.
#[test]
fn bad_input_snapshot_for_absent_region() {
    let mut cluster = Cluster::new(3, short_logs());
    cluster.elect_all();
    let entry = cluster.nodes[&1].core.directory().entry(2).unwrap();
    let mut region = (*entry.region).clone();
    let mut meta = strata_proto::stratapb::SnapshotMeta {
        index: 1_000,
        term: 9,
        form: strata_proto::stratapb::SnapshotForm::Memory.into(),
        conf_state: Some(strata_storage::conf_state_of(&region)),
        region: Some(region.clone()),
        ..Default::default()
    };
    meta.id = strata_storage::snapshot::snapshot_id(&meta);
    let message = |meta: &strata_proto::stratapb::SnapshotMeta, to: Peer, region_id| {
        let from = region.peers.iter().find(|peer| peer.store_id == 2).unwrap();
        RaftMessage {
            region_id,
            from_peer: Some(*from),
            to_peer: Some(to),
            message: Some(Message {
                msg_type: MessageType::MsgSnapshot.into(),
                from: from.id,
                to: to.id,
                term: 9,
                snapshot: Some(Box::new(to_raft(meta))),
                ..Message::default()
            }),
            ..RaftMessage::default()
        }
    };
    let counts = |cluster: &Cluster| {
        let metrics = cluster.nodes[&1].core.metrics();
        (
            metrics.messages_dropped_unknown.get(),
            metrics.snapshots_refused.get(),
            metrics.snapshots_begun.get(),
        )
    };
    // Of this region, but the files are not here.
    let before = counts(&cluster);
    let bare = message(&meta, entry.peer, 2);
    cluster.event(1, StoreEvent::Message(bare));
    assert_eq!(counts(&cluster), (before.0, before.1 + 1, before.2));
    // Of a region that is not here at all.
    region.id = 99;
    let mut foreign = meta.clone();
    foreign.region = Some(region.clone());
    foreign.id = strata_storage::snapshot::snapshot_id(&foreign);
    let absent = message(&foreign, entry.peer, 99);
    cluster.event(1, StoreEvent::Message(absent));
    let core = &cluster.nodes[&1].core;
    assert_eq!(core.metrics().snapshots_begun.get(), 0);
    assert_eq!(
        core.check_snapshot(&foreign, &entry.peer),
        Err(SnapshotError::NoSuchRegion { region_id: 99 })
    );
    // For a peer of this region that lives elsewhere.
    let elsewhere = meta.region.as_ref().unwrap().peers[1..].iter();
    let other = elsewhere.clone().find(|peer| peer.store_id != 1).unwrap();
    assert!(core.check_snapshot(&meta, other).is_err());
    assert!(core.check_snapshot(&meta, &entry.peer).is_ok());
    cluster.put("b", "still served").unwrap();
}

/// What a snapshot was received for is done once it is installed: its files go with the next
/// collection, long before they are old.
#[test]
fn received_files_are_removed_once_they_are_installed() {
    let (mut cluster, region, away) = one_away();
    cluster.cut.clear();
    cluster.run(3 * SECOND);
    let received = |cluster: &Cluster| {
        let listed = cluster.nodes[&away].core.snapshots().list().into_iter();
        let received = listed.filter(|info| info.key.origin == Origin::Received);
        received.map(|info| info.key.region_id).collect::<Vec<_>>()
    };
    assert_eq!(local_state(&cluster, away, region), PeerState::Normal);
    assert_eq!(received(&cluster), [region]);
    assert!(2 * cluster.options.snapshot_gc_interval < cluster.options.snapshot_keep_time);
    for _ in 0..2 {
        let worker = &mut cluster.nodes.get_mut(&away).unwrap().workers.region;
        assert_eq!(worker.step(cluster.now, 0).unwrap(), None);
        cluster.now += cluster.options.snapshot_gc_interval;
    }
    let worker = &mut cluster.nodes.get_mut(&away).unwrap().workers.region;
    worker.step(cluster.now, 0).unwrap();
    assert!(received(&cluster).is_empty());
    assert_eq!(cluster.stored(away, "b").as_deref(), Some("29"));
}

/// What a worker has read for a snapshot is what the snapshot holds, told once: it is made at a
/// rate by that. Jobs that read nothing cost nothing.
#[test]
fn a_worker_tells_what_it_read_for_snapshots() {
    let (mut cluster, region, _) = one_away();
    for number in 0..9 {
        cluster.put(&format!("b{number}"), "value").unwrap();
    }
    let leader = cluster.leader(region).unwrap();
    let node = cluster.nodes.get_mut(&leader).unwrap();
    let now = cluster.now;
    let worker = &mut node.workers.region;
    // That of snapshots which the cluster has made so far.
    worker.take_read_bytes();
    worker.push(RegionJob::Generate { region_id: region });
    assert!(worker.only_makes());
    let mut told = Vec::new();
    while worker.has_work(now) {
        worker.step(now, 16).unwrap();
        told.push(worker.take_read_bytes());
    }
    let of_region = node.core.directory().entry(region).unwrap();
    let (start, end) = (&of_region.region.start_key, &of_region.region.end_key);
    let mut held = 0;
    for cf in [Cf::Default, Cf::Lock, Cf::Write, Cf::Raw, Cf::Raw2] {
        let (from, to) = keys::data_range(start, end);
        let mut visit = |key: &[u8], value: &[u8]| {
            held += (key.len() + value.len()) as u64;
            ControlFlow::Continue(())
        };
        let view = node.engines.kv.snapshot();
        view.scan(cf, &from, Some(&to), Direction::Forward, &mut visit)
            .unwrap();
    }
    assert!(held > 0, "the region has keys");
    assert_eq!(told.iter().sum::<u64>(), held, "{told:?}");
    let pieces = told.iter().filter(|read| **read > 0).count();
    assert!(pieces > 1, "{told:?}: it is told piece by piece");
    let worker = &mut node.workers.region;
    worker.push(RegionJob::Generate { region_id: 999 });
    let cleared = Region {
        id: 998,
        ..Region::default()
    };
    worker.push(RegionJob::Clear { region: cleared });
    assert!(!worker.only_makes(), "a clear waits");
    worker.step(now, 16).unwrap();
    assert_eq!(worker.take_read_bytes(), 0, "there is no such region");
}
