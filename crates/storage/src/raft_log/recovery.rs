//! Reading the log's files when it is opened. Nothing is written here.
//!
//! Headers   Of all files. The newest life says which lives count; of these none may be missing, nor
//!           the one that the witness names.
//! Records   Of each file from the oldest life on, into the index. A file is whole if its records
//!           reach to the first of the next life, as a life begins only when the one before is
//!           synced to its end.
//! Tail      The records of the newest life end where one does not check. That is a write that was
//!           under way, unless a record behind it, or the [`witness`], says that it was synced (crash
//!           rule 10). After a power cut the witness may be older than the last sync: damage to what
//!           that brought to disk then counts as torn, and the start check of the regions finds what
//!           is missing.
//!
//! The log goes on in a new life, never behind a tail: what lies there could be taken for records
//! once the bytes in front of it fit. Before that the records without a witness are written once more
//! ([`state`](super::state)).

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::files::{LogFile, LogFolder};
use super::form::{FILE_HEADER_BYTES, FileHeader, RECORD_HEADER_BYTES, RecordHeader};
use super::index::Index;
use super::witness::{self, Witnessed};

/// Bytes that are read at once when the log is opened.
const READ_BYTES: usize = 1 << 20;

/// What is wrong with the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFault {
    /// A file begins with something else than a header.
    #[error("damaged header at offset 0")]
    Header,
    /// A record does not check, and it was synced.
    #[error("damaged record at offset {0}")]
    Record(u64),
    /// A record checks, and its payload does not parse: it is of another version.
    #[error("record at offset {0} does not parse")]
    Form(u64),
    /// Two files say that they are of the same life.
    #[error("the file says that it is of life {0}, as another does")]
    Twin(u64),
    /// A file is gone that must be there; named is the one behind it.
    #[error("the file of life {0}, before this one, is missing")]
    Missing(u64),
    /// The newest file is gone; named is the witness.
    #[error("the log was synced in life {0}, and the file of that life is missing")]
    NewestMissing(u64),
    /// The witness does not check.
    #[error(
        "damaged; it says how far the log must reach, and holds nothing else: restore it, or remove \
         it to start without this check"
    )]
    Witness,
}

/// Damage in the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {fault}", file.display())]
pub struct LogDamage {
    /// The file.
    pub file: PathBuf,
    /// What is wrong.
    pub fault: LogFault,
}

