//! Makes a message that no store has sent from one that a store has sent.

use std::collections::VecDeque;

use bytes::Bytes;
use strata_fuzz::Mutator;
use strata_proto::eraftpb::{Entry, EntryType, Message, MessageType};
use strata_proto::metapb::RegionEpoch;
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::SnapshotMeta;
use strata_sim::Cluster;
use strata_storage::snapshot::{Offered, snapshot_id, to_raft};

/// A forged form of a message; `None` if it does not decode, as a transport would find.
pub fn forge(mutator: &mut Mutator, real: &RaftMessage) -> Option<RaftMessage> {
    let mut message = real.clone();
    match rand::Rng::random_range(mutator.rng(), 0..8) {
        0 | 1 => return redecode(mutator, real),
        2..5 => message.message = Some(redecode(mutator, real.message.as_ref()?)?),
        5 => change_entry(mutator, message.message.as_mut()?)?,
        6 => change_address(mutator, &mut message),
        _ => change_kind(mutator, message.message.as_mut()?),
    }
    Some(message)
}

fn redecode<M: prost::Message + Default>(mutator: &mut Mutator, real: &M) -> Option<M> {
    M::decode(&mutator.message(&real.encode_to_vec())[..]).ok()
}

/// An append from the right leader, at the right place, with a command of any content.
fn change_entry(mutator: &mut Mutator, message: &mut Message) -> Option<()> {
    if message.entries.is_empty() {
        let entry = Entry {
            index: message.index.wrapping_add(1),
            term: message.term,
            ..Entry::default()
        };
        message.entries.push(entry);
    }
    let at = rand::Rng::random_range(mutator.rng(), 0..message.entries.len());
    let entry = &mut message.entries[at];
    match rand::Rng::random_range(mutator.rng(), 0..4) {
        0 => *entry = redecode(mutator, entry)?,
        1 => {
            let kinds = [EntryType::EntryConfChange, EntryType::EntryConfChangeV2];
            entry.entry_type = (*mutator.pick(&kinds)).into();
        }
        _ => entry.data = Bytes::from(mutator.message(&entry.data)),
    }
    Some(())
}

/// Another region, another peer, another membership, or the word that the peer is gone.
fn change_address(mutator: &mut Mutator, message: &mut RaftMessage) {
    match rand::Rng::random_range(mutator.rng(), 0..7) {
        0 => message.region_id = mutator.near(message.region_id),
        1 => message.is_tombstone = true,
        2 => message.message = None,
        3 => (message.start_key, message.end_key) = (Bytes::new(), Bytes::new()),
        4 => {
            message.region_id = 1_000 + u64::from(mutator.one_in(2));
            message.start_key = Bytes::from_static(b"\xff\xff");
        }
        _ => {}
    }
    let epoch = message.region_epoch.unwrap_or_default();
    if mutator.one_in(2) {
        message.region_epoch = Some(RegionEpoch {
            conf_ver: mutator.near(epoch.conf_ver),
            version: mutator.near(epoch.version),
        });
    }
    for peer in [&mut message.from_peer, &mut message.to_peer] {
        if let Some(peer) = peer.as_mut().filter(|_| mutator.one_in(2)) {
            peer.id = mutator.near(peer.id);
            if mutator.one_in(4) {
                peer.store_id = mutator.near(peer.store_id);
            }
        }
    }
    if let (Some(inner), Some(from), Some(to)) =
        (&mut message.message, message.from_peer, message.to_peer)
        && mutator.one_in(2)
    {
        (inner.from, inner.to) = (from.id, to.id);
    }
}

