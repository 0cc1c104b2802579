//! Applies committed entries to the kv engine.
//!
//! Shard    Hands over, per region and in order, entries that are committed and synced in
//!          this store's raft engine, each with the requests that wait for it.
//! Apply    Executes the entries of all regions at hand into one batch, reading through an
//!          overlay of that batch, and adds each region's apply state.
//! Driver   Writes the batch (unsynced: what a crash takes is replayed from the log), then
//!          delivers the replies, hands on the reads that waited for a clock, and tells
//!          the shards what is applied. Then comes the rest, if the batch was full.
//!
//! Invariants
//! * Data and the apply state that speaks of them are in one batch.
//! * Nothing here depends on this store alone: not its clock, not who leads, not whether
//!   someone waits. Replicas that apply the same entries hold the same bytes.
//! * Entries of a region come without a gap; a gap stops the process.
//! * A batch ends with the entry that fills it: what entries write can be far more than what
//!   they hold, as an append writes a whole value. Where it ends changes nothing but memory.
//! * A command that is refused changes nothing and does not stop those after it.
//!
//! Elsewhere: what comes in and goes out (`apply_task`), what each command does
//! (`apply_command`), how far a batch goes (`apply_extent`), reading the batch (`overlay`), what runs only once (`session_table`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use strata_proto::eraftpb::{Entry, EntryType};
use strata_proto::metapb::Region;
use strata_proto::raft_cmdpb::AdminRequest;
use strata_proto::stratapb::{DataCommand, EntryCommand, RaftApplyState};
use strata_raft::{EntryId, planted};
use strata_storage::{Cf, Durability, Engine, WriteBatch, keys, record};

use crate::apply_admin::{AdminContext, AdminOutcome, execute_admin};
use crate::apply_command::{CommandContext, execute};
use crate::apply_extent::Extent;
pub use crate::apply_task::{Applied, ApplyTask, EntriesTask, Proposal, RegionChange, Waiting};
use crate::error::Error;
use crate::metrics::StoreMetrics;
use crate::overlay::Overlay;
use crate::request::{Answer, CommandOutcome, Reply};
use crate::serve::ReadFault;
use crate::session_table::SessionTable;
use crate::system::SystemStateMachine;
use crate::task::ReadTask;
use crate::write_stages::ExecutedWrite;

/// What a round did to one region.
#[derive(Debug, Default)]
struct Touched {
    state: RaftApplyState,
    entry_bytes: usize,
    changes: Vec<RegionChange>,
    /// The region was destroyed: no apply state is written.
    gone: bool,
}

/// What one round of applying yields.
///
/// Precondition for all but `batch`: the batch is written. Then the replies are delivered,
/// the reads served, and `applied` goes to the shards of its regions.
#[derive(Debug)]
pub struct ApplyOutput {
    /// To be written to the kv engine.
    pub batch: WriteBatch,
    /// Unsynced for data; synced for what changes a region.
    pub durability: Durability,
    /// Replies with their results.
    pub replies: Vec<(Reply, Result<Answer, Error>)>,
    /// Writes that were executed and are among the replies; their times are recorded when
    /// these are delivered.
    pub(crate) writes: Vec<ExecutedWrite>,
    /// Reads that waited for a clock entry.
    pub reads: Vec<ReadTask>,
    /// Progress by region.
    pub applied: Vec<Applied>,
    /// What the batch had no room for; to be applied once it is written, before anything
    /// else of the same regions.
    pub rest: Vec<ApplyTask>,
}

