//! What an engine brings for snapshots: tables that it writes and takes in.

use super::error::SnapshotError;
use super::files::FileStore;
use crate::engine::{Cf, Engine};

/// Writes one table of a snapshot: keys ascending, each once.
pub trait TableWriter: Send + Sized {
    /// Adds a key. It is above all that were added before.
    ///
    /// # Errors
    /// `DiskFull`, `File`. The table is of no use then.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), SnapshotError>;

    /// Ends the table. At least one key was added.
    ///
    /// # Errors
    /// `DiskFull`, `File`.
    fn finish(self) -> Result<(), SnapshotError>;
}

/// An engine with snapshot files of its own form.
pub trait SnapshotEngine: Engine {
    /// Where its tables lie.
    type Files: FileStore;
    /// What writes them, with memory for one value, but not for all.
    type Writer: TableWriter;

    /// Begins a table in a new file.
    ///
    /// # Errors
    /// `DiskFull`, `File`.
    fn table_writer(files: &Self::Files, name: &str) -> Result<Self::Writer, SnapshotError>;

    /// Adds all keys of a table to a column family; they hide what was there under them.
    /// The file stays as it is. Durable with the next synced write at the latest, and
    /// maybe before unsynced writes that came earlier: the caller marks the region
    /// Applying until then.
    ///
    /// # Errors
    /// `Table` if it is damaged; errors of the engine; `File`. A part of its keys may be
    /// there already.
    fn ingest_table(&self, files: &Self::Files, name: &str, cf: Cf) -> Result<(), SnapshotError>;
}
