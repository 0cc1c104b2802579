//! A look at RocksDB's write-ahead logs before RocksDB opens them (crash rule 10).
//!
//! RocksDB reads a log record by record and decides by its recovery mode what damage
//! means. One thing it does not do for us: it loops for ever on a record type of
//! recycled logs where recycling is off, and one flipped bit makes such a type. So the records
//! are walked here first.
//!
//! A log is a row of blocks of 32 KiB. A record has a header of seven bytes: masked
//! CRC-32C of type and payload, length, type. No record crosses a block; a larger one is
//! cut into fragments (first, middle, last). A rest of less than seven bytes at a block's
//! end is padding; a header of zeros means that the rest of the block was never written.
//!
//! A foreign type is refused. What follows a damaged record is dropped by RocksDB (point in time)
//! and replayed from the raft log.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const BLOCK_BYTES: usize = 32 * 1024;
const HEADER_BYTES: usize = 7;
/// Record types that our settings write: whole, first, middle and last fragment.
const TYPE_MAX: u8 = 4;

static CRC32C: crc::Crc<u32, crc::Table<16>> =
    crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);

/// What is wrong with a record of a write-ahead log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalFault {
    /// A type that this program never writes.
    #[error("record of foreign type {0}")]
    ForeignType(u8),
}

/// Damage in a write-ahead log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {fault} at offset {offset}", file.display())]
pub struct WalDamage {
    /// The log.
    pub file: PathBuf,
    /// Where the damaged record begins, in bytes.
    pub offset: u64,
    /// What is wrong.
    pub fault: WalFault,
}

/// Walks all write-ahead logs in an engine's folder, oldest first. A folder that does not
/// exist has none.
///
/// # Errors
/// The outer error if a file cannot be read, the inner one is damage.
pub fn check_folder(folder: &Path) -> io::Result<Result<(), WalDamage>> {
    for file in log_files(folder)? {
        if let Err((offset, fault)) = check_log(&mut File::open(&file)?)? {
            return Ok(Err(WalDamage {
                file,
                offset,
                fault,
            }));
        }
    }
    Ok(Ok(()))
}

/// The write-ahead logs of a folder, oldest first: names of digits that end in `.log`.
fn log_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut numbered = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let is_log = path.extension().is_some_and(|ending| ending == "log");
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str()?.parse().ok());
        if let (true, Some(number)) = (is_log, number) {
            let number: u64 = number;
            numbered.push((number, path));
        }
    }
    numbered.sort();
    Ok(numbered.into_iter().map(|(_, path)| path).collect())
}

type Answer = Result<(), (u64, WalFault)>;

fn check_log(file: &mut (impl Read + Length)) -> io::Result<Answer> {
    let length = file.length()?;
    let mut block = vec![0; BLOCK_BYTES];
    let mut start = 0;
    while start < length {
        let filled = (length - start).min(BLOCK_BYTES as u64) as usize;
        let block = &mut block[..filled];
        file.read_exact(block)?;
        if let Err((at, fault)) = check_block(block) {
            return Ok(Err((start + at as u64, fault)));
        }
        start += filled as u64;
    }
    Ok(Ok(()))
}

/// Walks the records of one block. The error holds the place within the block.
fn check_block(block: &[u8]) -> Result<(), (usize, WalFault)> {
    let mut at = 0;
    while block.len() - at >= HEADER_BYTES {
        let header = &block[at..at + HEADER_BYTES];
        let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
        let kind = header[6];
        if header.iter().all(|byte| *byte == 0) {
            // RocksDB skips the rest of the block as well.
            return Ok(());
        }
        // The type comes before the checksum: RocksDB acts on it first.
        if kind > TYPE_MAX {
            return Err((at, WalFault::ForeignType(kind)));
        }
        let payload = at + HEADER_BYTES;
        match block.get(payload..payload + length) {
            Some(bytes) if checksum_holds(header, bytes) => at = payload + length,
            // RocksDB drops the rest of a block behind a damaged record, and so the walk
            // goes on with the next block.
            _ => return Ok(()),
        }
    }
    Ok(())
}

fn checksum_holds(header: &[u8], payload: &[u8]) -> bool {
    /// RocksDB stores checksums masked, because a log may hold checksums as payload.
    const MASK_DELTA: u32 = 0xa282_ead8;
    let mut digest = CRC32C.digest();
    digest.update(&header[6..7]);
    digest.update(payload);
    let masked = digest.finalize().rotate_right(15).wrapping_add(MASK_DELTA);
    header[..4] == masked.to_le_bytes()
}

