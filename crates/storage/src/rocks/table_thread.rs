//! A table's writer in a thread of its own.
//!
//! Fill    Keys and values gather in a buffer.
//! Hand    A full buffer goes to the thread, which puts what it holds into the table and gives it
//!         back empty. There are [`BUFFERS`]; who fills waits while the thread has the others. One
//!         with a large value is waited for at once, so that there is one such value at a time.
//! End     The thread finishes the table when it is told to. Where the writer is dropped instead,
//!         the thread ends, and has closed the file before the drop returns.
//!
//! Why: to make a snapshot is to read, and to compress and write what was read, each about half
//! of the work; two processors do both at one time.
//!
//! An error of the table comes with a later call than the one that brought the key, and with all
//! calls behind that. Whichever it was, the table is of no use then, and nothing that is made of it
//! has a name yet.

use std::marker::PhantomData;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use crate::snapshot::{SnapshotError, TableWriter};

/// Buffers of a table, the one that is filled included.
const BUFFERS: usize = 3;
/// Bytes of keys, values and their lengths in a buffer from which on it is handed over.
const HANDED_BYTES: usize = 256 << 10;

/// Hands what is put into it to a thread, which writes the table.
pub struct ThreadedWriter<W> {
    /// What is not handed over.
    filling: Buffer,
    /// Empty buffers that are here.
    spare: Vec<Buffer>,
    /// Those that come back from the thread.
    emptied: Receiver<Buffer>,
    /// None when nothing more is to come.
    works: Option<Sender<Work>>,
    /// None when it was waited for.
    thread: Option<JoinHandle<Result<(), SnapshotError>>>,
    /// Why the table is of no use.
    failed: Option<SnapshotError>,
    /// The thread has the table.
    table: PhantomData<W>,
}

/// What the thread is told.
enum Work {
    Put(Buffer),
    Finish,
}

/// Keys and values one behind the other.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// Of a key and its value.
    lengths: Vec<(usize, usize)>,
}

impl Buffer {
    fn push(&mut self, key: &[u8], value: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        self.lengths.push((key.len(), value.len()));
    }

    /// Bytes that it holds, with those that note them.
    fn size(&self) -> usize {
        self.bytes.len() + std::mem::size_of_val(self.lengths.as_slice())
    }

    fn put_into(&self, table: &mut impl TableWriter) -> Result<(), SnapshotError> {
        let mut rest = self.bytes.as_slice();
        for (key_bytes, value_bytes) in &self.lengths {
            let (key, behind) = rest.split_at(*key_bytes);
            let (value, behind) = behind.split_at(*value_bytes);
            table.put(key, value)?;
            rest = behind;
        }
        Ok(())
    }

    /// The same without its contents, and without the room that a large value took.
    fn emptied(mut self) -> Self {
        if self.bytes.capacity() > 2 * HANDED_BYTES {
            return Self::default();
        }
        self.bytes.clear();
        self.lengths.clear();
        self
    }
}

impl<W: TableWriter + 'static> ThreadedWriter<W> {
    /// Begins the thread. `name` is what the table's errors call it.
    ///
    /// # Errors
    /// `File`: the system gives no thread.
    pub fn start(table: W, name: String) -> Result<Self, SnapshotError> {
        let (works, to_do) = channel();
        let (give_back, emptied) = channel();
        let thread = Builder::new()
            .name("table-writer".to_owned())
            .spawn(move || write(table, &to_do, &give_back))
            .map_err(|error| SnapshotError::File {
                path: name,
                action: "begin a thread to write",
                detail: error.to_string(),
            })?;
        Ok(Self {
            filling: Buffer::default(),
            spare: (1..BUFFERS).map(|_| Buffer::default()).collect(),
            emptied,
            works: Some(works),
            thread: Some(thread),
            failed: None,
            table: PhantomData,
        })
    }

    fn hand_over(&mut self) -> Result<(), SnapshotError> {
        let next = match self.spare.pop() {
            Some(next) => next,
            None => self.take_back()?,
        };
        let full = std::mem::replace(&mut self.filling, next);
        self.tell(Work::Put(full));
        Ok(())
    }

    /// Waits until the thread has nothing to do.
    fn wait_for_all(&mut self) -> Result<(), SnapshotError> {
        while self.spare.len() + 1 < BUFFERS {
            let back = self.take_back()?;
            self.spare.push(back);
        }
        Ok(())
    }

    /// Waits for a buffer. The thread ends before it is told to only by an error.
    fn take_back(&mut self) -> Result<Buffer, SnapshotError> {
        match self.emptied.recv() {
            Ok(buffer) => Ok(buffer),
            Err(_) => Err(self.end().expect_err("it was not told to end")),
        }
    }

    /// Where the thread has ended already, waiting for it tells why.
    fn tell(&self, work: Work) {
        if let Some(works) = &self.works {
            let _ = works.send(work);
        }
    }

    /// Waits for the end of the thread; returns what came of it.
    fn end(&mut self) -> Result<(), SnapshotError> {
        self.works = None;
        let Some(thread) = self.thread.take() else {
            return self.failed.clone().map_or(Ok(()), Err);
        };
        let result = thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        self.failed = result.clone().err();
        result
    }
}