/// Applying met something that a correct store cannot meet. The process stops.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyFault {
    /// An engine failed, or data on disk are damaged.
    #[error(transparent)]
    Read(#[from] ReadFault),
    /// The system region's records cannot be read.
    #[error(transparent)]
    System(#[from] crate::system::SystemViewError),
    /// A session's record is not one that this version writes.
    #[error("region {region_id}: the record of a client session is damaged: {detail}")]
    CorruptSession {
        /// The region.
        region_id: u64,
        /// What is wrong with it.
        detail: &'static str,
    },
    /// An entry cannot be decoded.
    #[error("region {region_id}: entry {index} cannot be decoded")]
    CorruptEntry {
        /// The region.
        region_id: u64,
        /// Index of the entry.
        index: u64,
    },
    /// An entry asks for what this version does not know; a newer one wrote it.
    #[error("region {region_id}: entry {index} needs a newer version of this program")]
    UnknownEntry {
        /// The region.
        region_id: u64,
        /// Index of the entry.
        index: u64,
    },
}

/// A region as far as applying needs it.
#[derive(Debug)]
pub(crate) struct ApplyPeer {
    pub region: Arc<Region>,
    pub state: RaftApplyState,
    pub sessions: SessionTable,
    /// True: this store's peer was removed by an entry. What follows in the log is not this
    /// store's any more.
    pub removed: bool,
}

/// Applies the entries of the regions that belong to it.
pub struct ApplyShard {
    store_id: u64,
    /// Boxed: a search goes over keys that lie close together.
    peers: BTreeMap<u64, Box<ApplyPeer>>,
    system: Arc<dyn SystemStateMachine>,
    metrics: Arc<StoreMetrics>,
    max_batch_bytes: usize,
}

impl ApplyShard {
    /// A shard without regions. A batch takes no further entry once it and its answers have
    /// `max_batch_bytes`.
    pub fn new(
        store_id: u64,
        max_batch_bytes: usize,
        system: Arc<dyn SystemStateMachine>,
        metrics: Arc<StoreMetrics>,
    ) -> Self {
        ApplyShard {
            store_id,
            peers: BTreeMap::new(),
            system,
            metrics,
            max_batch_bytes,
        }
    }

    /// Adds a region with the state that is on disk.
    pub fn add_region(&mut self, region: Arc<Region>, state: RaftApplyState) {
        let peer = ApplyPeer {
            region,
            state,
            sessions: SessionTable::default(),
            removed: false,
        };
        self.peers.insert(peer.region.id, Box::new(peer));
    }

    /// Executes tasks into one batch, at least an entry and as many as it has room for.
    ///
    /// # Errors
    /// See [`ApplyFault`]; nothing of the output may be used, the process stops.
    ///
    /// # Panics
    /// If entries of a region are missing, or a task names a region that was not added.
    pub fn apply<E: Engine>(
        &mut self,
        kv: &E,
        tasks: Vec<ApplyTask>,
    ) -> Result<ApplyOutput, ApplyFault> {
        let batch_bytes = self.max_batch_bytes;
        self.apply_to(kv, tasks, Extent::whole(batch_bytes))
    }

    /// Executes tasks as [`ApplyShard::apply`] does, up to a batch of `batch_bytes`, and stops
    /// before an entry that reads, that belongs to a session or that changes its region: how long
    /// these take is not seen from their size. May do nothing; the rest is for `apply`.
    ///
    /// # Errors
    /// As `apply`.
    ///
    /// # Panics
    /// As `apply`.
    pub fn apply_quick<E: Engine>(
        &mut self,
        kv: &E,
        tasks: Vec<ApplyTask>,
        batch_bytes: usize,
    ) -> Result<ApplyOutput, ApplyFault> {
        self.apply_to(kv, tasks, Extent::quick(batch_bytes))
    }

    fn apply_to<E: Engine>(
        &mut self,
        kv: &E,
        tasks: Vec<ApplyTask>,
        extent: Extent,
    ) -> Result<ApplyOutput, ApplyFault> {
        let output = ApplyOutput {
            batch: WriteBatch::new(),
            durability: Durability::Unsynced,
            replies: Vec::new(),
            writes: Vec::new(),
            reads: Vec::new(),
            applied: Vec::new(),
            rest: Vec::new(),
        };
        let (system, metrics) = (self.system.clone(), self.metrics.clone());
        let mut round = Round {
            kv,
            store_id: self.store_id,
            system: &*system,
            metrics: &metrics,
            overlay: Overlay::default(),
            changes: Vec::new(),
            answer_bytes: 0,
            extent,
            output,
        };
        let mut touched: BTreeMap<u64, Touched> = BTreeMap::new();
        let mut tasks = tasks.into_iter();
        let mut left = None;
        for task in tasks.by_ref() {
            left = self.do_task(&mut round, &mut touched, task)?;
            if left.is_some() || round.is_full() {
                break;
            }
        }
        round.output.rest = left.into_iter().chain(tasks).collect();
        for (region_id, touched) in touched {
            if !touched.gone {
                record::put(
                    round.overlay.batch_mut(),
                    Cf::Raft,
                    keys::apply_state(region_id),
                    &touched.state,
                );
            }
            // Planted: the rule below, for a change of peers.
            let unsynced = |change: &RegionChange| {
                planted!(ConfChangeNotSynced) && matches!(change, RegionChange::Conf { .. })
            };
            if !touched.changes.iter().all(unsynced) {
                // Crash rule 2: a change of a region is synced before anyone learns of it.
                round.output.durability = Durability::Synced;
            }
            round.output.applied.push(Applied {
                region_id,
                state: touched.state,
                entry_bytes: touched.entry_bytes,
                changes: touched.changes,
            });
        }
        self.metrics.apply_batches.increment();
        let Round {
            overlay,
            mut output,
            ..
        } = round;
        output.batch = overlay.into_batch();
        Ok(output)
    }

    /// Returns what it had no room for.
    fn do_task<E: Engine>(
        &mut self,
        round: &mut Round<'_, E>,
        touched: &mut BTreeMap<u64, Touched>,
        task: ApplyTask,
    ) -> Result<Option<ApplyTask>, ApplyFault> {
        let (region_id, bytes) = (task.region_id(), task.bytes());
        match task {
            ApplyTask::Entries(task) => {
                let peer = self
                    .peers
                    .get_mut(&region_id)
                    .unwrap_or_else(|| panic!("region {region_id}: apply does not know it"));
                let entries = task.entries.len();
                let left = round.apply_task(peer, task)?;
                let left_entries = left.as_ref().map_or(0, |left| left.entries.len());
                let left = left.map(ApplyTask::Entries);
                let left_bytes = left.as_ref().map_or(0, ApplyTask::bytes);
                let done = entries - left_entries;
                if done == 0 {
                    return Ok(left);
                }
                self.metrics.applied_entries.add(done as u64);
                let touched = touched.entry(region_id).or_default();
                touched.entry_bytes += bytes - left_bytes;
                touched.state = peer.state;
                touched.changes.append(&mut round.changes);
                return Ok(left);
            }
            ApplyTask::AddRegion { region, state } => self.add_region(region, state),
            ApplyTask::BeginInstall {
                region,
                state,
                batch,
            } => {
                self.add_region(region, state);
                round.overlay.batch_mut().append(batch);
                let touched = touched.entry(region_id).or_default();
                touched.state = state;
                touched.changes.push(RegionChange::InstallBegun);
            }
            ApplyTask::Destroy { batch, .. } => {
                let gone = self.peers.remove(&region_id);
                round.overlay.batch_mut().append(batch);
                let touched = touched.entry(region_id).or_default();
                touched.state = gone.map(|peer| peer.state).unwrap_or_default();
                touched.changes.push(RegionChange::Destroyed);
                touched.gone = true;
            }
        }
        Ok(None)
    }
}

/// One batch under construction.
pub(crate) struct Round<'a, E> {
    kv: &'a E,
    pub store_id: u64,
    system: &'a dyn SystemStateMachine,
    metrics: &'a StoreMetrics,
    pub overlay: Overlay,
    /// Changes of the region whose task is being done.
    pub changes: Vec<RegionChange>,
    /// Bytes of values in the answers.
    answer_bytes: usize,
    extent: Extent,
    pub output: ApplyOutput,
}

