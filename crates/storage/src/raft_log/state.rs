//! What is written where: the files in use, the one that grows, and the index.
//!
//! Write    One record at the end of the newest life, then the index. A record never spans files;
//!          one that does not fit begins the next life, one larger than a file makes its file
//!          longer.
//! Start    What is found is synced before anyone reads it. The newest header, and records of which no
//!          other says that they were synced, are written once more before: where a sync failed under an earlier process, the system holds in memory
//!          what is not on disk, and takes it for written.
//! Life     1. The file so far is synced to its end: the next life's header says so.
//!          2. A header with the next life goes into a spare file, or a new one, and is synced.
//!          3. Records follow.
//!          Between 2 and 3 nothing of the spare file's earlier life counts any more, as the header
//!          names the oldest life that does.
//! Collect  When files hold twice what is wanted of them, each write also walks a piece of the
//!          oldest file and takes along what the index still finds there. A file of which nothing
//!          is wanted becomes a spare one. Always the oldest: a deletion must outlive the puts in
//!          front of it, and behind the oldest file there are none.
//! Reclaim  The same for its own sake, until there is nothing to walk, and files that nobody will need
//!          soon go. On disk the records of a spare file count until a header says that they do not:
//!          a life begins before the first of them goes.
//! Fill     A file grows by zeros some way ahead of its records, and a spare one has mostly been
//!          written whole: a sync then finds the file's length and blocks as they were, and writes
//!          data only.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::files::{LogFile, LogFolder};
use super::form::{
    FILE_HEADER_BYTES, FILE_HEADER_FIELDS_BYTES, FileHeader, RECORD_HEADER_BYTES, RecordBuilder,
    StoredChange, StoredChanges,
};
use super::index::Index;
use super::recovery::{LiveFile, Recovered, Window};
use super::witness::{Witness, Witnessed};
use crate::batch::WriteBatch;

/// Files that are not used again before there are more of them than this, unless what they hold
/// is wanted by less than half.
const FILES_MIN: u64 = 4;
/// Bytes that are walked for each byte written, while files hold too much that nobody wants.
const WALKED_PER_WRITTEN: u64 = 3;
/// Bytes that are walked at once, unless the batch is large.
pub(super) const WALK_BYTES: u64 = 64 << 10;
/// Bytes by which a new file grows.
const FILL_BYTES: u64 = 256 << 10;
/// Files that wait to be used again; more are removed. As many as are filled until the data engine
/// has flushed what they hold: to make a file anew costs more than to keep it, and where the file
/// system tells the disk of free space, each that goes holds up all syncs.
pub(super) const SPARE_MAX: usize = 8;
/// Files for which there is room on the disk where one is made only to give others back.
const FREE_FILES_MIN: u64 = 4;
/// Files that are removed when a life begins, as whoever writes waits for that.
const REMOVED_MAX: usize = 4;

/// A file whose records do not count.
struct SpareFile<F> {
    number: u32,
    file: Arc<F>,
    /// Of its records.
    life: u64,
}

impl<F> SpareFile<F> {
    /// Whether nobody reads from it.
    fn is_free(&self) -> bool {
        Arc::strong_count(&self.file) == 1
    }
}

/// See the module.
pub(super) struct State<D: LogFolder> {
    folder: Arc<D>,
    /// Bytes of a file, unless one record is larger.
    file_bytes: u64,
    pub index: Index,
    /// By life; at least one once something was written.
    live: VecDeque<LiveFile<D::File>>,
    /// Whether the newest is of this opening, so that it may grow.
    writing: bool,
    spare: Vec<SpareFile<D::File>>,
    /// The oldest life that counts, as the newest header has it.
    oldest_on_disk: u64,
    next_life: u64,
    next_sequence: u64,
    next_number: u32,
    /// The last record that is known to be on disk.
    synced: u64,
    /// Where in the newest file records begin that must be written once more.
    unproven: Option<u64>,
    /// How far the oldest file was walked.
    walked_to: u64,
    /// Bytes that may be walked.
    walk_credit: u64,
    /// The life before which reclaiming ends: it goes over everything at most once.
    reclaim_to: Option<u64>,
}

/// What a piece of reclaiming did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reclaimed {
    /// There is nothing left to do.
    Nothing,
    /// A piece of the oldest file was walked, or a life begun.
    Walked,
    /// The file of this number is to be removed.
    Spare(u32),
}

