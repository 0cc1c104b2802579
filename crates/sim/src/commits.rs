//! What leaders commit, looked at when they say so for the first time.
//!
//! Forward  What a leader says is committed never goes back within its term.
//! Held     A committed entry is on the disks of a majority of the voters, of both majorities
//!          while a membership is joint (Raft paper, 5.3).
//! Own term A leader's commit index moves to entries of its own term (5.4.2).
//! Safe     No voter without the entry could win an election with the logs that are on the
//!          disks (5.4). An entry of an earlier term that is merely held by a majority is
//!          not safe (figure 8).
//!
//! The runs in which a commit that breaks these is lost, and the loss is seen by a client,
//! are rare. The commit itself shows it.
//!
//! A commit is judged where the membership was the same when the leader's commit index was
//! last heard of: under another it may have come about by other voters.

use std::collections::BTreeMap;

use prost::Message as _;
use strata_proto::eraftpb::{Entry, Message, MessageType};
use strata_proto::metapb::{Peer, PeerRole, Region};
use strata_proto::raft_serverpb::{PeerState, RaftMessage};
use strata_raft::EntryId;
use strata_storage::{
    Cf, MemDurable, ReadView, keys, read_apply_state, read_raft_state, read_region_state,
};

use crate::violation::Violation;

/// What was last heard of a leader.
#[derive(Clone, Copy, Debug)]
struct Heard {
    conf_ver: u64,
    commit: u64,
}

/// Commit indices of leaders.
#[derive(Debug, Default)]
pub struct Commits {
    /// By region and term.
    heard: BTreeMap<(u64, u64), Heard>,
    /// By region and peer: term and commit index that its leader has sent it last. Messages
    /// to different stores leave in no order.
    told: BTreeMap<(u64, u64), (u64, u64)>,
}

/// What is on the disk of a voter's store.
#[derive(Clone, Copy, Debug)]
pub enum VoterDisk<'a> {
    /// The synced part of both engines.
    Present {
        /// The raft engine.
        raft: MemDurable<'a>,
        /// The kv engine.
        kv: MemDurable<'a>,
    },
    /// Its folder was lost, and with it a log up to this index.
    Lost {
        /// The end of the log.
        last_index: u64,
    },
}

/// What a voter has on its disk.
#[derive(Clone, Copy, Debug)]
struct Voter {
    store_id: u64,
    role: PeerRole,
    /// The end of its log.
    last: EntryId,
    /// Whether it has the entry in question.
    entry: Held,
}

/// Whether a log has an entry at an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// None.
    No,
    /// One of this term.
    Entry(u64),
    /// It is compacted, or in a snapshot: it was applied.
    Applied,
    /// Whatever there was is gone for good, and the voter votes no more: its store has lost its
    /// folder, or has removed it by a change of peers that the leader has not applied yet.
    Lost,
    /// It never had one, and votes no more.
    Never,
}

impl Commits {
    /// Compares the commit index of an append with what its receiver was told before.
    ///
    /// # Errors
    /// `CommitWentBack`.
    pub fn check_order(&mut self, envelope: &RaftMessage) -> Result<(), Violation> {
        let appended = |message: &&Message| message.msg_type() == MessageType::MsgAppend;
        let Some(message) = envelope.message.as_ref().filter(appended) else {
            return Ok(());
        };
        let region_id = envelope.region_id;
        let last = self.told.entry((region_id, message.to)).or_default();
        let (term, commit) = *last;
        if message.term < term {
            return Ok(());
        }
        *last = (message.term, message.commit);
        if message.term == term && message.commit < commit {
            return Err(Violation::CommitWentBack {
                region_id,
                term,
                from: commit,
                to: message.commit,
            });
        }
        Ok(())
    }

