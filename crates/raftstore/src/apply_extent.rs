//! How far a batch of applied entries goes.
//!
//! Bytes   It takes no further entry once what it writes and answers has so many.
//! Quick   One that is made where nothing may wait ends before the first entry whose work is not
//!         seen from its size: an append of a byte writes a whole value, a compare-and-swap reads
//!         one, a session's first command reads its region's table, a change of the region is
//!         synced.

use strata_proto::eraftpb::{Entry, EntryType};
use strata_proto::stratapb::data_command::Body;
use strata_proto::stratapb::{DataCommand, EntryCommand};

/// How far a batch goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    batch_bytes: usize,
    quick: bool,
}

impl Extent {
    /// Any entries, up to so many bytes.
    pub fn whole(batch_bytes: usize) -> Self {
        Extent {
            batch_bytes,
            quick: false,
        }
    }

    /// Entries that only write what they hold, up to so many bytes.
    pub fn quick(batch_bytes: usize) -> Self {
        Extent {
            batch_bytes,
            quick: true,
        }
    }

    /// Bytes of writes and answers at which the batch ends.
    pub fn batch_bytes(self) -> usize {
        self.batch_bytes
    }

    /// Whether an entry may be in the batch; `command` is what it holds, if it holds one.
    pub fn takes(self, entry: &Entry, command: Option<&EntryCommand>) -> bool {
        !self.quick
            || entry.entry_type() == EntryType::EntryNormal
                && command.is_none_or(|command| {
                    command.admin.is_none() && command.commands.iter().all(writes_only)
                })
    }
}

/// Whether a command writes what it holds without a look at what is there.
fn writes_only(command: &DataCommand) -> bool {
    let blind = matches!(command.body, Some(Body::Write(_) | Body::DeleteRange(_)));
    blind && command.session.is_none()
}
