//! The bytes of the log's files.
//!
//! A file has a header of one page and records behind it. A record is one write batch:
//!
//! | bytes | header | bytes | record |
//! |---|---|---|---|
//! | 0..8 | `STRATAL1` | 0..4 | CRC-32 of everything behind it |
//! | 8..16 | life of the file | 4..8 | bytes of the payload |
//! | 16..24 | sequence of its first record | 8..16 | mark of the life |
//! | 24..32 | oldest life that counts | 16..24 | sequence, one more than the last record's |
//! | 32..40 | mark of the life, a random number | 24..32 | last sequence that was synced when this was written |
//! | 40..44 | CRC-32 of these | 32.. | payload: changes, one after the other |
//!
//! A change is a byte (1 put, 2 delete, 3 delete a range), then a key and a value, a key, or two
//! keys, each behind its length as a varint. Integers are little-endian. CRC-32 is IEEE's.
//!
//! Files are used again: what lies behind the last record of a file is of an earlier life, or
//! was never written. A header is written over an earlier one: it lies in one sector, of which a disk
//! writes all or nothing. A record counts only with the mark of its file's life and the next sequence.
//! Nobody outside knows a mark, so no value that a client writes can hold what looks like a record.
//! Nothing here panics on what is read from disk.

use crate::batch::{Change, WriteBatch};

/// Bytes before the first record: a page, so that no write of a record touches the header.
pub(super) const FILE_HEADER_BYTES: u64 = 4096;
/// Bytes of a record before its payload.
pub(super) const RECORD_HEADER_BYTES: usize = 32;

const MAGIC: [u8; 8] = *b"STRATAL1";
/// Bytes of a header that mean something.
pub(super) const FILE_HEADER_FIELDS_BYTES: usize = 44;
/// Bytes of a header that its checksum covers.
const HEADER_SUMMED_BYTES: usize = 40;
const PUT: u8 = 1;
const DELETE: u8 = 2;
const DELETE_RANGE: u8 = 3;
/// Lives and sequences are below: there is room for all that follow.
const NUMBER_END: u64 = 1 << 62;
/// Longest varint of a length: 32 bits.
const VARINT_BYTES_MAX: usize = 5;

/// What a file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileHeader {
    /// Number of this use of the file; each use of any file has the next.
    pub life: u64,
    /// Sequence of the first record.
    pub first_sequence: u64,
    /// Files of earlier lives did not count any more when this life began.
    pub oldest_life: u64,
    /// Stands in each record of this life, and nowhere else.
    pub mark: u64,
}

impl FileHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; FILE_HEADER_FIELDS_BYTES] {
        let mut out = [0; FILE_HEADER_FIELDS_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..16].copy_from_slice(&self.life.to_le_bytes());
        out[16..24].copy_from_slice(&self.first_sequence.to_le_bytes());
        out[24..32].copy_from_slice(&self.oldest_life.to_le_bytes());
        out[32..40].copy_from_slice(&self.mark.to_le_bytes());
        let sum = crc32fast::hash(&out[..HEADER_SUMMED_BYTES]);
        out[HEADER_SUMMED_BYTES..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads the beginning of a file, as far as it goes; `None` if it is no header.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let fields = bytes.get(..FILE_HEADER_FIELDS_BYTES)?;
        let (summed, sum) = fields.split_at(HEADER_SUMMED_BYTES);
        let header = Self {
            life: u64_at(fields, 8),
            first_sequence: u64_at(fields, 16),
            oldest_life: u64_at(fields, 24),
            mark: u64_at(fields, 32),
        };
        let holds = fields[..8] == MAGIC && *sum == crc32fast::hash(summed).to_le_bytes();
        let sane = header.oldest_life <= header.life
            && header.life < NUMBER_END
            && header.first_sequence < NUMBER_END;
        (holds && sane).then_some(header)
    }
}

/// What stands before a record's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    /// Of everything behind it.
    pub checksum: u32,
    /// Bytes of the payload.
    pub length: usize,
    /// Of the life of the file that the record was written to.
    pub mark: u64,
    /// Place among all records.
    pub sequence: u64,
    /// This record and all before it were on disk when this one was written.
    pub synced: u64,
}

impl RecordHeader {
    /// Reads a header; `None` where the bytes end before.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let fields = bytes.get(..RECORD_HEADER_BYTES)?;
        Some(Self {
            checksum: u32_at(fields, 0),
            length: u32_at(fields, 4) as usize,
            mark: u64_at(fields, 8),
            sequence: u64_at(fields, 16),
            synced: u64_at(fields, 24),
        })
    }

    /// True if `record`, from its own header on, has this checksum.
    pub fn holds(&self, record: &[u8]) -> bool {
        record
            .get(4..RECORD_HEADER_BYTES + self.length)
            .is_some_and(|summed| crc32fast::hash(summed) == self.checksum)
    }
}

/// A record that is being made: room for the header, then the payload.
pub(super) struct RecordBuilder {
    bytes: Vec<u8>,
}

impl RecordBuilder {
    /// An empty one, with room for about `payload_bytes`.
    pub fn with_capacity(payload_bytes: usize) -> Self {
        let mut bytes = Vec::with_capacity(RECORD_HEADER_BYTES + payload_bytes);
        bytes.resize(RECORD_HEADER_BYTES, 0);
        Self { bytes }
    }