impl<D: LogFolder> State<D> {
    /// Goes on where `found` ends. Nothing is on disk for sure before [`State::settle`].
    pub fn new(folder: Arc<D>, file_bytes: u64, found: Recovered<D::File>) -> Self {
        let live = found.live.iter().map(|live| live.number);
        let spare = found.spare.iter().map(|(number, ..)| *number);
        let next_number = live.chain(spare).max().map_or(1, |number| number + 1);
        let oldest = found.live.first();
        Self {
            folder,
            file_bytes,
            index: found.index,
            oldest_on_disk: oldest.map_or(found.next_life, |oldest| oldest.life),
            live: found.live.into(),
            writing: false,
            spare: found
                .spare
                .into_iter()
                .map(|(number, file, life)| SpareFile {
                    number,
                    file: Arc::new(file),
                    life,
                })
                .collect(),
            next_life: found.next_life,
            next_sequence: found.next_sequence,
            next_number,
            synced: 0,
            unproven: Some(found.unproven),
            walked_to: FILE_HEADER_BYTES,
            // The first write begins a file, however little it is: that pays for an old one.
            walk_credit: WALKED_PER_WRITTEN * FILL_BYTES,
            reclaim_to: None,
        }
    }

    /// Makes durable what was found: an earlier process may have written it and been killed before
    /// the sync. Whoever reads it takes it for promised.
    ///
    /// # Errors
    /// The log must not be used.
    pub fn settle(&mut self) -> io::Result<()> {
        if let Some(newest) = self.newest()? {
            newest.sync()?;
            self.synced = self.last_sequence();
        }
        Ok(())
    }

    /// As [`State::settle`], when the log is opened; then the witness says so.
    ///
    /// # Errors
    /// The log must not be used.
    pub fn settle_first(&mut self) -> io::Result<Witness<D::File>> {
        self.settle()?;
        Witness::open(&*self.folder, self.says())
    }

    /// What a witness says once the newest file is synced as it is now.
    pub fn says(&self) -> Witnessed {
        Witnessed {
            life: self.next_life - 1,
            sequence: self.last_sequence(),
        }
    }

    /// What a witness says of what is synced now.
    pub fn synced_says(&self) -> Witnessed {
        Witnessed {
            sequence: self.synced,
            ..self.says()
        }
    }

    /// Sequence of the last record.
    pub fn last_sequence(&self) -> u64 {
        self.next_sequence - 1
    }

    /// The newest file: to sync it makes all records durable.
    ///
    /// # Errors
    /// What an earlier process left cannot be written once more.
    pub fn newest(&mut self) -> io::Result<Option<Arc<D::File>>> {
        self.write_unproven()?;
        Ok(self.live.back().map(|live| live.file.clone()))
    }

    /// Writes the header and the records of an earlier process once more that may be in memory only.
    fn write_unproven(&mut self) -> io::Result<()> {
        let (Some(mut at), Some(newest)) = (self.unproven.take(), self.live.back()) else {
            return Ok(());
        };
        let mut piece = vec![0; WALK_BYTES as usize];
        let header = &mut piece[..FILE_HEADER_FIELDS_BYTES];
        newest.file.read_at(0, header)?;
        newest.file.write_at(0, header)?;
        while at < newest.end {
            let length = (newest.end - at).min(WALK_BYTES) as usize;
            newest.file.read_at(at, &mut piece[..length])?;
            newest.file.write_at(at, &piece[..length])?;
            at += length as u64;
        }
        Ok(())
    }

    /// The last record that is known to be on disk.
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// All records up to `sequence` are on disk.
    pub fn on_synced(&mut self, sequence: u64) {
        self.synced = self.synced.max(sequence);
    }

    /// The file of this number.
    ///
    /// # Panics
    /// If no record of it counts.
    pub fn file(&self, number: u32) -> Arc<D::File> {
        let live = self.live.iter().find(|live| live.number == number);
        let live = live.unwrap_or_else(|| panic!("file {number} is in the index and not in use"));
        live.file.clone()
    }

    /// All files in use.
    pub fn files(&self) -> Vec<(u32, Arc<D::File>)> {
        let files = self
            .live
            .iter()
            .map(|live| (live.number, live.file.clone()));
        files.collect()
    }

    /// Bytes of all files in use.
    #[cfg(test)]
    pub fn used_bytes(&self) -> u64 {
        self.live.iter().map(|live| live.length).sum()
    }