/// Length of an open file; a trait so that tests walk bytes in memory.
trait Length {
    fn length(&self) -> io::Result<u64>;
}

impl Length for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    impl Length for Cursor<Vec<u8>> {
        fn length(&self) -> io::Result<u64> {
            Ok(self.get_ref().len() as u64)
        }
    }

    fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut digest = CRC32C.digest();
        digest.update(&[kind]);
        digest.update(payload);
        let masked = digest.finalize().rotate_right(15).wrapping_add(0xa282_ead8);
        let mut out = masked.to_le_bytes().to_vec();
        out.extend((payload.len() as u16).to_le_bytes());
        out.push(kind);
        out.extend(payload);
        out
    }

    /// Two whole blocks of records and one begun.
    fn log() -> Vec<u8> {
        let mut out = Vec::new();
        for kind in [2, 3] {
            out.extend(record(1, &[kind; 100]));
            let rest = BLOCK_BYTES - out.len() % BLOCK_BYTES - HEADER_BYTES;
            out.extend(record(kind, &vec![7; rest]));
        }
        out.extend(record(4, b"end"));
        out.extend(record(1, b"last"));
        out
    }

    fn check(log: Vec<u8>) -> Answer {
        check_log(&mut Cursor::new(log)).unwrap()
    }

    #[test]
    fn wal_walk_accepts_whole_torn_and_preallocated_logs() {
        assert_eq!(check(Vec::new()), Ok(()));
        assert_eq!(check(log()), Ok(()));
        let mut torn = log();
        torn.truncate(torn.len() - 2);
        assert_eq!(check(torn), Ok(()));
        let mut preallocated = log();
        preallocated.resize(preallocated.len() + 100_000, 0);
        assert_eq!(check(preallocated), Ok(()));
    }

    #[test]
    fn wal_walk_refuses_foreign_types_everywhere() {
        let length = log().len();
        for (at, offset) in [(6, 0), (length - 4 - 1, length - 4 - HEADER_BYTES)] {
            let mut damaged = log();
            assert_eq!(damaged[at], 1);
            damaged[at] |= 4;
            let expected = Err((offset as u64, WalFault::ForeignType(5)));
            assert_eq!(check(damaged), expected);
        }
    }

    /// RocksDB takes a header of zeros for the end of the block, whatever follows.
    #[test]
    fn wal_walk_goes_on_behind_zeros() {
        let mut damaged = log();
        damaged[107..BLOCK_BYTES].fill(0);
        assert_eq!(check(damaged.clone()), Ok(()));
        damaged[BLOCK_BYTES + 6] |= 8;
        let foreign = Err((BLOCK_BYTES as u64, WalFault::ForeignType(9)));
        assert_eq!(check(damaged), foreign);
    }

    #[test]
    fn wal_walk_goes_on_behind_a_damaged_block() {
        let mut damaged = log();
        damaged[20] ^= 1;
        assert_eq!(check(damaged.clone()), Ok(()));
        damaged[BLOCK_BYTES + 6] |= 8;
        let foreign = Err((BLOCK_BYTES as u64, WalFault::ForeignType(9)));
        assert_eq!(check(damaged), foreign);
    }

    proptest! {
        /// A flipped bit is passed over, or makes a type that is refused at its record.
        #[test]
        fn wal_walk_passes_or_names_every_flipped_bit(bit in 0..2 * BLOCK_BYTES * 8) {
            let mut damaged = log();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let starts = [0, 107, BLOCK_BYTES, BLOCK_BYTES + 107];
            let start = *starts.iter().rfind(|start| **start <= bit / 8).unwrap();
            let is_foreign = bit / 8 == start + 6 && damaged[bit / 8] > TYPE_MAX;
            let kind = damaged[start + 6];
            let expected = match is_foreign {
                true => Err((start as u64, WalFault::ForeignType(kind))),
                false => Ok(()),
            };
            prop_assert_eq!(check(damaged), expected);
        }

        #[test]
        fn wal_walk_never_panics(bytes: Vec<u8>, cut in 0..70_000usize) {
            let mut noise = log();
            noise.truncate(cut);
            noise.extend(bytes);
            let _ = check(noise);
        }
    }
}
