//! The install: what reads see of it, and what a crash in each phase leaves.

use super::*;

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