    /// Writes a batch as one record, which survives a power cut when the newest file is synced.
    /// Returns its sequence.
    ///
    /// # Errors
    /// The record may be there or not: nothing may be written any more.
    pub fn write(&mut self, batch: &WriteBatch) -> io::Result<u64> {
        let mut builder = RecordBuilder::with_capacity(batch.approximate_bytes());
        // What is taken along comes first, so that the batch has its way.
        self.collect(&mut builder, batch.approximate_bytes() as u64)?;
        builder.changes(batch);
        self.append(builder)
    }

    /// Writes a record. Returns its sequence.
    fn append(&mut self, mut builder: RecordBuilder) -> io::Result<u64> {
        self.make_room(builder.len() as u64)?;
        let sequence = self.next_sequence;
        let current = self.live.back_mut().expect("room was made in a file");
        let record = builder.finish(current.mark, sequence, self.synced);
        let at = current.end;
        current.file.write_at(at, record)?;
        current.end += record.len() as u64;
        fill(current, self.file_bytes);
        let payload = &record[RECORD_HEADER_BYTES..];
        let taken = self.index.take_record(current.number, at, payload);
        taken.expect("a record that was just made");
        self.next_sequence += 1;
        self.walk_credit += WALKED_PER_WRITTEN * record.len() as u64;
        Ok(sequence)
    }

