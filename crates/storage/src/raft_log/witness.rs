//! The witness: a small file that says up to where the log was synced.
//!
//! Why    Each record says up to where the log was synced when it was written. Of the last ones no
//!        record says it, and no file names the newest: what is cut off there, or damaged, would
//!        look like a write that a power cut tore.
//! Order  A sync of the log; then the witness, unsynced; only then does anyone hear that the sync is
//!        done.
//! After  a kill the system holds it as it was written: a log that ends before has lost what was
//!        promised. A power cut may leave an older witness, which vouches for less, and never one
//!        that is ahead of the log on disk. It lies in one sector, of which a disk writes all or
//!        nothing.
//! Absent in a folder of a version that wrote none: nothing is checked then.
//!
//! | bytes | |
//! |---|---|
//! | 0..8 | `STRATAW1` |
//! | 8..16 | life of the newest file |
//! | 16..24 | sequence of the last record that was synced, 0 if there is none |
//! | 24..28 | CRC-32 of these |
//!
//! Integers are little-endian.

use std::io;

use super::files::{LogFile, LogFolder};

const MAGIC: [u8; 8] = *b"STRATAW1";
const BYTES: usize = 28;
/// Bytes that the checksum covers.
const SUMMED_BYTES: usize = 24;

/// What a witness says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Witnessed {
    /// Life of the newest file.
    pub life: u64,
    /// Last record that was synced; those begin with 1.
    pub sequence: u64,
}

/// A witness is there and damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damaged;

impl Witnessed {
    fn encode(self) -> [u8; BYTES] {
        let mut out = [0; BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..16].copy_from_slice(&self.life.to_le_bytes());
        out[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        let sum = crc32fast::hash(&out[..SUMMED_BYTES]);
        out[SUMMED_BYTES..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; BYTES]) -> Result<Self, Damaged> {
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        let sum = crc32fast::hash(&bytes[..SUMMED_BYTES]);
        if bytes[..8] != MAGIC || bytes[SUMMED_BYTES..] != sum.to_le_bytes() {
            return Err(Damaged);
        }
        Ok(Self {
            life: u64_at(8),
            sequence: u64_at(16),
        })
    }
}

/// Reads the witness of `folder`; without one it vouches for nothing.
pub(super) fn read(folder: &impl LogFolder) -> io::Result<Result<Witnessed, Damaged>> {
    let Some(file) = folder.open_witness(false)? else {
        return Ok(Ok(Witnessed::default()));
    };
    let mut bytes = [0; BYTES];
    if file.length()? < BYTES as u64 {
        return Ok(Err(Damaged));
    }
    file.read_at(0, &mut bytes)?;
    Ok(Witnessed::decode(&bytes))
}

/// A witness that is written.
#[derive(Debug)]
pub(super) struct Witness<F> {
    file: F,
}

impl<F: LogFile> Witness<F> {
    /// The witness of `folder`, or a new one. All that it says now is on disk.
    pub fn open<D: LogFolder<File = F>>(folder: &D, says: Witnessed) -> io::Result<Self> {
        let file = match folder.open_witness(true)? {
            Some(file) => {
                file.write_at(0, &says.encode())?;
                file
            }
            None => folder.create_witness(&says.encode())?,
        };
        Ok(Self { file })
    }

    /// Writes what it says from now on, which is on disk already.
    pub fn write(&self, says: Witnessed) -> io::Result<()> {
        self.file.write_at(0, &says.encode())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_is_read_as_it_was_written_and_every_flipped_bit_is_found() {
        let says = Witnessed {
            life: 7,
            sequence: 1 << 40,
        };
        let bytes = says.encode();
        assert_eq!(Witnessed::decode(&bytes), Ok(says));
        for bit in 0..BYTES * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Witnessed::decode(&damaged), Err(Damaged), "{bit}");
        }
    }
}