/// The thread's work.
fn write<W: TableWriter>(
    mut table: W,
    works: &Receiver<Work>,
    give_back: &Sender<Buffer>,
) -> Result<(), SnapshotError> {
    while let Ok(work) = works.recv() {
        match work {
            Work::Put(buffer) => {
                buffer.put_into(&mut table)?;
                // Nobody fills it any more where this is the last one.
                let _ = give_back.send(buffer.emptied());
            }
            Work::Finish => return table.finish(),
        }
    }
    Ok(())
}

impl<W: TableWriter + 'static> TableWriter for ThreadedWriter<W> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), SnapshotError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let large = key.len() + value.len() > HANDED_BYTES;
        self.filling.push(key, value);
        if self.filling.size() >= HANDED_BYTES {
            self.hand_over()?;
        }
        if large { self.wait_for_all() } else { Ok(()) }
    }

    fn finish(mut self) -> Result<(), SnapshotError> {
        let last = std::mem::take(&mut self.filling);
        self.tell(Work::Put(last));
        self.tell(Work::Finish);
        self.end()
    }
}

impl<W> Drop for ThreadedWriter<W> {
    fn drop(&mut self) {
        self.works = None;
        // Given up: what became of the table does not matter any more. A panic does.
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    /// What became of a table.
    #[derive(Default)]
    struct Told {
        pairs: Vec<(Vec<u8>, Vec<u8>)>,
        finished: bool,
        dropped: bool,
    }

    /// A table that tells, and fails at its `fails_at`th key.
    struct Telling {
        told: Arc<Mutex<Told>>,
        fails_at: usize,
    }

    impl TableWriter for Telling {
        fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), SnapshotError> {
            let mut told = self.told.lock();
            if told.pairs.len() == self.fails_at {
                return Err(full());
            }
            told.pairs.push((key.to_vec(), value.to_vec()));
            Ok(())
        }

        fn finish(self) -> Result<(), SnapshotError> {
            self.told.lock().finished = true;
            Ok(())
        }
    }

    impl Drop for Telling {
        fn drop(&mut self) {
            self.told.lock().dropped = true;
        }
    }

    fn full() -> SnapshotError {
        SnapshotError::DiskFull {
            path: "table".into(),
            detail: "full".into(),
        }
    }

    fn start(fails_at: usize) -> (ThreadedWriter<Telling>, Arc<Mutex<Told>>) {
        let told = Arc::new(Mutex::new(Told::default()));
        let table = Telling {
            told: told.clone(),
            fails_at,
        };
        (ThreadedWriter::start(table, "table".into()).unwrap(), told)
    }

    /// Key and value number `n`; values from none to more than two buffers take.
    fn pair(n: usize) -> (Vec<u8>, Vec<u8>) {
        let bytes = [0, 1, 300, HANDED_BYTES - 8, 2 * HANDED_BYTES + 1][n % 5];
        (n.to_be_bytes().to_vec(), vec![n as u8; bytes])
    }

    #[test]
    fn table_thread_writes_what_it_was_given_in_order() {
        let (mut writer, told) = start(usize::MAX);
        let pairs: Vec<_> = (0..100).map(pair).collect();
        for (key, value) in &pairs {
            writer.put(key, value).unwrap();
        }
        writer.finish().unwrap();
        let told = told.lock();
        assert!(told.pairs == pairs, "other pairs, or in another order");
        assert!(told.finished && told.dropped);
    }

    #[test]
    fn table_thread_returns_an_error_at_the_end_at_the_latest() {
        let (mut writer, told) = start(3);
        for n in 0..4 {
            writer.put(&[n], b"small: none is handed over yet").unwrap();
        }
        assert_eq!(writer.finish(), Err(full()));
        assert!(told.lock().dropped && !told.lock().finished);

        let (mut writer, told) = start(0);
        let large = vec![0; HANDED_BYTES];
        assert_eq!(writer.put(b"large", &large), Err(full()), "waited for");
        assert_eq!(writer.put(b"next", b"small"), Err(full()));
        assert_eq!(writer.finish(), Err(full()));
        assert!(told.lock().pairs.is_empty());

        let (mut writer, told) = start(3);
        let mut puts = (0..100)
            .map(pair)
            .map(|(key, value)| writer.put(&key, &value));
        let error = puts.find(Result::is_err);
        assert_eq!(error, Some(Err(full())), "a full table takes all keys");
        drop(puts);
        drop(writer);
        assert!(told.lock().dropped && !told.lock().finished);
    }

    #[test]
    fn table_thread_that_is_given_up_has_closed_its_table() {
        let (mut writer, told) = start(usize::MAX);
        for (key, value) in (0..20).map(pair) {
            writer.put(&key, &value).unwrap();
        }
        drop(writer);
        assert!(told.lock().dropped && !told.lock().finished);
        drop(start(0).0);
    }
}
