//! Followers that come back by a snapshot, step by step: what reads see meanwhile, what a
//! crash in each phase leaves, and snapshots that must not be taken.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Cluster, get};
use strata_proto::eraftpb::{Message, MessageType};
use strata_proto::metapb::Peer;
use strata_proto::raft_serverpb::{PeerState, RaftMessage};
use strata_raftstore::{
    Answer, DirectoryCell, Error, ShardEvent, StoreEffect, StoreEvent, StoreFsm, StoreOptions,
    StoreRequest, SystemStateMachine,
};
use strata_storage::snapshot::{
    Generated, Generator, Origin, SnapshotError, SnapshotInfo, SnapshotKey, to_raft,
};
use strata_storage::{
    Cf, Durability, Engine, Engines, MemEngine, WriteBatch, keys, read_apply_state,
    read_raft_state, read_region_state,
};

const SECOND: Duration = Duration::from_secs(1);

fn short_logs() -> StoreOptions {
    StoreOptions {
        log_gc_count_limit: 10,
        log_gc_threshold: 10,
        log_gc_tick_interval: Duration::from_millis(100),
        ..StoreOptions::default()
    }
}

/// A cluster of three in which one store was away until the log it needs was compacted;
/// cluster, region of "b" and the store that was away, which still is.
fn one_away() -> (Cluster, u64, u64) {
    let mut cluster = Cluster::new(3, short_logs());
    cluster.elect_all();
    let region = cluster.region_of(b"b");
    cluster.put("b", "old").unwrap();
    cluster.put("b9", "gone later").unwrap();
    cluster.run(SECOND);
    let leader = cluster.leader(region).unwrap();
    let away = (1..=3).find(|id| *id != leader).unwrap();
    cluster.cut.insert(away);
    for number in 0..30 {
        cluster.put("b", &number.to_string()).unwrap();
    }
    cluster
        .call(region, common::write(&[("b9", None, 0)]))
        .unwrap();
    cluster.run(3 * SECOND);
    let first = cluster.nodes[&leader].core.directory().entry(region);
    let truncated = first.unwrap().view.numbers().truncated;
    assert!(truncated > 30, "the leader is truncated at {truncated}");
    (cluster, region, away)
}

fn local_state(cluster: &Cluster, id: u64, region: u64) -> PeerState {
    let kv = &cluster.nodes[&id].engines.kv;
    read_region_state(kv, region).unwrap().unwrap().state()
}

/// While the data are being replaced nobody reads them: neither who asks now, nor a read
/// that was on its way when the install began.
#[test]
fn reads_never_see_a_range_that_is_being_replaced() {
    let (mut cluster, region, away) = one_away();
    cluster.nodes.get_mut(&away).unwrap().jobs_work = false;
    // A read that the store has let go and that no reader has served yet.
    let before = cluster.nodes[&away].core.directory().entry(region).unwrap();
    let epoch = before.view.data_epoch();
    cluster.cut.remove(&away);
    cluster.until("the install begins", |cluster| {
        local_state(cluster, away, region) == PeerState::Applying
    });
    let view = cluster.nodes[&away].core.directory().entry(region).unwrap();
    assert_ne!(view.view.data_epoch(), epoch, "a late read is told apart");
    let mut header = cluster.header(region);
    header.replica_read = true;
    let answer = cluster.send_with(away, header.clone(), get("b"));
    let refused = cluster.wait(&answer).unwrap_err();
    assert!(matches!(refused, Error::NotLeader { .. }), "{refused}");

    cluster.release_jobs(away);
    cluster.until("the install ends", |cluster| {
        local_state(cluster, away, region) == PeerState::Normal
    });
    let header = strata_raftstore::RequestHeader {
        deadline: cluster.now + 2 * SECOND,
        ..header
    };
    let answer = cluster.send_with(away, header, get("b"));
    let value = cluster.wait(&answer).unwrap();
    assert!(matches!(value, Answer::Value(Some(value)) if value == "29"));
    assert_eq!(cluster.stored(away, "b9"), None);
}