    /// Notes a message of a leader whose region is `region`; returns the commit index if it
    /// is news that can be judged. What a leader knew to be committed when it was elected is
    /// what its first append says. Heartbeats name what their follower has, and are passed over.
    pub fn on_send(&mut self, envelope: &RaftMessage, region: &Region) -> Option<u64> {
        let message = envelope.message.as_ref()?;
        if message.msg_type() != MessageType::MsgAppend {
            return None;
        }
        let conf_ver = region.region_epoch.unwrap_or_default().conf_ver;
        let key = (envelope.region_id, message.term);
        let now = Heard {
            conf_ver,
            commit: message.commit,
        };
        let heard = self.heard.entry(key).or_insert(now);
        if message.commit <= heard.commit {
            return None;
        }
        let same = heard.conf_ver == conf_ver;
        *heard = now;
        same.then_some(message.commit)
    }
}

/// Judges the commit of `index` in a region, whose leader has said so in `term`. `disk` gives
/// what a store has; `None` where there is no such store.
///
/// # Errors
/// `CommitNotHeld`, `CommitNotSafe`.
pub fn check_commit<'a>(
    region: &Region,
    (term, index): (u64, u64),
    disk: impl Fn(u64) -> Option<VoterDisk<'a>>,
) -> Result<(), Violation> {
    let region_id = region.id;
    let voters: Vec<Voter> = region
        .peers
        .iter()
        .filter(|peer| peer.role() != PeerRole::Learner)
        .map(|peer| Voter::read(peer, region, index, disk(peer.store_id)))
        .collect();
    let terms = voters.iter().filter_map(|voter| match voter.entry {
        Held::Entry(term) => Some(term),
        Held::No | Held::Applied | Held::Lost | Held::Never => None,
    });
    // Others may have one of an earlier term there; none can have a later one.
    let entry_term = terms.max();
    let holds = |voter: &Voter| match voter.entry {
        Held::No | Held::Never => false,
        Held::Entry(term) => Some(term) == entry_term,
        Held::Applied | Held::Lost => true,
    };
    if !agree(&voters, holds) {
        return Err(Violation::CommitNotHeld {
            region_id,
            term,
            index,
            disks: show(&voters),
        });
    }
    if let Some(entry_term) = entry_term.filter(|of| *of < term) {
        return Err(Violation::CommitOfEarlierTerm {
            region_id,
            term,
            index,
            entry_term,
        });
    }
    let silent = |voter: &Voter| matches!(voter.entry, Held::Lost | Held::Never);
    let lacking = |voter: &&Voter| !holds(voter) && !silent(voter);
    for candidate in voters.iter().filter(lacking) {
        let votes = |voter: &Voter| !silent(voter) && voter.last <= candidate.last;
        if agree(&voters, votes) {
            return Err(Violation::CommitNotSafe {
                region_id,
                term,
                index,
                store_id: candidate.store_id,
                disks: show(&voters),
            });
        }
    }
    Ok(())
}

impl Voter {
    fn read(peer: &Peer, region: &Region, index: u64, disk: Option<VoterDisk<'_>>) -> Self {
        let (store_id, role) = (peer.store_id, peer.role());
        let voter = |last, entry| Voter {
            store_id,
            role,
            last,
            entry,
        };
        let (raft, kv) = match disk {
            Some(VoterDisk::Present { raft, kv }) => (raft, kv),
            Some(VoterDisk::Lost { last_index }) if last_index < index => {
                return voter(EntryId::default(), Held::Never);
            }
            Some(VoterDisk::Lost { .. }) | None => return voter(EntryId::default(), Held::Lost),
        };
        if was_removed(&kv, region) {
            return voter(EntryId::default(), Held::Lost);
        }
        let region_id = region.id;
        let log = read_raft_state(&raft, region_id).ok().flatten();
        let applied = read_apply_state(&kv, region_id).ok().flatten();
        let truncated = applied.map_or(EntryId::default(), |state| EntryId {
            term: state.truncated_term,
            index: state.truncated_index,
        });
        let end = log.map_or(0, |state| state.last_index);
        let last = term_at(&raft, region_id, end).map(|term| EntryId { term, index: end });
        // An install writes the kv engine first; its log is that of the snapshot from then on.
        let last = last.unwrap_or_default().max(truncated);
        let entry = match term_at(&raft, region_id, index) {
            _ if truncated.index >= index => Held::Applied,
            Some(term) if index <= end => Held::Entry(term),
            _ => Held::No,
        };
        voter(last, entry)
    }
}