    /// Adds a put.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.bytes.push(PUT);
        self.field(key);
        self.field(value);
    }

    /// Adds all changes of a batch.
    pub fn changes(&mut self, batch: &WriteBatch) {
        for change in batch.changes() {
            match change {
                Change::Put { key, value, .. } => self.put(key, value),
                Change::Delete { key, .. } => {
                    self.bytes.push(DELETE);
                    self.field(key);
                }
                Change::DeleteRange { start, end, .. } => {
                    self.bytes.push(DELETE_RANGE);
                    self.field(start);
                    self.field(end);
                }
            }
        }
    }

    /// Bytes so far, with the header's.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Completes the record.
    ///
    /// # Panics
    /// If the payload is 4 GiB or more.
    pub fn finish(&mut self, mark: u64, sequence: u64, synced: u64) -> &[u8] {
        let length = self.bytes.len() - RECORD_HEADER_BYTES;
        let length = u32::try_from(length).expect("a batch of 4 GiB or more");
        self.bytes[4..8].copy_from_slice(&length.to_le_bytes());
        self.bytes[8..16].copy_from_slice(&mark.to_le_bytes());
        self.bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
        self.bytes[24..32].copy_from_slice(&synced.to_le_bytes());
        let sum = crc32fast::hash(&self.bytes[4..]);
        self.bytes[..4].copy_from_slice(&sum.to_le_bytes());
        &self.bytes
    }

    /// Appends a key or a value behind its length.
    fn field(&mut self, field: &[u8]) {
        let mut rest = field.len();
        while rest >= 0x80 {
            self.bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.bytes.push(rest as u8);
        self.bytes.extend_from_slice(field);
    }
}

/// A change as it lies in a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoredChange<'a> {
    /// Key, value, and where in the payload the value begins.
    Put(&'a [u8], &'a [u8], usize),
    /// Key.
    Delete(&'a [u8]),
    /// First key, and first key behind.
    DeleteRange(&'a [u8], &'a [u8]),
}

/// What is no change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unparsed;

/// Reads the changes of a payload; ends with `Err` where it does not parse.
pub(super) struct StoredChanges<'a> {
    payload: &'a [u8],
    at: usize,
}

impl<'a> StoredChanges<'a> {
    /// The changes of a payload.
    pub fn of(payload: &'a [u8]) -> Self {
        Self { payload, at: 0 }
    }

    fn field(&mut self) -> Option<&'a [u8]> {
        let mut length = 0usize;
        for place in 0..VARINT_BYTES_MAX {
            let byte = *self.payload.get(self.at)?;
            self.at += 1;
            length |= usize::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                let field = self.payload.get(self.at..self.at.checked_add(length)?)?;
                self.at += length;
                return Some(field);
            }
        }
        None
    }

    fn change(&mut self) -> Option<StoredChange<'a>> {
        let kind = self.payload[self.at];
        self.at += 1;
        let key = self.field()?;
        match kind {
            PUT => {
                let value = self.field()?;
                Some(StoredChange::Put(key, value, self.at - value.len()))
            }
            DELETE => Some(StoredChange::Delete(key)),
            DELETE_RANGE => Some(StoredChange::DeleteRange(key, self.field()?)),
            _ => None,
        }
    }
}

impl<'a> Iterator for StoredChanges<'a> {
    type Item = Result<StoredChange<'a>, Unparsed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.payload.len() {
            return None;
        }
        let change = self.change().ok_or(Unparsed);
        if change.is_err() {
            self.at = self.payload.len();
        }
        Some(change)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Cf;
    use proptest::prelude::*;

    #[test]
    fn a_header_is_read_as_it_was_written_and_every_flipped_bit_is_found() {
        let header = FileHeader {
            life: 7,
            first_sequence: 1 << 40,
            oldest_life: 3,
            mark: 0x1234_5678_9abc_def0,
        };
        let bytes = header.encode();
        assert_eq!(FileHeader::decode(&bytes), Some(header));
        for none in [&[0; 100][..], &[], &bytes[..43]] {
            assert_eq!(FileHeader::decode(none), None);
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FileHeader::decode(&damaged), None, "{bit}");
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_every_flipped_bit_is_found() {
        let mut batch = WriteBatch::new();
        batch.put(Cf::RaftLog, "key", vec![9; 300]);
        batch.delete(Cf::RaftLog, "gone");
        batch.delete_range(Cf::RaftLog, "from", "to");
        batch.put(Cf::RaftLog, "", "");
        let mut builder = RecordBuilder::with_capacity(10);
        builder.changes(&batch);
        let record = builder.finish(3, 44, 43).to_vec();
        let header = RecordHeader::decode(&record).unwrap();
        assert_eq!((header.mark, header.sequence, header.synced), (3, 44, 43));
        assert!(header.holds(&record));
        let payload = &record[RECORD_HEADER_BYTES..];
        // Behind a kind, a key behind its length of a byte, and a length of two bytes.
        let first = 1 + 1 + 3 + 2;
        let expected = [
            Ok(StoredChange::Put(b"key", &[9; 300], first)),
            Ok(StoredChange::Delete(b"gone")),
            Ok(StoredChange::DeleteRange(b"from", b"to")),
            Ok(StoredChange::Put(b"", b"", payload.len())),
        ];
        assert!(StoredChanges::of(payload).eq(expected));
        for bit in 0..record.len() * 8 {
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let header = RecordHeader::decode(&damaged).unwrap();
            assert!(!header.holds(&damaged), "bit {bit}");
        }
        assert!(!header.holds(&record[..record.len() - 1]));
    }

    proptest! {
        #[test]
        fn noise_is_no_change_and_never_a_panic(noise: Vec<u8>) {
            let count = StoredChanges::of(&noise).count();
            prop_assert!(count <= noise.len());
            let _ = RecordHeader::decode(&noise).map(|header| header.holds(&noise));
            let _ = FileHeader::decode(&noise);
        }
    }
}