    /// Begins a new life if the newest file cannot take `bytes`.
    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        if self.writing
            && let Some(newest) = self.live.back()
            && (newest.end + bytes <= self.file_bytes || newest.end == FILE_HEADER_BYTES)
        {
            return Ok(());
        }
        self.begin_life()?;
        let surplus = self.spare.len().saturating_sub(SPARE_MAX);
        for _ in 0..surplus.min(REMOVED_MAX) {
            if let Some(number) = self.take_spare() {
                self.folder.remove(number)?;
            }
        }
        Ok(())
    }

    /// Begins a new life.
    fn begin_life(&mut self) -> io::Result<()> {
        self.settle()?;
        self.retire();
        let header = FileHeader {
            life: self.next_life,
            first_sequence: self.next_sequence,
            oldest_life: self
                .live
                .front()
                .map_or(self.next_life, |oldest| oldest.life),
            mark: self.folder.random_number(),
        };
        let (number, file) = self.begin_file(&header)?;
        self.live.push_back(LiveFile {
            number,
            length: file.length()?,
            file,
            life: header.life,
            mark: header.mark,
            end: FILE_HEADER_BYTES,
        });
        self.next_life += 1;
        self.oldest_on_disk = header.oldest_life;
        self.writing = true;
        Ok(())
    }

    /// Takes out a spare file whose records do not count on disk either: it may be removed.
    fn take_spare(&mut self) -> Option<u32> {
        let goes = |spare: &SpareFile<_>| spare.life < self.oldest_on_disk;
        let found = self.spare.iter().position(goes)?;
        Some(self.spare.remove(found).number)
    }

    /// One piece of what gives back what the files hold for nobody.
    ///
    /// # Errors
    /// Nothing may be written any more.
    pub fn reclaim(&mut self) -> io::Result<Reclaimed> {
        let to = *self.reclaim_to.get_or_insert(self.next_life);
        if self.is_overfull() && self.has_room() {
            let credit = self.walk_credit;
            self.walk_credit = credit.max(WALK_BYTES);
            let mut builder = RecordBuilder::with_capacity(0);
            self.collect(&mut builder, 0)?;
            if builder.len() > RECORD_HEADER_BYTES {
                self.append(builder)?;
            }
            // Those who write pay for what they write, and not for this.
            self.walk_credit = credit;
            let oldest = self.live.front().map_or(to, |oldest| oldest.life);
            // Of one file alone nothing can be given back.
            if self.live.len() > 1 && oldest < to {
                return Ok(Reclaimed::Walked);
            }
        }
        if self.spare.len() > SPARE_MAX {
            if let Some(number) = self.take_spare() {
                return Ok(Reclaimed::Spare(number));
            }
            if self.has_free_spare() || self.is_disk_roomy() {
                self.begin_life()?;
                return Ok(Reclaimed::Walked);
            }
        }
        self.reclaim_to = None;
        Ok(Reclaimed::Nothing)
    }

    /// Whether there is room for what a piece takes along: a full disk would end the node, which only
    /// wanted to give back. What needs no piece goes to the spare files.
    fn has_room(&mut self) -> bool {
        self.retire();
        let taken = (2 * WALK_BYTES).min(self.file_bytes / 8);
        let newest = self.live.back().filter(|_| self.writing);
        self.is_disk_roomy() || newest.is_some_and(|newest| newest.end + taken <= newest.length)
    }

    fn has_free_spare(&self) -> bool {
        self.spare.iter().any(SpareFile::is_free)
    }

    fn is_disk_roomy(&self) -> bool {
        self.folder.free_bytes() >= FREE_FILES_MIN * self.file_bytes
    }

    /// Whether files hold too much that nobody wants.
    fn is_overfull(&self) -> bool {
        let kept = 2 * (self.index.wanted_bytes() + self.file_bytes);
        // A file that did not grow to its end counts whole: there may be many of them.
        let held = self
            .live
            .iter()
            .map(|live| live.length.max(self.file_bytes));
        held.sum::<u64>() > kept.max(FILES_MIN * self.file_bytes)
    }

    /// A file with this header, on disk: a spare one that nobody reads, or a new one.
    fn begin_file(&mut self, header: &FileHeader) -> io::Result<(u32, Arc<D::File>)> {
        if let Some(found) = self.spare.iter().position(SpareFile::is_free) {
            let SpareFile { number, file, .. } = self.spare.remove(found);
            file.write_at(0, &header.encode())?;
            file.sync()?;
            // Not before: on disk its records counted until now.
            if file.length()? > self.file_bytes {
                file.cut(self.file_bytes)?;
            }
            return Ok((number, file));
        }
        let number = self.next_number;
        self.next_number += 1;
        let file = self.folder.create(number, &header.encode())?;
        Ok((number, Arc::new(file)))
    }

    /// Makes spare files of the oldest ones of which nothing is wanted.
    fn retire(&mut self) {
        while let Some(oldest) = self.live.front() {
            let is_newest = self.live.len() == 1;
            if is_newest || self.index.wanted_of(oldest.number).values > 0 {
                return;
            }
            let oldest = self.live.pop_front().expect("there is an oldest");
            self.spare.push(SpareFile {
                number: oldest.number,
                file: oldest.file,
                life: oldest.life,
            });
            self.walked_to = FILE_HEADER_BYTES;
        }
    }

    /// Walks a piece of the oldest file if files hold too much that nobody wants, and adds to
    /// `builder` what is wanted. `batch_bytes` will be written besides.
    fn collect(&mut self, builder: &mut RecordBuilder, batch_bytes: u64) -> io::Result<()> {
        if !self.is_overfull() {
            self.walk_credit = 0;
            return Ok(());
        }
        if self.walk_credit < WALK_BYTES {
            return Ok(());
        }
        self.retire();
        if self.live.len() < 2 {
            return Ok(());
        }
        let oldest = &self.live[0];
        assert!(
            self.walked_to < oldest.end,
            "file {} was walked to {} of {} and is still wanted",
            oldest.number,
            self.walked_to,
            oldest.end
        );
        // What was taken along gives credit too: it must not make one write walk a whole file.
        let most = WALK_BYTES.max(WALKED_PER_WRITTEN * batch_bytes);
        let until = oldest.end.min(self.walked_to + self.walk_credit.min(most));
        // Not more than is walked: each write reads anew.
        let read_bytes = (until - self.walked_to) as usize;
        let mut window = Window::new(&*oldest.file, oldest.end, read_bytes);
        let mut at = self.walked_to;
        while at < until {
            let Some((_, record)) = window.record(at)? else {
                let line = format!(
                    "{}: damaged record at offset {at}; restore the file, or replace the store by \
                     a new one",
                    self.folder.path(oldest.number).display()
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, line));
            };
            let payload = &record[RECORD_HEADER_BYTES..];
            for change in StoredChanges::of(payload).flatten() {
                let StoredChange::Put(key, value, begin) = change else {
                    continue;
                };
                let offset = at + (RECORD_HEADER_BYTES + begin) as u64;
                let place = self.index.place_of(key);
                if place.is_some_and(|at| (at.file, at.offset) == (oldest.number, offset)) {
                    builder.put(key, value);
                }
            }
            at += record.len() as u64;
        }
        self.walk_credit = self.walk_credit.saturating_sub(at - self.walked_to);
        self.walked_to = at;
        Ok(())
    }
}

/// Writes zeros behind the records of a file that has just grown, so that the next records do
/// not make it grow. Without room for them the records themselves will tell.
fn fill<F: LogFile>(file: &mut LiveFile<F>, file_bytes: u64) {
    if file.end <= file.length {
        return;
    }
    file.length = file.end;
    let until = file.end.next_multiple_of(FILL_BYTES).min(file_bytes);
    if file.end < until {
        let zeros = vec![0; (until - file.end) as usize];
        if file.file.write_at(file.end, &zeros).is_ok() {
            file.length = until;
        }
    }
}