/// Whether a store holds the tombstone of a later membership than `region` has.
fn was_removed(kv: &MemDurable<'_>, region: &Region) -> bool {
    let conf_ver = |region: &Region| region.region_epoch.unwrap_or_default().conf_ver;
    let state = read_region_state(kv, region.id).ok().flatten();
    state.is_some_and(|state| {
        let gone = state.region.as_ref().map_or(0, conf_ver);
        state.state() == PeerState::Tombstone && gone > conf_ver(region)
    })
}

/// The term of an entry of a log.
fn term_at(raft: &MemDurable<'_>, region_id: u64, index: u64) -> Option<u64> {
    let stored = raft.get(Cf::RaftLog, &keys::raft_log(region_id, index));
    let entry = Entry::decode(stored.ok().flatten()?).ok()?;
    Some(entry.term)
}

/// One line of what the voters have.
fn show(voters: &[Voter]) -> String {
    let one = |voter: &Voter| {
        let (store, last) = (voter.store_id, voter.last);
        format!(
            "{store}: {:?}, end ({}, {})",
            voter.entry, last.term, last.index
        )
    };
    voters.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Whether a majority of the voters, or both majorities, are among those that are chosen.
fn agree(voters: &[Voter], chosen: impl Fn(&Voter) -> bool) -> bool {
    let majority = |votes: &dyn Fn(PeerRole) -> bool| {
        let of = voters.iter().filter(|voter| votes(voter.role));
        let (all, yes) = of.fold((0, 0), |(all, yes), voter| {
            (all + 1, yes + usize::from(chosen(voter)))
        });
        yes > all / 2
    };
    let incoming = |role| matches!(role, PeerRole::Voter | PeerRole::IncomingVoter);
    let outgoing = |role| matches!(role, PeerRole::Voter | PeerRole::DemotingVoter);
    let joint = voters.iter().any(|voter| voter.role != PeerRole::Voter);
    majority(&incoming) && (!joint || majority(&outgoing))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voter(last: (u64, u64), entry: Held) -> Voter {
        Voter {
            store_id: 1,
            role: PeerRole::Voter,
            last: EntryId {
                term: last.0,
                index: last.1,
            },
            entry,
        }
    }

    #[test]
    fn commit_that_goes_back_is_found() {
        let mut commits = Commits::default();
        let append = |term, commit| RaftMessage {
            region_id: 2,
            message: Some(Message {
                msg_type: MessageType::MsgAppend.into(),
                term,
                commit,
                ..Message::default()
            }),
            ..RaftMessage::default()
        };
        assert_eq!(commits.check_order(&append(6, 8)), Ok(()));
        // Another leader may know less, and an old one is late.
        assert_eq!(commits.check_order(&append(7, 6)), Ok(()));
        assert_eq!(commits.check_order(&append(6, 5)), Ok(()));
        let back = commits.check_order(&append(7, 5));
        assert!(matches!(
            back,
            Err(Violation::CommitWentBack { from: 6, to: 5, .. })
        ));
    }

    #[test]
    fn majorities_are_counted_on_both_sides_of_a_joint_membership() {
        let yes = |voter: &Voter| voter.entry == Held::Applied;
        let (has, lacks) = (voter((5, 9), Held::Applied), voter((5, 8), Held::No));
        assert!(agree(&[has, has, lacks], yes));
        assert!(!agree(&[has, lacks], yes));
        let role = |role, voter| Voter { role, ..voter };
        let joint = [
            role(PeerRole::Voter, has),
            role(PeerRole::DemotingVoter, lacks),
            role(PeerRole::IncomingVoter, has),
        ];
        assert!(!agree(&joint, yes));
    }
}
