//! A small state machine for region 1: records that are put and read.
//!
//! The simulator does not need the scheduler's own; any deterministic one shows whether
//! region 1 replicates. A request is the length of the key as one byte, the key, and the
//! value; the response is the value that the key held before.

use bytes::Bytes;
use strata_raftstore::{SystemStateMachine, SystemView, SystemViewError, SystemWrites};

/// Puts records and answers with what they held before.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecordMachine;

impl RecordMachine {
    /// The request that puts `value` under `key`.
    ///
    /// # Panics
    /// If the key is longer than 255 bytes.
    #[must_use]
    pub fn put(key: &[u8], value: &[u8]) -> Bytes {
        let length = u8::try_from(key.len()).expect("keys of the record machine are short");
        [&[length], key, value].concat().into()
    }
}

impl SystemStateMachine for RecordMachine {
    fn apply(
        &self,
        view: &dyn SystemView,
        request: &[u8],
        writes: &mut SystemWrites,
    ) -> Result<Bytes, SystemViewError> {
        let Some((length, rest)) = request.split_first() else {
            return Ok(Bytes::new());
        };
        let Some((key, value)) = rest.split_at_checked(usize::from(*length)) else {
            return Ok(Bytes::new());
        };
        let before = view.get(key)?.unwrap_or_default();
        writes.put(key.to_vec(), value.to_vec());
        Ok(before)
    }
}