/// A leader's first word to a peer that its store does not have yet.
pub fn invite(mutator: &mut Mutator, real: &RaftMessage) -> Option<RaftMessage> {
    let mut message = real.clone();
    let to = message.to_peer.as_mut()?;
    to.id += 1_000 + u64::from(mutator.one_in(2));
    to.store_id = 1 + u64::from(mutator.one_in(2)) + mutator.number() % 4;
    let inner = message.message.as_mut()?;
    inner.to = to.id;
    inner.commit = 0;
    inner.set_msg_type(*mutator.pick(&[
        MessageType::MsgHeartbeat,
        MessageType::MsgRequestVote,
        MessageType::MsgRequestPreVote,
    ]));
    let epoch = message.region_epoch.as_mut()?;
    epoch.conf_ver += u64::from(mutator.one_in(2));
    Some(message)
}

/// The same numbers under another name.
fn change_kind(mutator: &mut Mutator, message: &mut Message) {
    let kinds = [
        MessageType::MsgAppend,
        MessageType::MsgAppendResponse,
        MessageType::MsgRequestVote,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgHeartbeat,
        MessageType::MsgHeartbeatResponse,
        MessageType::MsgTransferLeader,
        MessageType::MsgTimeoutNow,
        MessageType::MsgReadIndex,
        MessageType::MsgReadIndexResp,
        MessageType::MsgRequestPreVote,
        MessageType::MsgRequestPreVoteResponse,
    ];
    message.set_msg_type(*mutator.pick(&kinds));
    if mutator.one_in(2) {
        message.term = message.term.wrapping_add(1);
    }
    message.reject = mutator.one_in(4);
}

/// A snapshot with a forged description, whose files come in whole: the message for its
/// receiver. `None` if there is no snapshot to begin with, or no store takes this one.
pub fn forge_snapshot(
    cluster: &Cluster,
    mutator: &mut Mutator,
    kept: &VecDeque<(u64, RaftMessage)>,
) -> Option<(u64, RaftMessage)> {
    let stores: Vec<_> = cluster
        .store_ids()
        .into_iter()
        .filter_map(|id| Some((id, cluster.store(id).core.as_ref()?)))
        .collect();
    if stores.is_empty() {
        return None;
    }
    let (_, source) = mutator.pick(&stores);
    let listed = source.snapshots().list();
    let complete: Vec<_> = listed.iter().filter(|info| info.complete).collect();
    if complete.is_empty() {
        return None;
    }
    let real = source.snapshots().get(&mutator.pick(&complete).key)?;
    let (to, envelope) = kept
        .iter()
        .rev()
        .filter(|(_, message)| message.region_id == real.key().region_id)
        .find(|(to, message)| stores.iter().any(|(id, _)| id == to) && message.message.is_some())?;
    let mut meta = real.meta().clone();
    if !mutator.one_in(4) {
        meta = redecode(mutator, &meta)?;
    }
    // Newer than what the receiver has, so that it is wanted.
    meta.index = meta
        .index
        .saturating_add(u64::from(mutator.one_in(2)) * 1_000);
    meta.id = snapshot_id(&meta);
    let (_, target) = stores.iter().find(|(id, _)| id == to)?;
    let to_peer = envelope.to_peer?;
    target.check_snapshot(&meta, &to_peer).ok()?;
    if let Offered::Receive(mut receiver) = target.snapshots().receive(&meta).ok()? {
        for (file, described) in (0..).zip(&meta.files) {
            let mut offset = 0;
            while offset < described.length {
                let mut chunk = real.read_chunk(file, offset).ok()?;
                chunk.id = meta.id;
                receiver.accept(&chunk).ok()?;
                offset += chunk.data.len() as u64;
            }
        }
        receiver.finish().ok()?;
    }
    Some((*to, snapshot_message(envelope, &meta)?))
}

fn snapshot_message(envelope: &RaftMessage, meta: &SnapshotMeta) -> Option<RaftMessage> {
    let inner = envelope.message.as_ref()?;
    let message = Message {
        msg_type: MessageType::MsgSnapshot.into(),
        from: inner.from,
        to: inner.to,
        term: inner.term.max(meta.term).saturating_add(1),
        snapshot: Some(Box::new(to_raft(meta))),
        ..Message::default()
    };
    Some(RaftMessage {
        message: Some(message),
        ..envelope.clone()
    })
}
