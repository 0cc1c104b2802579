//! A replica of this project's crate.

use std::time::Duration;

use bytes::Bytes;
use strata_proto::eraftpb::{ConfState, Entry, HardState, Message, Snapshot};
use strata_raft::{Config, PeerId, RaftState, RawNode, Role, Storage, StorageError};

use crate::group::{Applied, Limits, Node, PEERS};
use crate::kept_log::{KeptLog, LogEntry, Missing};

/// The time of every input: no tick passes, so no timeout does.
const NOW: Duration = Duration::from_secs(1);

impl LogEntry for Entry {
    fn index(&self) -> u64 {
        self.index
    }

    fn term(&self) -> u64 {
        self.term
    }
}

impl From<Missing> for StorageError {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::Compacted => Self::Compacted,
            Missing::Unavailable => Self::Unavailable,
        }
    }
}

impl Storage for KeptLog<Entry> {
    fn initial_state(&self) -> Result<RaftState, StorageError> {
        Ok(RaftState {
            hard_state: HardState::default(),
            conf_state: ConfState {
                voters: PEERS.to_vec(),
                ..ConfState::default()
            },
        })
    }

    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        Ok(KeptLog::entries(self, low, high, |range| {
            strata_raft::count_within(range, max_bytes)
        })?)
    }

    fn term(&self, index: u64) -> Result<u64, StorageError> {
        Ok(KeptLog::term(self, index)?)
    }

    fn first_index(&self) -> Result<u64, StorageError> {
        Ok(KeptLog::first_index(self))
    }

    fn last_index(&self) -> Result<u64, StorageError> {
        Ok(KeptLog::last_index(self))
    }

    fn snapshot(&self, _request_index: u64, _to: PeerId) -> Result<Snapshot, StorageError> {
        Err(StorageError::SnapshotTemporarilyUnavailable)
    }
}

/// One replica and what it has applied.
pub struct Ours {
    node: RawNode<KeptLog<Entry>>,
    log: KeptLog<Entry>,
    applied: Applied,
}

impl Ours {
    /// A replica with an empty log.
    pub fn new(id: PeerId, limits: Limits) -> Self {
        let config = Config {
            id,
            max_bytes_per_message: limits.message_bytes,
            max_inflight_messages: limits.inflight_messages,
            max_uncommitted_bytes: limits.uncommitted_bytes,
            max_committed_bytes_per_ready: limits.committed_bytes_per_ready,
            // As a store sets it.
            lazy_commit: true,
            quiet_after_start: false,
            ..Config::default()
        };
        let log = KeptLog::new();
        let node = RawNode::new(&config, log.clone(), NOW).expect("a good config");
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

impl Node for Ours {
    type Message = Message;

    fn campaign(&mut self) {
        self.node.campaign(NOW).expect("nothing forbids it");
    }

    fn leads(&self) -> bool {
        self.node.soft_state().role == Role::Leader
    }

    fn step(&mut self, message: Message) {
        self.node.step(NOW, message).expect("a good message");
    }

    fn propose(&mut self, data: Bytes) {
        self.node.propose(Bytes::new(), data).expect("it leads");
    }

    fn turn(&mut self, send: &mut impl FnMut(u64, Message)) {
        if !self.node.has_ready() {
            return;
        }
        let mut ready = self.node.ready(NOW);
        for message in ready.messages.drain(..) {
            send(message.to, message);
        }
        self.log.append(ready.entries.drain(..));
        for message in ready.persisted_messages.drain(..) {
            send(message.to, message);
        }
        let committed = std::mem::take(&mut ready.committed_entries);
        self.apply(&committed);
        let light = self.node.advance(ready);
        for message in light.messages {
            send(message.to, message);
        }
        if !light.committed_entries.is_empty() {
            self.apply(&light.committed_entries);
            self.node.advance_apply();
        }
    }

    fn applied(&self) -> Applied {
        self.applied
    }
}
