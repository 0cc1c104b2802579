//! What can go wrong: the kinds of fault, and one fault of a plan.
//!
//! They are plain data, which plans are made of and written down as. What each does to a cluster
//! is in `faults`.

use serde::{Deserialize, Serialize};

/// A kind of fault. Lengths of time are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// The stores fall into two groups that do not hear each other, or all hear all again.
    Partition,
    /// One direction of one link goes dead.
    OneWay,
    /// One link goes dead in both directions.
    CutLink,
    /// A leader is cut off from everybody.
    IsolateLeader,
    /// A store loses its power and starts again later.
    PowerCut,
    /// A store's process is killed and starts again later.
    Kill,
    /// All stores lose their power at once.
    PowerCutEverywhere,
    /// A store stands still for up to a second.
    Pause,
    /// A wall clock is stepped by up to two seconds.
    WallStep,
    /// A monotonic clock runs faster or slower than others, up to the bound of the lease.
    Drift,
    /// A leadership is handed over.
    Transfer,
    /// A disk becomes slow, or good again.
    SlowDisk,
    /// The next sync of a store's raft engine fails.
    FailedSync,
    /// The network becomes unreliable, or fair again.
    Weather,
    /// A process stands still for seconds, up to half a minute; its clock then has jumped.
    LongPause,
    /// The raft shards of a store stand still for seconds; its other threads go on.
    StuckShards,
    /// A wall clock is set wrong by minutes to years, ahead or behind.
    WallJump,
    /// One direction of a link takes hundreds of milliseconds.
    SlowLink,
    /// Requests are held back on their way, past their deadline.
    HeldRequests,
    /// A store is down for seconds, until others have gone on without it.
    LongOutage,
    /// The next write of one of a store's engines fails.
    FailedWrite,
    /// The next sync of a store's kv engine fails.
    FailedDataSync,
    /// The next read of one of a store's engines fails.
    FailedRead,
    /// An operation on a store's snapshot files fails: no room, a sync, a read, a rename.
    FailedFile,
    /// Apply shards, readers and workers of a store get their turns late.
    LateWorkers,
    /// The streams of the next snapshots break off on their way.
    BrokenStreams,
    /// The stores that install the next snapshots lose their power meanwhile.
    CrashInstalling,
    /// A store loses its folder and comes back empty. It takes no part from then on.
    Wipe,
    /// A region gets another member, or loses one, or two change their roles.
    MovePeers,
    /// Several small faults hit the members of one region within seconds.
    RegionTrouble,
    /// A store's process ends again and again, and is back at once each time.
    CrashLoop,
}

impl FaultKind {
    /// Those that every row of any size can bear.
    pub const ALL: [FaultKind; 14] = [
        FaultKind::Partition,
        FaultKind::OneWay,
        FaultKind::CutLink,
        FaultKind::IsolateLeader,
        FaultKind::PowerCut,
        FaultKind::Kill,
        FaultKind::PowerCutEverywhere,
        FaultKind::Pause,
        FaultKind::WallStep,
        FaultKind::Drift,
        FaultKind::Transfer,
        FaultKind::SlowDisk,
        FaultKind::FailedSync,
        FaultKind::Weather,
    ];

    /// Those that a plan draws beside them. `Wipe` and `MovePeers` have their own rules.
    pub const FURTHER: [FaultKind; 15] = [
        FaultKind::LongPause,
        FaultKind::StuckShards,
        FaultKind::WallJump,
        FaultKind::SlowLink,
        FaultKind::HeldRequests,
        FaultKind::LongOutage,
        FaultKind::FailedWrite,
        FaultKind::FailedDataSync,
        FaultKind::FailedRead,
        FaultKind::FailedFile,
        FaultKind::LateWorkers,
        FaultKind::BrokenStreams,
        FaultKind::CrashInstalling,
        FaultKind::RegionTrouble,
        FaultKind::CrashLoop,
    ];
}

/// One fault of a plan. What it hits and for how long follows from its salt alone, so that
/// it is the same whichever others are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Strike {
    /// True time in milliseconds.
    pub at_ms: u64,
    /// What strikes.
    pub kind: FaultKind,
    /// Seed of its draws.
    pub salt: u64,
}
