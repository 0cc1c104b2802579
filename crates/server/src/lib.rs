//! Services and transport of a StrataKV node: bytes between the network and the stepped core.
//!
//! One port serves gRPC (TiKV's storage service, PD's service, StrataKV's own) and plain
//! HTTP. Every handler is a thin adapter: it turns a message into a request of the store
//! or of the scheduler, waits within the deadline, and turns the result into the answer
//! that published clients expect.

mod clerk_service;
mod cluster;
pub mod config;
mod deadline;
mod disk;
mod file_limit;
mod http;
mod listener;
mod logging;
mod metrics;
mod open;
mod options;
mod pd;
mod raw;
mod settings;
mod store_call;
mod strata_service;
mod transport;

pub mod node;

pub use listener::serve_port;
pub use options::{DEFAULT_CLUSTER_TOKEN, NodeError, NodeOptions, REGIONS_MAX, REGIONS_MIN};
pub use settings::network_threads;

#[cfg(test)]
mod fuzz_tests;
