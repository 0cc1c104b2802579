//! Carries out what a replica wants done.
//!
//! Ready   Messages of the first kind leave at once; snapshot, entries and hard state are
//!         one write; committed entries go to the service.
//! Synced  The replica is told, messages of the second kind leave, a snapshot replaces the
//!         service's state.
//! Apply   Entry by entry, each shown to the checkers; conf changes go back to the replica;
//!         at each multiple of the interval the service takes a checkpoint and the log
//!         before it is dropped.

use std::rc::Rc;
use std::time::Duration;

use bytes::Buf;
use prost::Message as _;
use rand::Rng;
use strata_proto::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeV2, Entry, EntryType, Snapshot,
};
use strata_raft::{EntryId, Index, PeerId, ReadState, Ready, Role};

use super::disk::{Batch, Checkpoint};
use super::faults::Fault;
use super::group::{Event, Group};
use super::server::Unsynced;
use super::service::Service;

impl Group {
    /// Takes Readys from a server until there is none.
    pub fn pump(&mut self, id: PeerId) {
        loop {
            let now = self.now;
            let Some(server) = self.servers.get_mut(&id) else {
                return;
            };
            let local = server.clock.read(now);
            let Some(life) = server.life.as_mut() else {
                return;
            };
            if !life.node.has_ready() {
                break;
            }
            let ready = life.node.ready(local);
            self.on_ready(id, ready);
        }
        self.observe(id, true);
    }

    fn on_ready(&mut self, id: PeerId, mut ready: Ready) {
        for message in std::mem::take(&mut ready.messages) {
            self.send(message);
        }
        for read in std::mem::take(&mut ready.read_states) {
            self.on_read_state(id, &read);
        }
        let committed = std::mem::take(&mut ready.committed_entries);
        let promises = std::mem::take(&mut ready.persisted_messages);
        let batch = self.write_of(id, &ready);
        let disk = self.disks[&id].clone();
        let has_write = ready.has_write();
        let number = ready.number;
        let install = batch.install.clone();
        let sequence = disk.write(batch);
        let entries = disk.current(|image| image.entries.len());
        self.log_entries_max = self.log_entries_max.max(entries);
        let life = self.life_mut(id).expect("a pumped server is up");
        if install.is_some() {
            // The snapshot holds what still waits; a checkpoint of the service's old state
            // must not be written over it.
            life.to_apply.clear();
        }
        life.node.advance_append_async(ready);
        let waits = Unsynced {
            sequence,
            ready: number,
            messages: promises,
            install,
        };
        self.wait_for_sync(id, waits, has_write);
        if !committed.is_empty() {
            self.plan_apply(id, committed);
        }
    }

    /// The write of a Ready, shown to the checkers.
    fn write_of(&mut self, id: PeerId, ready: &Ready) -> Batch {
        let install = ready.snapshot.as_ref().map(checkpoint_of);
        let life = self.servers[&id]
            .life
            .as_ref()
            .expect("a pumped server is up");
        let status = life.view;
        let leading = (status.role == Role::Leader).then_some(status.term);
        let disk = &self.disks[&id];
        match &install {
            // The log before the snapshot goes, so that entries follow it directly.
            Some(checkpoint) if !ready.entries.is_empty() => {
                let base = super::disk::Image {
                    truncated: checkpoint.at,
                    ..super::disk::Image::default()
                };
                self.history.on_write(id, &ready.entries, &base, leading);
            }
            _ => disk.current(|log| self.history.on_write(id, &ready.entries, log, leading)),
        }
        Batch {
            install,
            entries: ready.entries.clone(),
            hard_state: ready.hard_state,
            compact: None,
        }
    }

    fn wait_for_sync(&mut self, id: PeerId, mut waits: Unsynced, has_write: bool) {
        if self.options.fault == Some(Fault::PromiseBeforeSync) {
            for message in std::mem::take(&mut waits.messages) {
                self.send(message);
            }
        }
        let sequence = waits.sequence;
        let life = self.life_mut(id).expect("a pumped server is up");
        let idle = life.unsynced.is_empty();
        life.unsynced.push_back(waits);
        if idle && !has_write {
            return self.on_synced(id, sequence);
        }
        let (low, high) = self.options.sync_us;
        let after = Duration::from_micros(self.rng.random_range(low..=high));
        self.schedule(after, id, true, Event::Synced(sequence));
    }

    /// The disk has synced everything up to `sequence`.
    pub fn on_synced(&mut self, id: PeerId, sequence: u64) {
        self.disks[&id].sync_through(sequence);
        loop {
            let Some(life) = self.life_mut(id) else {
                return;
            };
            if life
                .unsynced
                .front()
                .is_none_or(|waits| waits.sequence > sequence)
            {
                break;
            }
            let Some(waits) = life.unsynced.pop_front() else {
                break;
            };
            life.node.on_persist_ready(waits.ready);
            self.observe(id, false);
            for message in waits.messages {
                self.send(message);
            }
            if let Some(checkpoint) = waits.install {
                self.install(id, &checkpoint);
            }
        }
        self.touch(id);
    }

    fn install(&mut self, id: PeerId, checkpoint: &Checkpoint) {
        let service = Service::restore(checkpoint);
        let life = self
            .servers
            .get_mut(&id)
            .and_then(|server| server.life.as_mut());
        let life = life.expect("a synced server is up");
        self.history
            .on_install(id, life.service.applied.index, &service);
        life.service = service;
        life.to_apply
            .retain(|entry| entry.index > checkpoint.at.index);
        life.node.advance_apply_to(checkpoint.at.index);
    }

