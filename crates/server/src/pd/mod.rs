//! The scheduler's side of a node: leading it, finding who leads it, and PD's protocol.
//!
//! Lead     When this store leads region 1, [`Leadership`] holds directory, reports and
//!          timestamps; it is loaded anew for each term (`leadership`).
//! Locate   Every node answers unary calls by asking the leader, for at most
//!          `scheduler.forward-time`; a forwarded call is never forwarded again (`locate`).
//! Report   Each store reports the regions that it leads to the leader of region 1
//!          (`reporter`).
//! Serve    `pdpb.PD` (`service`), its timestamps (`timestamps`).

mod answer;
mod leadership;
mod locate;
mod reporter;
mod service;
mod timestamps;

pub(crate) use leadership::{Leadership, wall_clock_ms};
pub(crate) use locate::{Locator, forwarding, is_forwarded};
pub(crate) use reporter::{ReportQueue, run_reporter};
pub(crate) use service::PdService;
