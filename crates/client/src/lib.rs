//! The Rust client: region cache, retries, raw calls, and the calls of tools.
//!
//! A client is given one or more nodes of a cluster. Any of them names the others
//! (`scheduler`), says which region holds a key and who leads it (`cache`), and the
//! request then goes straight to that leader (`attempt`). A store that cannot serve it
//! answers with a typed region error; `verdict` turns that into what the cache forgets
//! and how long to wait, and `budget` bounds the whole operation in time.
//!
//! What always holds
//! * An operation ends within its time budget, with a value or a typed error.
//! * A write that may have been executed is never reported as failed: it is
//!   [`Error::Unknown`]. A write of which every attempt was refused before it was
//!   proposed is [`Error::Exhausted`] and has changed nothing.
//! * Answers over several regions lie in key order (descending for a reverse scan), and a
//!   limit counts over all of them.
//! * Waiting times are jittered by a generator whose seed is part of the options.
//!
//! [`clerk`] runs writes exactly once. Not here: transactions.

mod admin;
mod attempt;
mod budget;
mod cache;
mod channels;
pub mod clerk;
mod connection;
mod error;
mod options;
mod ranges;
mod raw;
mod replicas;
mod scheduler;
mod timestamps;
mod verdict;

pub use admin::Admin;
pub use cache::Route;
pub use connection::{AnswerBody, Connection};
pub use error::{Error, Result};
pub use options::Options;
pub use ranges::{Checksum, Scan};
pub use raw::{RawClient, Swapped};
pub use replicas::ReplicaRange;
pub use scheduler::{RegionInfo, Scheduler};
pub use timestamps::{Timestamp, Timestamps};
