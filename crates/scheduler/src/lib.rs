//! Ids, timestamps, stores and the region directory: what region 1 replicates.
//!
//! Replicated   [`SchedulerMachine`] executes [`SystemRequest`](strata_proto::stratapb::SystemRequest)s in log order: runs of
//!              ids, the timestamp mark, stores, regions whose range or peers changed.
//! In memory    The leader of region 1 keeps what heartbeats tell, [`Reports`], and gives
//!              out timestamps, [`TimestampOracle`]. A new leader starts both anew.
//! Look-ups     [`Directory`] finds regions by key or id; [`choose_leader`] says whom a
//!              client is sent to, or that it has to wait.
//!
//! Invariants
//! * The directory begins as the bootstrap layout, so that it covers the key space before
//!   the first report. Region 1 is never in it.
//! * All logic is stepped: clocks are passed in, nothing here waits.
//!
//! Elsewhere: the calls that clients make, and forwarding to the leader (crate `server`).

mod command;
mod directory;
mod lookup;
mod machine;
mod oracle;
mod records;
mod reports;

pub use command::{
    CommandError, Response, allocate_ids, put_store, read_response, report_region,
    reserve_timestamps,
};
pub use directory::{Directory, ReportRefused, ReportVerdict};
pub use lookup::choose_leader;
pub use machine::SchedulerMachine;
pub use oracle::{Grant, OracleError, TimestampOracle};
pub use records::{FIRST_ID, SYSTEM_REGION_ID, SystemState};
pub use reports::{Reports, StoreReport};

#[cfg(test)]
mod fuzz_tests;
