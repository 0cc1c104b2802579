//! What client and server do alike with a socket under HTTP/2 (RFC 9113).
//!
//! A connection reads from and writes to a [`Gathered`] socket as to any other. What tasks that are
//! ready together write goes out in one system call, and tasks run between two reads, so that both
//! ends of a connection work at the same time.

mod gathered;

pub use gathered::Gathered;