/// Why the log could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecoveryError {
    /// It is damaged.
    #[error(transparent)]
    Damage(#[from] LogDamage),
    /// The system failed.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// A file whose records count.
#[derive(Debug)]
pub(super) struct LiveFile<F> {
    pub number: u32,
    pub file: Arc<F>,
    /// Number of this use of it.
    pub life: u64,
    /// What its records are marked with.
    pub mark: u64,
    /// Where its records end.
    pub end: u64,
    /// Bytes that were ever written to it.
    pub length: u64,
}

/// Where the records of a file end.
struct Walked {
    end: u64,
    /// The sequence after the last.
    next_sequence: u64,
    /// Where those begin of which no other says that they were synced.
    unproven: u64,
}

/// What was found.
pub(super) struct Recovered<F> {
    pub index: Index,
    /// By life.
    pub live: Vec<LiveFile<F>>,
    /// Files without records that count, each with its life.
    pub spare: Vec<(u32, F, u64)>,
    /// The life after the newest.
    pub next_life: u64,
    /// The sequence after the last.
    pub next_sequence: u64,
    /// Where in the newest file the records begin of which no other says that they were synced.
    pub unproven: u64,
}

/// Reads all files of `folder`, to write to them later if `write`.
pub(super) fn recover<D: LogFolder>(
    folder: &D,
    write: bool,
) -> Result<Recovered<D::File>, RecoveryError> {
    let mut by_life: BTreeMap<u64, (u32, D::File, FileHeader)> = BTreeMap::new();
    let damage = |number, fault| LogDamage {
        file: folder.path(number),
        fault,
    };
    let mut numbers = folder.list()?;
    numbers.sort_unstable();
    for number in numbers {
        let file = folder.open(number, write)?;
        match read_header(&file)? {
            None => return Err(damage(number, LogFault::Header).into()),
            Some(header) => {
                let life = header.life;
                if by_life.insert(life, (number, file, header)).is_some() {
                    return Err(damage(number, LogFault::Twin(life)).into());
                }
            }
        }
    }
    let witnessed = read_witness(folder)?;
    let (newest, oldest) = by_life
        .last_key_value()
        .map_or((0, 0), |(life, newest)| (*life, newest.2.oldest_life));
    if newest < witnessed.life {
        let damage = LogDamage {
            file: folder.witness_path(),
            fault: LogFault::NewestMissing(witnessed.life),
        };
        return Err(damage.into());
    }
    let counting = by_life.split_off(&oldest);
    // Before any is read: a file in front of a gap would seem to end too early.
    for (expected, (life, (number, ..))) in (oldest..).zip(&counting) {
        if *life != expected {
            return Err(damage(*number, LogFault::Missing(expected)).into());
        }
    }
    let old = by_life.into_iter();
    let spare = old.map(|(life, (number, file, _))| (number, file, life));
    let spare = spare.collect();
    let mut found = Recovered {
        index: Index::default(),
        live: Vec::new(),
        spare,
        next_life: 1,
        next_sequence: 1,
        unproven: FILE_HEADER_BYTES,
    };
    let mut files = counting.into_iter().peekable();
    while let Some((life, (number, file, header))) = files.next() {
        let until = files.peek().map(|(_, (_, _, next))| next.first_sequence);
        let walk = Walk {
            folder,
            number,
            file: &file,
            header,
            length: file.length()?,
            witnessed: witnessed.sequence,
        };
        let walked = walk.run(until, &mut found.index)?;
        found.next_life = life + 1;
        found.next_sequence = walked.next_sequence;
        found.unproven = walked.unproven;
        found.live.push(LiveFile {
            number,
            length: walk.length,
            file: Arc::new(file),
            life,
            mark: header.mark,
            end: walked.end,
        });
    }
    Ok(found)
}

fn read_witness<D: LogFolder>(folder: &D) -> Result<Witnessed, RecoveryError> {
    witness::read(folder)?.map_err(|witness::Damaged| {
        let damage = LogDamage {
            file: folder.witness_path(),
            fault: LogFault::Witness,
        };
        damage.into()
    })
}

fn read_header(file: &impl LogFile) -> io::Result<Option<FileHeader>> {
    let length = file.length()?.min(FILE_HEADER_BYTES);
    let mut bytes = vec![0; length as usize];
    file.read_at(0, &mut bytes)?;
    Ok(FileHeader::decode(&bytes))
}

/// The walk over one file.
struct Walk<'a, D: LogFolder> {
    folder: &'a D,
    number: u32,
    file: &'a D::File,
    header: FileHeader,
    length: u64,
    /// Last record that the witness says was synced.
    witnessed: u64,
}

