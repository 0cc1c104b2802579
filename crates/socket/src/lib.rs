//! What client and server do alike with a socket under HTTP/2.

mod gathered;

pub use gathered::{BUFFER_BYTES_MAX, Gathered};
