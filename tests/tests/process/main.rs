//! Tests over real processes. Each starts a cluster of its own; one runs at a time.

mod bad_input;
mod bad_input_import;
mod bad_input_requests;
mod clerk;
mod command_line;
mod crash;
mod debug;
mod direct;
mod import_export;
mod manual;
mod operator;
mod planted;
mod quorum;
mod scheduler;
mod syncs;
mod tikv_client_raw;
