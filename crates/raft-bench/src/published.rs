//! A replica of the published crate.
//!
//! Its `propose` takes vectors. What is done here is what it does with them, from a payload
//! that is shared already: that saves it the vector and one allocation an entry.

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState, Message, MessageType, Snapshot};
use raft::{Config, GetEntriesContext, RaftState, RawNode, StateRole, Storage, StorageError, util};
use slog::{Discard, Logger, o};

use crate::group::{Applied, Limits, Node, PEERS};
use crate::kept_log::{KeptLog, LogEntry, Missing};

impl LogEntry for Entry {
    fn index(&self) -> u64 {
        self.index
    }

    fn term(&self) -> u64 {
        self.term
    }
}

fn storage_error(missing: Missing) -> raft::Error {
    raft::Error::Store(match missing {
        Missing::Compacted => StorageError::Compacted,
        Missing::Unavailable => StorageError::Unavailable,
    })
}

/// How many entries the crate's own storage would give: it counts by an approximate size.
fn count_within(entries: &[Entry], max_bytes: u64) -> usize {
    if max_bytes == u64::MAX {
        return entries.len();
    }
    let mut bytes = 0;
    let fits = |entry: &&Entry| {
        let first = bytes == 0;
        bytes += util::entry_approximate_size(entry) as u64;
        first || bytes <= max_bytes
    };
    entries.iter().take_while(fits).count()
}

impl Storage for KeptLog<Entry> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let members = ConfState::from((PEERS.to_vec(), Vec::new()));
        Ok(RaftState::new(HardState::default(), members))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let max_bytes = max_size.into().unwrap_or(u64::MAX);
        KeptLog::entries(self, low, high, |range| count_within(range, max_bytes))
            .map_err(storage_error)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        KeptLog::term(self, index).map_err(storage_error)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(KeptLog::first_index(self))
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(KeptLog::last_index(self))
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }
}

/// One replica and what it has applied.
pub struct Published {
    node: RawNode<KeptLog<Entry>>,
    log: KeptLog<Entry>,
    applied: Applied,
}

impl Published {
    /// A replica with an empty log. `batching` says whether appends to one follower are joined
    /// (`batch_append`) and the commit index waits for the next one (`skip_bcast_commit`).
    pub fn new(id: u64, limits: Limits, batching: bool) -> Self {
        let config = Config {
            id,
            max_size_per_msg: limits.message_bytes,
            max_inflight_msgs: limits.inflight_messages,
            max_uncommitted_size: limits.uncommitted_bytes,
            max_committed_size_per_ready: limits.committed_bytes_per_ready,
            check_quorum: true,
            pre_vote: true,
            batch_append: batching,
            skip_bcast_commit: batching,
            ..Config::default()
        };
        let log = KeptLog::new();
        let logger = Logger::root(Discard, o!());
        let node = RawNode::new(&config, log.clone(), &logger).expect("a good config");
        Self {
            node,
            log,
            applied: Applied::default(),
        }
    }

    fn apply(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.applied.add(&entry.data);
        }
    }
}

impl Node for Published {
    type Message = Message;

    fn campaign(&mut self) {
        self.node.campaign().expect("nothing forbids it");
    }

    fn leads(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    fn step(&mut self, message: Message) {
        self.node.step(message).expect("a good message");
    }

    fn propose(&mut self, data: Bytes) {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.node.raft.id;
        let entry = Entry {
            data,
            ..Entry::default()
        };
        message.set_entries(vec![entry].into());
        self.node.raft.step(message).expect("it leads");
    }

    fn turn(&mut self, send: &mut impl FnMut(u64, Message)) {
        if !self.node.has_ready() {
            return;
        }
        let mut ready = self.node.ready();
        for message in ready.take_messages() {
            send(message.to, message);
        }
        self.log.append(ready.take_entries());
        for message in ready.take_persisted_messages() {
            send(message.to, message);
        }
        let committed = ready.take_committed_entries();
        self.apply(&committed);
        let mut light = self.node.advance(ready);
        for message in light.take_messages() {
            send(message.to, message);
        }
        let committed = light.take_committed_entries();
        if !committed.is_empty() {
            self.apply(&committed);
            self.node.advance_apply();
        }
    }

    fn applied(&self) -> Applied {
        self.applied
    }
}