/// A read that was issued before the install and is served after it began is refused, for
/// its engine snapshot is younger than the clearing.
#[test]
fn a_read_on_its_way_is_refused_when_an_install_begins() {
    let (mut cluster, region, away) = one_away();
    cluster.cut.remove(&away);
    cluster.until("it follows again", |cluster| {
        cluster.stored(away, "b").as_deref() == Some("29")
    });
    let mut header = cluster.header(region);
    header.replica_read = true;
    let (sender, receiver) = std::sync::mpsc::channel();
    let reply = strata_raftstore::Reply::new(move |result| drop(sender.send(result)));
    let request = strata_raftstore::Request {
        header,
        body: get("b"),
    };
    let now = cluster.clock(away);
    let node = cluster.nodes.get_mut(&away).unwrap();
    let (token, effects) = node.core.execute(now, request, reply);
    token.detach();
    // The read index round goes to the leader and back by hand.
    let mut pending: Vec<(u64, StoreEffect)> = effects.into_iter().map(|e| (away, e)).collect();
    let mut task = None;
    while let Some((id, effect)) = pending.pop() {
        match effect {
            StoreEffect::Read(read) => task = Some(read),
            StoreEffect::Send {
                to_store_id,
                messages,
            } => {
                for message in messages {
                    let now = cluster.clock(to_store_id);
                    let core = &mut cluster.nodes.get_mut(&to_store_id).unwrap().core;
                    let more = core.handle(now, StoreEvent::Message(message));
                    pending.extend(more.into_iter().map(|e| (to_store_id, e)));
                }
            }
            other => cluster.carry_out_one(id, other),
        }
    }
    let task = task.expect("the round confirmed the read");
    assert_eq!(task.data_epoch, task.view.data_epoch());
    let stale = strata_raftstore::ReadTask {
        data_epoch: task.data_epoch.wrapping_sub(1),
        ..task
    };
    cluster.event(away, StoreEvent::Serve(stale));
    let refused = receiver.try_recv().unwrap().unwrap_err();
    assert!(
        matches!(refused, Error::NotLeader { leader: None, .. }),
        "{refused}"
    );
}

/// The answer of a read index round that was asked for before the install, at an index that
/// had been applied here long ago, comes in the middle of it: the read waits for the end.
#[test]
fn a_read_index_that_comes_in_the_middle_of_an_install_waits_for_its_end() {
    let mut cluster = Cluster::new(3, short_logs());
    cluster.elect_all();
    let region = cluster.region_of(b"b");
    cluster.put("b", "old").unwrap();
    cluster.run(SECOND);
    let leader = cluster.leader(region).unwrap();
    let away = (1..=3).find(|id| *id != leader).unwrap();
    let third = (1..=3).find(|id| *id != leader && *id != away).unwrap();

    // The follower asks; the leader's answer is held on its way.
    let mut header = cluster.header(region);
    header.replica_read = true;
    let (sender, receiver) = std::sync::mpsc::channel();
    let reply = strata_raftstore::Reply::new(move |result| drop(sender.send(result)));
    let request = strata_raftstore::Request {
        header,
        body: get("b"),
    };
    let now = cluster.clock(away);
    let node = cluster.nodes.get_mut(&away).unwrap();
    let (token, effects) = node.core.execute(now, request, reply);
    token.detach();
    let mut pending: Vec<(u64, StoreEffect)> = effects.into_iter().map(|e| (away, e)).collect();
    let mut held = None;
    while let Some((id, effect)) = pending.pop() {
        let StoreEffect::Send {
            to_store_id,
            messages,
        } = effect
        else {
            cluster.carry_out_one(id, effect);
            continue;
        };
        for message in messages {
            let inner = message.message.as_ref().unwrap();
            if inner.msg_type() == MessageType::MsgReadIndexResp {
                held = Some(message);
                continue;
            }
            let now = cluster.clock(to_store_id);
            let core = &mut cluster.nodes.get_mut(&to_store_id).unwrap().core;
            let more = core.handle(now, StoreEvent::Message(message));
            pending.extend(more.into_iter().map(|e| (to_store_id, e)));
        }
    }
    let held = held.expect("the leader has answered");

    // The log goes on without the follower, which does not tick: it asks no second time.
    cluster.no_entries_to.insert(away);
    for number in 0..30 {
        cluster.put("b", &number.to_string()).unwrap();
    }
    cluster.nodes.get_mut(&away).unwrap().jobs_work = false;
    for _ in 0..30 {
        cluster.now += common::TICK;
        cluster.event(leader, StoreEvent::Tick);
        cluster.event(third, StoreEvent::Tick);
        if local_state(&cluster, away, region) == PeerState::Applying {
            break;
        }
    }
    assert_eq!(local_state(&cluster, away, region), PeerState::Applying);
    cluster.event(away, StoreEvent::Message(held));
    let early = receiver.try_recv();
    assert!(
        early.is_err(),
        "answered from a range in between: {early:?}"
    );
    cluster.release_jobs(away);
    let value = cluster.wait(&receiver).unwrap();
    assert!(
        matches!(&value, Answer::Value(Some(value)) if value == "29"),
        "{value:?}"
    );
}

