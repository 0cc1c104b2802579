//! The Rust client: region cache, retries, raw calls.