impl<D: LogFolder> Walk<'_, D> {
    /// Takes all records in, up to the sequence `until` if another life begins with it.
    fn run(&self, until: Option<u64>, index: &mut Index) -> Result<Walked, RecoveryError> {
        let mut window = Window::new(self.file, self.length, READ_BYTES);
        let mut sequence = self.header.first_sequence;
        let mut at = FILE_HEADER_BYTES;
        // Sequences and places.
        let mut unproven: VecDeque<(u64, u64)> = VecDeque::new();
        while until.is_none_or(|until| sequence < until) {
            let Some((header, record)) = window.record(at)? else {
                break;
            };
            if (header.mark, header.sequence) != (self.header.mark, sequence) {
                break;
            }
            let payload = &record[RECORD_HEADER_BYTES..];
            let taken = index.take_record(self.number, at, payload);
            taken.map_err(|_| self.damage(LogFault::Form(at)))?;
            while unproven.front().is_some_and(|(of, _)| *of <= header.synced) {
                unproven.pop_front();
            }
            unproven.push_back((sequence, at));
            at += record.len() as u64;
            sequence += 1;
        }
        match until {
            Some(until) if sequence < until => {
                return Err(self.damage(LogFault::Record(at)).into());
            }
            Some(_) => {}
            None if sequence <= self.witnessed || self.was_synced(&mut window, at, sequence)? => {
                return Err(self.damage(LogFault::Record(at)).into());
            }
            None => {}
        }
        Ok(Walked {
            end: at,
            next_sequence: sequence,
            unproven: unproven.front().map_or(at, |(_, place)| *place),
        })
    }

    /// True if some record behind `at`, where the records end, says that the one that should be
    /// there was synced. Where a record's length is damaged the next may begin anywhere.
    fn was_synced(
        &self,
        window: &mut Window<'_, D::File>,
        at: u64,
        sequence: u64,
    ) -> io::Result<bool> {
        let mut from = at + 1;
        while from + RECORD_HEADER_BYTES as u64 <= self.length {
            let bytes = window.bytes(from, RECORD_HEADER_BYTES)?;
            // The mark is looked for at every place: nobody outside knows it.
            let mark = self.header.mark.to_le_bytes();
            let Some(hit) = bytes.windows(8).skip(8).position(|found| found == mark) else {
                from += (bytes.len() - RECORD_HEADER_BYTES + 1) as u64;
                continue;
            };
            from += hit as u64;
            if let Some((header, _)) = window.record(from)?
                && header.mark == self.header.mark
                && header.sequence > sequence
                && header.synced >= sequence
            {
                return Ok(true);
            }
            from += 1;
        }
        Ok(false)
    }

    fn damage(&self, fault: LogFault) -> LogDamage {
        LogDamage {
            file: self.folder.path(self.number),
            fault,
        }
    }
}

/// A piece of a file in memory that moves on as it is read.
pub(super) struct Window<'a, F> {
    file: &'a F,
    /// Bytes of the file.
    length: u64,
    /// Bytes that are read at once, unless one record is larger.
    read_bytes: usize,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a, F: LogFile> Window<'a, F> {
    /// Of a file with `length` bytes, of which `read_bytes` are read at once.
    pub fn new(file: &'a F, length: u64, read_bytes: usize) -> Self {
        Self {
            file,
            length,
            read_bytes,
            start: 0,
            bytes: Vec::new(),
        }
    }

    /// The bytes from `at` on that are in memory, at least `least` unless the file ends before.
    fn bytes(&mut self, at: u64, least: usize) -> io::Result<&[u8]> {
        let end = self.start + self.bytes.len() as u64;
        let wanted = at.saturating_add(least as u64).min(self.length);
        if at < self.start || wanted > end {
            let length = self.length.saturating_sub(at);
            let length = length.min(least.max(self.read_bytes) as u64) as usize;
            self.bytes.resize(length, 0);
            self.file.read_at(at, &mut self.bytes)?;
            self.start = at;
        }
        Ok(&self.bytes[(at - self.start) as usize..])
    }

    /// The record at `at`; `None` if what is there is none.
    pub fn record(&mut self, at: u64) -> io::Result<Option<(RecordHeader, &[u8])>> {
        let Some(header) = RecordHeader::decode(self.bytes(at, RECORD_HEADER_BYTES)?) else {
            return Ok(None);
        };
        let total = RECORD_HEADER_BYTES + header.length;
        if at + total as u64 > self.length {
            return Ok(None);
        }
        let record = &self.bytes(at, total)?[..total];
        Ok(header.holds(record).then_some((header, record)))
    }
}
