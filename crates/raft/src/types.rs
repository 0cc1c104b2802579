//! The small words of the protocol: index, term, peer, entry id, role.
//!
//! Plain aliases where the messages carry plain numbers; a struct where two numbers belong
//! together. Index 0 and term 0 stand before the first entry of a group; peer id 0 is no
//! peer and appears only inside messages, where "no leader" and "no vote" are written so.

use bytes::Bytes;
use prost::Message as _;
use strata_proto::eraftpb::Entry;

/// Position of an entry in the log, counted from 1. 0 stands before the first entry.
pub type Index = u64;

/// Number of an election. At most one leader exists in a term.
pub type Term = u64;

/// Identity of a replica within its group. Never 0, never used again after removal.
pub type PeerId = u64;

/// How messages and hard states write "no peer".
pub const NO_PEER: PeerId = 0;

/// Term and index of one entry. By the Log Matching property (Raft paper, section 5.3) two
/// logs that hold the same id hold the same entries up to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// Term in which a leader made the entry. First, so that ids sort as section 5.4.1
    /// compares logs: by term, then by index.
    pub term: Term,
    /// Position in the log.
    pub index: Index,
}

impl EntryId {
    /// The id of `entry`.
    #[inline]
    pub fn of(entry: &Entry) -> Self {
        Self {
            term: entry.term,
            index: entry.index,
        }
    }
}

/// What a replica does at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Takes entries from a leader, votes.
    #[default]
    Follower,
    /// Asks whether it could win an election, without raising its term (Raft thesis, 9.6).
    PreCandidate,
    /// Asks for votes in its term.
    Candidate,
    /// Replicates its log to the others.
    Leader,
}

/// The part of the state that is not saved: who leads and what this replica is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SoftState {
    /// The leader of the current term as far as known here.
    pub leader: Option<PeerId>,
    /// Role of this replica.
    pub role: Role,
}

/// Answer to a `read_index`: once the state machine has applied `index`, a local read is
/// linearizable with respect to the moment the read was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadState {
    /// Index that has to be applied before the read.
    pub index: Index,
    /// The context given to `read_index`.
    pub request_context: Bytes,
}

/// How the sending of a snapshot ended, as reported by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotStatus {
    /// The follower has received all of it.
    Finish,
    /// It was not delivered; the leader probes and sends another when needed.
    Failure,
}

/// More than an entry's encoding can need beside data and context: six fields, each with a
/// tag of one byte and a number of ten bytes at most.
const ENTRY_BYTES_BESIDE_DATA: usize = 66;

/// Size of an entry in bytes as all limits of this crate count it: its encoded length.
#[inline]
pub fn entry_bytes(entry: &Entry) -> u64 {
    entry.encoded_len() as u64
}

/// Shortens `entries` to the longest beginning whose sizes add up to at most `max_bytes`.
/// The first entry stays whatever its size, so that a reader always gets on.
pub fn limit_entries(entries: &mut Vec<Entry>, max_bytes: u64) {
    let keep = count_within(entries, max_bytes);
    entries.truncate(keep);
}

/// How many of `entries` fit into `max_bytes`; at least one where there is one.
#[inline]
pub fn count_within(entries: &[Entry], max_bytes: u64) -> usize {
    if entries_bytes_bound(entries) <= max_bytes {
        return entries.len();
    }
    let mut bytes = 0u64;
    for (at, entry) in entries.iter().enumerate() {
        bytes = bytes.saturating_add(entry_bytes(entry));
        if at > 0 && bytes > max_bytes {
            return at;
        }
    }
    entries.len()
}

/// At least the sum of the sizes of `entries`; much cheaper than that.
#[inline]
fn entries_bytes_bound(entries: &[Entry]) -> u64 {
    let own = |entry: &Entry| ENTRY_BYTES_BESIDE_DATA + entry.data.len() + entry.context.len();
    entries.iter().map(|entry| own(entry) as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: Index, bytes: usize) -> Entry {
        Entry {
            term: 1,
            index,
            data: Bytes::from(vec![0; bytes]),
            ..Entry::default()
        }
    }

    #[test]
    fn limit_keeps_the_first_entry_whatever_its_size() {
        let mut entries = vec![entry(1, 1000), entry(2, 1)];
        limit_entries(&mut entries, 0);
        assert_eq!(entries.len(), 1);
        limit_entries(&mut entries, u64::MAX);
        assert_eq!(entries.len(), 1);
        let mut none = Vec::new();
        limit_entries(&mut none, 0);
        assert!(none.is_empty());
    }

    #[test]
    fn limit_counts_encoded_bytes() {
        let all = vec![entry(1, 10), entry(2, 10), entry(3, 10)];
        let one = entry_bytes(&all[0]);
        assert_eq!(count_within(&all, 2 * one), 2);
        assert_eq!(count_within(&all, 2 * one - 1), 1);
        assert_eq!(count_within(&all, 3 * one), 3);
    }

    #[test]
    fn the_bound_of_sizes_holds_for_the_largest_numbers() {
        let largest = Entry {
            entry_type: -1,
            term: u64::MAX,
            index: u64::MAX,
            data: Bytes::from(vec![0; 1 << 20]),
            sync_log: true,
            context: Bytes::from(vec![0; 1 << 20]),
        };
        for entry in [largest, Entry::default(), entry(1, 10)] {
            let entries = [entry.clone(), entry];
            let bytes: u64 = entries.iter().map(entry_bytes).sum();
            let bound = entries_bytes_bound(&entries);
            assert!(bytes <= bound, "{bytes} bytes, bound {bound}");
        }
    }

    #[test]
    fn ids_sort_by_term_first() {
        let old = EntryId { term: 1, index: 9 };
        let new = EntryId { term: 2, index: 3 };
        assert!(new > old);
    }
}