/// Crash rule 3 at the peers: the power goes after each of the writes of an install, with
/// what was not synced, and the store comes back whole.
#[test]
fn crash_rule_snapshot_install_by_phase() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Phase {
        KvBatch,
        RaftBatch,
        Install,
        Installed,
    }
    for phase in [
        Phase::KvBatch,
        Phase::RaftBatch,
        Phase::Install,
        Phase::Installed,
    ] {
        let (mut cluster, region, away) = one_away();
        let node = cluster.nodes.get_mut(&away).unwrap();
        match phase {
            Phase::KvBatch => node.disk_works = false,
            Phase::RaftBatch | Phase::Install => node.jobs_work = false,
            Phase::Installed => {}
        }
        cluster.cut.remove(&away);
        cluster.until("the phase is reached", |cluster| {
            let reached = local_state(cluster, away, region);
            let applied = read_apply_state(&cluster.nodes[&away].engines.kv, region);
            match phase {
                Phase::Installed => {
                    reached == PeerState::Normal && applied.unwrap().unwrap().truncated_index > 30
                }
                _ => reached == PeerState::Applying,
            }
        });
        let raft = &cluster.nodes[&away].engines.raft;
        let last = read_raft_state(raft, region).unwrap().unwrap().last_index;
        assert_eq!(
            phase == Phase::KvBatch,
            last < 30,
            "{phase:?}: the log ends at {last}"
        );
        let node = cluster.nodes.remove(&away).unwrap();
        let engines: Engines<MemEngine> = Engines::new(
            node.engines.kv.crash_keeping(0),
            node.engines.raft.crash_keeping(0),
        );
        cluster.start_with(away, engines, node.files.crash_hard());
        cluster.put("b", "after").unwrap();
        cluster.until("the store is whole", |cluster| {
            cluster.stored(away, "b").as_deref() == Some("after")
                && local_state(cluster, away, region) == PeerState::Normal
        });
        assert_eq!(cluster.stored(away, "b9"), None, "{phase:?}");
    }
}

/// The documents report "unexpected raft log index: lastIndex 9 < appliedIndex 26" after a
/// restart. A snapshot empties the log; what is appended behind it, the end of the log and
/// the applied index agree after a crash that keeps only what was synced.
#[test]
fn last_index_below_applied_index_after_restart() {
    let (mut cluster, region, away) = one_away();
    cluster.cut.remove(&away);
    cluster.until("the snapshot is installed", |cluster| {
        cluster.stored(away, "b").as_deref() == Some("29")
    });
    for number in 0..5 {
        cluster.put("b", &format!("more {number}")).unwrap();
    }
    cluster.run(SECOND);
    for keep in [0, usize::MAX] {
        let node = cluster.nodes.remove(&away).unwrap();
        let engines = Engines::new(
            node.engines.kv.crash_keeping(keep),
            node.engines.raft.crash_keeping(0),
        );
        let applied = read_apply_state(&engines.kv, region).unwrap().unwrap();
        let log = read_raft_state(&engines.raft, region).unwrap().unwrap();
        assert!(
            log.last_index >= applied.applied_index,
            "last {} applied {}",
            log.last_index,
            applied.applied_index
        );
        cluster.start_with(away, engines, node.files.crash_hard());
        cluster.until("it follows again", |cluster| {
            cluster.stored(away, "b").as_deref() == Some("more 4")
        });
    }
}

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
            snapshot: Some(to_raft(&meta)),
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
                snapshot: Some(to_raft(meta)),
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