    fn on_read_state(&mut self, id: PeerId, read: &ReadState) {
        if read.request_context.len() < 8 {
            return;
        }
        let number = (&read.request_context[..8]).get_u64();
        let life = self.life_mut(id).expect("a pumped server is up");
        if let Some(floor) = life.reads.remove(&number) {
            self.history.on_read(id, floor, read.index);
        }
    }

    fn plan_apply(&mut self, id: PeerId, committed: Vec<Entry>) {
        let (low, high) = self.options.apply_us;
        let life = self.life_mut(id).expect("a pumped server is up");
        life.to_apply.extend(committed);
        if high == 0 {
            return self.on_apply(id);
        }
        if !std::mem::replace(&mut life.apply_scheduled, true) {
            let after = Duration::from_micros(self.rng.random_range(low..=high));
            self.schedule(after, id, true, Event::Apply);
        }
    }

    /// Applies everything that waits.
    pub fn on_apply(&mut self, id: PeerId) {
        // Entries reach the checkers in the order given; a commit index that moved in this
        // Ready must be known to them first.
        self.observe(id, true);
        while let Some(life) = self.life_mut(id) {
            life.apply_scheduled = false;
            let Some(entry) = life.to_apply.pop_front() else {
                break;
            };
            self.apply_entry(id, &entry);
        }
        if let Some(life) = self.life_mut(id) {
            let applied = life.service.applied.index;
            life.node.advance_apply_to(applied);
        }
        self.touch(id);
    }

    fn apply_entry(&mut self, id: PeerId, entry: &Entry) {
        match self.options.fault {
            Some(Fault::SkipEntry) if id == 2 && entry.index % 10 == 9 => return,
            Some(Fault::ApplyTwice) if entry.index % 10 == 9 => self.apply_to_service(id, entry),
            Some(Fault::ApplyOther) if id == 3 && entry.index % 10 == 9 => {
                let mut other = entry.clone();
                other.data = bytes::Bytes::from_static(b"something else");
                return self.apply_to_service(id, &other);
            }
            _ => {}
        }
        self.apply_to_service(id, entry);
    }

    fn apply_to_service(&mut self, id: PeerId, entry: &Entry) {
        let server = self.servers.get_mut(&id).expect("the server exists");
        let life = server.life.as_mut().expect("a server that applies is up");
        let before = life.service.applied.index;
        let is_command = entry.entry_type() == EntryType::EntryNormal;
        life.service.apply(entry, is_command);
        self.history
            .on_apply(id, entry, before, &life.service, &server.disk);
        if life.view.role == Role::Leader {
            self.history.acknowledged = self.history.acknowledged.max(entry.index);
        }
        if !is_command {
            self.change_members(id, entry);
        }
        self.maybe_compact(id, entry);
    }

    fn change_members(&mut self, id: PeerId, entry: &Entry) {
        let change = change_of(entry);
        let life = self.life_mut(id).expect("a server that applies is up");
        let changed = life.node.apply_conf_change(&change);
        if let Ok(conf_state) = &changed {
            life.service.conf_state = conf_state.clone();
        }
        self.trace(|| format!("{id} applies {}: {change:?} -> {changed:?}", entry.index));
        self.history.on_conf_change(id, entry.index, changed.ok());
        self.observe(id, true);
    }

    /// Takes a checkpoint at each multiple of the interval and drops the log before it. A
    /// changed membership is saved at once, too: a new member needs a snapshot that names it.
    fn maybe_compact(&mut self, id: PeerId, entry: &Entry) {
        let Some(interval) = self.options.snapshot_interval else {
            return;
        };
        let due = (entry.index + 1).is_multiple_of(interval)
            && self.options.fault != Some(Fault::NeverCompact);
        if !due && entry.entry_type() == EntryType::EntryNormal {
            return;
        }
        let kept = self.options.kept_entries;
        let server = self.servers.get_mut(&id).expect("the server exists");
        let Some(life) = server.life.as_mut() else {
            return;
        };
        // A log that is cut above what the replica knows to be applied would look to it as
        // if a snapshot had come in.
        life.node.advance_apply_to(entry.index);
        let checkpoint = Rc::new(life.service.checkpoint());
        let truncated = server.disk.current(|log| {
            let to: Index = entry.index.saturating_sub(kept);
            match log.term(to) {
                Some(term) if due && to > log.truncated.index => EntryId { term, index: to },
                _ => log.truncated,
            }
        });
        let compact = Some((checkpoint, truncated));
        let sequence = server.disk.write(Batch {
            compact,
            ..Batch::default()
        });
        if life.unsynced.is_empty() {
            server.disk.sync_through(sequence);
        }
    }
}

fn checkpoint_of(snapshot: &Snapshot) -> Rc<Checkpoint> {
    let metadata = snapshot.metadata.clone().unwrap_or_default();
    Rc::new(Checkpoint {
        at: EntryId {
            term: metadata.term,
            index: metadata.index,
        },
        conf_state: metadata.conf_state.unwrap_or_default(),
        data: snapshot.data.clone(),
    })
}

/// The membership change in an entry, in its second form.
fn change_of(entry: &Entry) -> ConfChangeV2 {
    if entry.entry_type() == EntryType::EntryConfChangeV2 {
        return ConfChangeV2::decode(entry.data.clone()).unwrap_or_default();
    }
    let change = ConfChange::decode(entry.data.clone()).unwrap_or_default();
    let single = ConfChangeSingle {
        change_type: change.change_type,
        node_id: change.node_id,
    };
    ConfChangeV2 {
        changes: vec![single],
        context: change.context,
        ..ConfChangeV2::default()
    }
}