impl<E: Engine> Round<'_, E> {
    fn is_full(&self) -> bool {
        self.overlay.bytes() + self.answer_bytes >= self.extent.batch_bytes()
    }

    /// Returns the entries that the batch had no room for.
    fn apply_task(
        &mut self,
        peer: &mut ApplyPeer,
        task: EntriesTask,
    ) -> Result<Option<EntriesTask>, ApplyFault> {
        let (region_id, committed) = (task.region_id, task.committed);
        let mut proposals = task.proposals.into_iter().peekable();
        let mut entries = task.entries.into_iter();
        while let Some(entry) = entries.next() {
            // What follows a removal is not this peer's.
            let command = match peer.removed {
                true => None,
                false => decode(region_id, &entry)?,
            };
            if !self.extent.takes(&entry, command.as_ref()) {
                return Ok(Some(EntriesTask {
                    region_id,
                    entries: std::iter::once(entry).chain(entries).collect(),
                    proposals: proposals.collect(),
                    committed,
                }));
            }
            let mut waiting = Vec::new();
            while let Some(proposal) =
                proposals.next_if(|proposal| proposal.id.index <= entry.index)
            {
                if proposal.id == EntryId::of(&entry) {
                    waiting = proposal.waiting;
                } else {
                    // Another leader's entry took the place: the command never happens.
                    self.refuse(proposal.waiting, &Error::StaleCommand { region_id });
                }
            }
            self.apply_entry(peer, (&entry, command), waiting, committed)?;
            if self.is_full() && !entries.as_slice().is_empty() {
                return Ok(Some(EntriesTask {
                    region_id,
                    entries: entries.collect(),
                    proposals: proposals.collect(),
                    committed,
                }));
            }
        }
        let late = proposals.next().map(|proposal| proposal.id.index);
        assert_eq!(
            late, None,
            "region {region_id}: a proposal lies behind its task"
        );
        Ok(None)
    }

    fn apply_entry(
        &mut self,
        peer: &mut ApplyPeer,
        (entry, command): (&Entry, Option<EntryCommand>),
        waiting: Vec<Waiting>,
        committed: Duration,
    ) -> Result<(), ApplyFault> {
        let region_id = peer.region.id;
        if peer.removed {
            // Committed: the others may execute it.
            let leader = None;
            self.refuse(waiting, &Error::Undetermined { region_id, leader });
            return Ok(());
        }
        assert_eq!(
            entry.index,
            peer.state.applied_index + 1,
            "region {region_id}: entry {} follows applied index {}",
            entry.index,
            peer.state.applied_index
        );
        peer.state.applied_index = entry.index;
        peer.state.applied_term = entry.term;
        if entry.entry_type() != EntryType::EntryNormal {
            return self.apply_conf_change(peer, entry, waiting);
        }
        let Some(command) = command else {
            // A new leader's first entry; nobody can wait for it.
            assert!(
                waiting.is_empty(),
                "region {region_id}: a request waits for an empty entry"
            );
            return Ok(());
        };
        peer.state.region_clock_ms = peer.state.region_clock_ms.max(command.leader_clock_ms);
        if let Some(admin) = &command.admin {
            return self.apply_admin(peer, &command, admin, &waiting);
        }
        if !command.commands.is_empty() && version_of(&peer.region) != entry_version(&command) {
            let current = vec![(*peer.region).clone()];
            self.refuse(waiting, &Error::EpochNotMatch { region_id, current });
            return Ok(());
        }
        let outcomes = self.execute_all(peer, entry.index, &command.commands)?;
        self.answer_bytes += outcomes.iter().map(CommandOutcome::bytes).sum::<usize>();
        self.answer(waiting, outcomes, committed);
        Ok(())
    }

    fn apply_admin(
        &mut self,
        peer: &mut ApplyPeer,
        command: &EntryCommand,
        admin: &AdminRequest,
        waiting: &[Waiting],
    ) -> Result<(), ApplyFault> {
        assert!(
            waiting.is_empty(),
            "region {}: {} requests wait for an admin command",
            peer.region.id,
            waiting.len()
        );
        let mut context = AdminContext {
            region: &peer.region,
            state: &mut peer.state,
        };
        if execute_admin(&mut context, command, admin)? == AdminOutcome::Refused {
            self.metrics.admin_refused.increment();
        }
        Ok(())
    }

    fn execute_all(
        &mut self,
        peer: &mut ApplyPeer,
        index: u64,
        commands: &[DataCommand],
    ) -> Result<Vec<CommandOutcome>, ApplyFault> {
        let mut context = CommandContext {
            kv: self.kv,
            system: self.system,
            overlay: &mut self.overlay,
            sessions: &mut peer.sessions,
            metrics: self.metrics,
            region: &peer.region,
            clock_ms: clock_of(&peer.state),
            index,
        };
        (0..)
            .zip(commands)
            .map(|(place, command)| execute(&mut context, place, command))
            .collect()
    }

    fn answer(
        &mut self,
        waiting: Vec<Waiting>,
        outcomes: Vec<CommandOutcome>,
        committed: Duration,
    ) {
        self.output.writes.reserve(waiting.len());
        let mut outcomes = outcomes.into_iter();
        for one in waiting {
            match one {
                Waiting::Write {
                    commands,
                    reply,
                    times,
                    ..
                } => {
                    let own: Vec<_> = outcomes.by_ref().take(commands).collect();
                    assert_eq!(
                        own.len(),
                        commands,
                        "an entry holds fewer commands than its senders"
                    );
                    if let Some(reply) = reply {
                        let write = ExecutedWrite { times, committed };
                        self.output.writes.push(write);
                        let result = Ok(Answer::Written(own));
                        self.output.replies.push((reply, result));
                    }
                }
                Waiting::System { reply, .. } => {
                    let response = match outcomes.next() {
                        Some(CommandOutcome::System(response)) => response,
                        _ => Bytes::new(),
                    };
                    let reply = reply.map(|reply| (reply, Ok(Answer::SystemWritten(response))));
                    self.output.replies.extend(reply);
                }
                Waiting::Clock(read) => self.output.reads.push(read),
                Waiting::Admin { .. } => panic!("a change of peers waits for a data entry"),
            }
        }
    }

    pub(crate) fn refuse(&mut self, waiting: Vec<Waiting>, error: &Error) {
        for one in waiting {
            one.refuse(error.clone(), &mut self.output.replies);
        }
    }
}

/// The clock by which commands are judged.
fn clock_of(state: &RaftApplyState) -> u64 {
    // Planted: it is the region's, the same on every replica.
    #[cfg(feature = "planted-faults")]
    if planted!(ExpiryByLocalClock) {
        return strata_raft::planted::wall_ms();
    }
    state.region_clock_ms
}

fn version_of(region: &Region) -> u64 {
    region
        .region_epoch
        .as_ref()
        .map_or(0, |epoch| epoch.version)
}

fn entry_version(command: &EntryCommand) -> u64 {
    command
        .region_epoch
        .as_ref()
        .map_or(0, |epoch| epoch.version)
}

/// The command of an entry; none in a change of peers, nor in the first entry of a leader.
fn decode(region_id: u64, entry: &Entry) -> Result<Option<EntryCommand>, ApplyFault> {
    if entry.entry_type() != EntryType::EntryNormal || entry.data.is_empty() {
        return Ok(None);
    }
    let command =
        EntryCommand::decode(entry.data.clone()).map_err(|_| ApplyFault::CorruptEntry {
            region_id,
            index: entry.index,
        })?;
    Ok(Some(command))
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "apply_fuzz_tests.rs"]
mod fuzz_tests;
