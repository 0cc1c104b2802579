//! Cluster tests with real processes and real clients.
