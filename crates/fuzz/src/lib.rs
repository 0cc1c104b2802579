//! Seeded mutations of real encodings, for the tests of all crates.
//!
//! A test of a decoder is three things: a corpus of encodings that the product itself made,
//! a [`Mutator`] that damages one of them, and what the decoder promises of any bytes. [`run`]
//! repeats that under fixed seeds, so that a run is the same everywhere, and names the seed of
//! a case that failed.
//!
//! Bytes     Bits flip, bytes change, pieces go, come twice or change places, two inputs are
//!           spliced, numbers take the ends of their range ([`Mutator::bytes`]).
//! Messages  The wire format of protobuf is taken apart ([`wire`]) and one field, however deep,
//!           gets another value, number or place: what comes out still decodes, mostly, and so
//!           reaches the code behind the decoder ([`Mutator::message`]).
//! Memory    [`memory::peak_of`] says how many bytes a piece of code had allocated at most:
//!           a length that an input claims must not be believed.
//!
//! A test dependency only: nothing of it is in the product.

pub mod memory;
mod mutator;
mod run;
pub mod wire;

pub use mutator::Mutator;
pub use run::{is_whole_run, run, seeds};
