//! Tables of the in-memory engine: lengths, key and value of each entry, one behind the
//! other. They have no checksum of their own; that of the whole file covers them.

use super::error::SnapshotError;
use super::files::FileStore;
use super::mem_files::MemFiles;
use super::table::{SnapshotEngine, TableWriter};
use crate::batch::WriteBatch;
use crate::engine::{Cf, Durability, Engine};
use crate::mem::MemEngine;

/// Two lengths of four bytes, big-endian.
const HEADER_BYTES: usize = 8;
/// Bytes that are gathered before they are appended to the file, or written to the engine.
const BUFFER_BYTES: usize = 64 << 10;

/// Writes one table of the in-memory engine.
pub struct MemTableWriter {
    files: MemFiles,
    name: String,
    written: u64,
    buffer: Vec<u8>,
}

impl MemTableWriter {
    fn flush(&mut self) -> Result<(), SnapshotError> {
        self.files.append(&self.name, self.written, &self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl TableWriter for MemTableWriter {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), SnapshotError> {
        for part in [key, value] {
            let length = u32::try_from(part.len()).map_err(|_| SnapshotError::Table {
                path: self.files.display(&self.name),
                detail: format!("{} bytes are too long", part.len()),
            })?;
            self.buffer.extend_from_slice(&length.to_be_bytes());
        }
        self.buffer.extend_from_slice(key);
        self.buffer.extend_from_slice(value);
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), SnapshotError> {
        self.flush()
    }
}

impl SnapshotEngine for MemEngine {
    type Files = MemFiles;
    type Writer = MemTableWriter;

    fn table_writer(files: &MemFiles, name: &str) -> Result<MemTableWriter, SnapshotError> {
        files.create(name)?;
        Ok(MemTableWriter {
            files: files.clone(),
            name: name.to_owned(),
            written: 0,
            buffer: Vec::new(),
        })
    }

    fn ingest_table(&self, files: &MemFiles, name: &str, cf: Cf) -> Result<(), SnapshotError> {
        let length = files.length(name)?.unwrap_or(0);
        let cut = || SnapshotError::Table {
            path: files.display(name),
            detail: format!("an entry goes on behind the end at {length}"),
        };
        let mut batch = WriteBatch::new();
        let mut offset = 0;
        while offset < length {
            // A read that fails is no damage: an install tries it again.
            let header = match files.read(name, offset, HEADER_BYTES) {
                Err(SnapshotError::FileLength { .. }) => return Err(cut()),
                read => read?,
            };
            let (key, value) = header.split_at(HEADER_BYTES / 2);
            let [key, value] = [key, value].map(|part| {
                let part: [u8; 4] = part.try_into().expect("half a header has four bytes");
                u64::from(u32::from_be_bytes(part))
            });
            offset += HEADER_BYTES as u64;
            if key + value > length - offset {
                return Err(cut());
            }
            let entry = files.read(name, offset, (key + value) as usize)?;
            offset += key + value;
            batch.put(cf, entry.slice(..key as usize), entry.slice(key as usize..));
            if batch.approximate_bytes() >= BUFFER_BYTES {
                self.write(&batch, Durability::Unsynced)?;
                batch.clear();
            }
        }
        self.write(&batch, Durability::Unsynced)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::mem_files::FileFault;
    use super::*;
    use crate::engine::EngineKind;

    #[test]
    fn failed_read_of_a_table_is_not_taken_for_damage() {
        let files = MemFiles::new();
        let mut writer = MemEngine::table_writer(&files, "t").unwrap();
        writer.put(b"k", b"v").unwrap();
        writer.finish().unwrap();
        let kv = MemEngine::new(EngineKind::Kv);
        files.fail_next(FileFault::Read);
        let failed = kv.ingest_table(&files, "t", Cf::Raw);
        assert!(
            matches!(failed, Err(SnapshotError::File { .. })),
            "{failed:?}"
        );
        assert_eq!(kv.ingest_table(&files, "t", Cf::Raw), Ok(()));
        files
            .append("t", files.length("t").unwrap().unwrap(), b"\0")
            .unwrap();
        let damaged = kv.ingest_table(&files, "t", Cf::Raw);
        assert!(
            matches!(damaged, Err(SnapshotError::Table { .. })),
            "{damaged:?}"
        );
    }
}
