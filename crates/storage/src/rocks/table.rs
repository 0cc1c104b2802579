//! Sorted tables of RocksDB as files of a snapshot.
//!
//! Write   One table a file, without a bloom filter: the filter's builder would hold eight
//!         bytes in memory for each key until the end. Compaction adds it later. A thread of its
//!         own compresses and writes (`table_thread`).
//! Ingest  Through a second, hard-linked name that RocksDB moves away, so that the
//!         snapshot keeps its file; by copy where the file system has no links.
//!         RocksDB does not write into a table (its sequence number stands in the
//!         manifest), so both names keep their checksum.

use std::fs;
use std::mem::ManuallyDrop;

use rocksdb::{BlockBasedOptions, DBCompressionType, Options, SstFileWriter};

use super::engine::{IngestError, RocksEngine};
use super::table_thread::ThreadedWriter;
use crate::engine::Cf;
use crate::snapshot::{DiskFiles, FileStore, INGEST_ENDING, SnapshotEngine};
use crate::snapshot::{SnapshotError, TableWriter};

/// Bytes of a block before compression, as in the engine's own files.
const BLOCK_BYTES: usize = 16 << 10;

/// Writes one sorted table, in a thread of its own.
pub type SnapshotTable = ThreadedWriter<SstWriter>;

/// Writes one sorted table.
pub struct SstWriter {
    /// Dropped by hand before `options`.
    writer: ManuallyDrop<SstFileWriter<'static>>,
    _options: Box<Options>,
    files: DiskFiles,
    name: String,
}

impl SstWriter {
    fn create(files: &DiskFiles, name: &str) -> Result<Self, SnapshotError> {
        let mut table = BlockBasedOptions::default();
        table.set_block_size(BLOCK_BYTES);
        let mut options = Box::new(Options::default());
        options.set_block_based_table_factory(&table);
        options.set_compression_type(DBCompressionType::Lz4);
        let writer = SstFileWriter::create(&options);
        // SAFETY: the writer borrows the options, which stay where they are in their box
        // and are dropped after it.
        let writer =
            unsafe { std::mem::transmute::<SstFileWriter<'_>, SstFileWriter<'static>>(writer) };
        let made = Self {
            writer: ManuallyDrop::new(writer),
            _options: options,
            files: files.clone(),
            name: name.to_owned(),
        };
        let opened = made.writer.open(files.path(name));
        opened.map_err(|error| made.error("make", error))?;
        Ok(made)
    }

    fn error(&self, action: &'static str, error: rocksdb::Error) -> SnapshotError {
        let (path, detail) = (self.files.display(&self.name), error.into_string());
        // RocksDB passes the system's words on, not its number.
        if detail.contains("No space left") || detail.contains("quota exceeded") {
            return SnapshotError::DiskFull { path, detail };
        }
        SnapshotError::File {
            path,
            action,
            detail,
        }
    }
}

impl Drop for SstWriter {
    fn drop(&mut self) {
        // SAFETY: dropped once, here, and not used again; the options outlive it.
        unsafe { ManuallyDrop::drop(&mut self.writer) }
    }
}

impl TableWriter for SstWriter {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), SnapshotError> {
        let put = self.writer.put(key, value);
        put.map_err(|error| self.error("write", error))
    }

    fn finish(mut self) -> Result<(), SnapshotError> {
        let finished = self.writer.finish();
        finished.map_err(|error| self.error("finish", error))
    }
}

impl SnapshotEngine for RocksEngine {
    type Files = DiskFiles;
    type Writer = SnapshotTable;

    fn table_writer(files: &DiskFiles, name: &str) -> Result<Self::Writer, SnapshotError> {
        ThreadedWriter::start(SstWriter::create(files, name)?, files.display(name))
    }

    fn ingest_table(&self, files: &DiskFiles, name: &str, cf: Cf) -> Result<(), SnapshotError> {
        let second = format!("{name}{INGEST_ENDING}");
        // One may be left from an install that a crash cut off.
        files.remove(&second)?;
        let linked = fs::hard_link(files.path(name), files.path(&second)).is_ok();
        let taken = if linked {
            self.ingest(cf, &files.path(&second), true)
        } else {
            self.ingest(cf, &files.path(name), false)
        };
        taken.map_err(|error| match error {
            IngestError::Engine(error) => error.into(),
            IngestError::Table(detail) => SnapshotError::Table {
                path: files.display(name),
                detail,
            },
        })
    }
}
