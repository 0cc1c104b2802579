//! The handle through which a driver steps one replica.

use std::time::Duration;

use bytes::Bytes;
use strata_proto::eraftpb::{ConfChangeV2, ConfState, Message};

use crate::config::Config;
use crate::error::Error;
use crate::ready::{LightReady, Ready};
use crate::status::Status;
use crate::storage::Storage;
use crate::types::{Index, PeerId, SnapshotStatus};

/// One replica of one group.
pub struct RawNode<S> {
    storage: S,
}

#[allow(unused_variables)]
impl<S: Storage> RawNode<S> {
    /// Starts a replica from what `storage` holds.
    pub fn new(config: &Config, storage: S, now: Duration) -> Result<Self, Error> {
        unimplemented!()
    }
    /// Lets one tick pass. Returns whether a Ready may have come up.
    pub fn tick(&mut self, now: Duration) -> bool {
        unimplemented!()
    }
    /// Starts an election now.
    pub fn campaign(&mut self, now: Duration) -> Result<(), Error> {
        unimplemented!()
    }
    /// Appends a command to the leader's log and returns its index.
    pub fn propose(&mut self, context: Bytes, data: Bytes) -> Result<Index, Error> {
        unimplemented!()
    }
    /// Appends a membership change to the leader's log and returns its index.
    pub fn propose_conf_change(
        &mut self,
        context: Bytes,
        change: ConfChangeV2,
    ) -> Result<Index, Error> {
        unimplemented!()
    }
    /// Applies a committed membership change.
    pub fn apply_conf_change(&mut self, change: &ConfChangeV2) -> Result<ConfState, Error> {
        unimplemented!()
    }
    /// Takes a message from a peer.
    pub fn step(&mut self, now: Duration, message: Message) -> Result<(), Error> {
        unimplemented!()
    }
    /// Whether `ready` would return anything to do.
    pub fn has_ready(&self) -> bool {
        unimplemented!()
    }
    /// Takes the effects of all inputs since the last time.
    pub fn ready(&mut self, now: Duration) -> Ready {
        unimplemented!()
    }
    /// Everything in `ready` is written, synced and applied.
    pub fn advance(&mut self, ready: Ready) -> LightReady {
        unimplemented!()
    }
    /// Everything in `ready` is written and synced.
    pub fn advance_append(&mut self, ready: Ready) -> LightReady {
        unimplemented!()
    }
    /// Everything in `ready` is written, and shown by the storage, but not synced.
    pub fn advance_append_async(&mut self, ready: Ready) {
        unimplemented!()
    }
    /// The Ready of this number and all before it are synced.
    pub fn on_persist_ready(&mut self, number: u64) {
        unimplemented!()
    }
    /// Everything that was handed out to be applied is applied.
    pub fn advance_apply(&mut self) {
        unimplemented!()
    }
    /// Everything up to `applied` is applied.
    pub fn advance_apply_to(&mut self, applied: Index) {
        unimplemented!()
    }
    /// Asks for a linearizable read point.
    pub fn read_index(&mut self, context: Bytes) -> Result<(), Error> {
        unimplemented!()
    }
    /// Driver time until which a leader may serve reads from its own state.
    pub fn lease_until(&self) -> Option<Duration> {
        unimplemented!()
    }
    /// Hands leadership over to `to`.
    pub fn transfer_leader(&mut self, to: PeerId) {
        unimplemented!()
    }
    /// A message to `id` could not be delivered.
    pub fn report_unreachable(&mut self, id: PeerId) {
        unimplemented!()
    }
    /// The sending of a snapshot to `id` has ended.
    pub fn report_snapshot(&mut self, id: PeerId, status: SnapshotStatus) {
        unimplemented!()
    }
    /// Copy of the state for operators and tests.
    pub fn status(&self) -> Status {
        unimplemented!()
    }
    /// The storage.
    pub fn storage(&self) -> &S {
        &self.storage
    }
    /// The storage.
    pub fn storage_mut(&mut self) -> &mut S {
        &mut self.storage
    }
}
