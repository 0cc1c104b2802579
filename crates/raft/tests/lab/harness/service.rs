//! The replicated service of the lab: it remembers which command was applied where.
//!
//! Its state is the list of commands with the index of each, and a digest over everything
//! applied. Equal digests mean equal histories, so replicas are compared by one number.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use strata_proto::eraftpb::{ConfState, Entry};
use strata_raft::{EntryId, Index};

use super::disk::Checkpoint;

/// Number that names one proposed command; no two proposals share one.
pub type CommandId = u64;

/// A command in its place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Where it stands.
    pub index: Index,
    /// Which command it is.
    pub command: CommandId,
}

/// State of the service on one server.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// The last entry applied.
    pub applied: EntryId,
    /// All commands applied, in order.
    pub commands: Vec<Applied>,
    /// Digest over all applied entries, empty ones and conf changes included.
    pub digest: u64,
    /// Membership after the last entry applied.
    pub conf_state: ConfState,
}

/// The payload of command `id`: its number and `padding` further bytes.
pub fn command(id: CommandId, padding: usize) -> Bytes {
    let mut data = BytesMut::with_capacity(8 + padding);
    data.put_u64(id);
    data.put_bytes(b'x', padding);
    data.freeze()
}

/// The number of the command in an entry; None in an empty entry.
pub fn command_id(entry: &Entry) -> Option<CommandId> {
    (entry.data.len() >= 8).then(|| (&entry.data[..8]).get_u64())
}

/// FNV-1a over `data`, started from `seed`.
pub fn digest(seed: u64, data: &[u8]) -> u64 {
    data.iter()
        .fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
}

/// Digest of what one entry says.
pub fn entry_digest(entry: &Entry) -> u64 {
    let kind = digest(entry.entry_type as u64, &entry.term.to_be_bytes());
    let place = digest(kind, &entry.index.to_be_bytes());
    // The number at the front of a command tells commands apart; padding is constant.
    digest(place, &entry.data[..entry.data.len().min(64)])
}

impl Service {
    /// Takes the effect of one entry into the state. Whether its index fits is the
    /// checkers' business, so that a planted fault can break it.
    pub fn apply(&mut self, entry: &Entry, is_command: bool) {
        self.applied = EntryId {
            term: entry.term,
            index: entry.index,
        };
        self.digest = digest(self.digest, &entry_digest(entry).to_be_bytes());
        if let (true, Some(command)) = (is_command, command_id(entry)) {
            self.commands.push(Applied {
                index: entry.index,
                command,
            });
        }
    }

    /// The state as a checkpoint.
    pub fn checkpoint(&self) -> Checkpoint {
        let mut data = BytesMut::with_capacity(16 + 16 * self.commands.len());
        data.put_u64(self.digest);
        for applied in &self.commands {
            data.put_u64(applied.index);
            data.put_u64(applied.command);
        }
        Checkpoint {
            at: self.applied,
            conf_state: self.conf_state.clone(),
            data: data.freeze(),
        }
    }

    /// The state that `checkpoint` holds. An empty checkpoint is the empty state.
    pub fn restore(checkpoint: &Checkpoint) -> Self {
        let mut data = checkpoint.data.clone();
        let digest = if data.is_empty() { 0 } else { data.get_u64() };
        let mut commands = Vec::with_capacity(data.len() / 16);
        while data.remaining() >= 16 {
            commands.push(Applied {
                index: data.get_u64(),
                command: data.get_u64(),
            });
        }
        Self {
            applied: checkpoint.at,
            commands,
            digest,
            conf_state: checkpoint.conf_state.clone(),
        }
    }
}
