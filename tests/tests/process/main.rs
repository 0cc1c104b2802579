//! Tests over real processes. Each starts a cluster of its own; one runs at a time.

mod bad_input;
mod bad_input_import;
mod bad_input_requests;
mod check;
mod clerk;
mod command_line;
mod crash;
mod debug;
mod direct;
mod disk_full;
mod import_export;
mod manual;
mod operator;
mod overload;
mod overload_connections;
mod planted;
mod quorum;
mod scheduler;
mod snapshot;
mod snapshot_broken;
mod snapshot_rejoin;
mod syncs;
mod tikv_client_raw;
