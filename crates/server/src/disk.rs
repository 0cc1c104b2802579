//! Space on the disk that holds the data folder, and what happens when it runs short.
//!
//! A disk that is full ends the process (crash rule 9). Before that, while less than a reserve
//! is free, the store refuses writes that need room; deletes and reads go on. The reserve is
//! for consensus and for the flushes and compactions of what was written before. It is no
//! promise: a large snapshot or a compaction may need more. The room of deleted values comes
//! back when their tables are compacted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use slog::{Logger, info, warn};
use strata_raftstore::StoreHandle;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::open::SNAPSHOT_FOLDER;

/// Folders in the data folder that may be on disks of their own.
const PARTS: [&str; 3] = ["kv", "raft", SNAPSHOT_FOLDER];

/// When writes are refused for want of room, and when they are taken again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reserve {
    bytes: u64,
    short: bool,
}

impl Reserve {
    /// Room is short while less than `bytes` are free; 0: never.
    pub(crate) fn new(bytes: u64) -> Self {
        Reserve {
            bytes,
            short: false,
        }
    }

    /// Takes a measurement; returns whether room is short, if that is new. Room is there
    /// again when a quarter more than the reserve is free, so that it does not come and go
    /// with each file.
    fn measured(&mut self, available: u64) -> Option<bool> {
        let wanted = match self.short {
            true => self.bytes.saturating_add(self.bytes / 4),
            false => self.bytes,
        };
        let short = available < wanted;
        (std::mem::replace(&mut self.short, short) != short).then_some(short)
    }
}

/// Measures the disk until the node stops, and tells the store when room runs short and when
/// it is there again.
pub(crate) async fn watch_space(
    disk: DiskSpace,
    mut reserve: Reserve,
    interval: Duration,
    store: StoreHandle,
    logger: Logger,
    mut stopping: watch::Receiver<bool>,
) {
    while reserve.bytes > 0 {
        let measuring = disk.clone();
        // A measurement that the system cannot make says nothing.
        let available = spawn_blocking(move || measuring.available()).await.ok();
        let available = available.flatten();
        match available.and_then(|available| reserve.measured(available)) {
            Some(true) => {
                warn!(logger, "the disk is nearly full: writes are refused, deletes and reads go on";
                    "free_bytes" => available, "reserve_bytes" => reserve.bytes,
                    "folder" => %disk.folder.display());
                store.set_disk_nearly_full(true);
            }
            Some(false) => {
                info!(logger, "the disk has room again: writes go on";
                    "free_bytes" => available, "folder" => %disk.folder.display());
                store.set_disk_nearly_full(false);
            }
            None => {}
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            _ = stopping.changed() => return,
        }
    }
}

/// Measures one folder's disk.
#[derive(Debug, Clone)]
pub(crate) struct DiskSpace {
    folder: PathBuf,
}

impl DiskSpace {
    pub(crate) fn new(folder: &Path) -> Self {
        DiskSpace {
            folder: folder.to_owned(),
        }
    }

    /// Bytes of the disk, and bytes that are free for this user; zeros where the system
    /// does not say.
    pub(crate) fn measure(&self) -> (u64, u64) {
        nix::sys::statvfs::statvfs(&self.folder).map_or((0, 0), |stat| {
            let unit = stat.fragment_size();
            (
                stat.blocks().saturating_mul(unit),
                stat.blocks_available().saturating_mul(unit),
            )
        })
    }

    /// Bytes that are free on that of the folder's disks which has the least; none where the
    /// system does not say.
    fn available(&self) -> Option<u64> {
        let free = |folder: PathBuf| {
            let stat = nix::sys::statvfs::statvfs(&folder).ok()?;
            // Some file systems do not count.
            let bytes = stat.blocks_available().saturating_mul(stat.fragment_size());
            (stat.blocks() > 0).then_some(bytes)
        };
        let parts = PARTS.iter().map(|part| self.folder.join(part));
        std::iter::once(self.folder.clone())
            .chain(parts)
            .filter_map(free)
            .min()
    }

    /// Bytes of the files in the folder and the folders right in it. Files that go while
    /// they are counted count nothing.
    pub(crate) fn used(&self) -> u64 {
        used_by(&self.folder, 2)
    }
}

fn used_by(folder: &Path, depth: u32) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() && depth > 1 => used_by(&entry.path(), depth - 1),
            Ok(metadata) if metadata.is_file() => metadata.len(),
            _ => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_short_below_the_reserve_and_there_again_a_quarter_above_it() {
        let mut reserve = Reserve::new(1000);
        let measured = [1000, 999, 1000, 1249, 1250, 1249, 1000, 999];
        let said = measured.map(|available| reserve.measured(available));
        let short = Some(true);
        let room = Some(false);
        assert_eq!(said, [None, short, None, None, room, None, None, short]);
        let mut without = Reserve::new(0);
        assert_eq!(without.measured(0), None);
    }

    #[test]
    fn the_disk_with_the_least_room_counts_and_a_missing_folder_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let disk = DiskSpace::new(folder.path());
        assert!(disk.available().unwrap() > 0);
        let nowhere = DiskSpace::new(&folder.path().join("missing"));
        assert_eq!(nowhere.available(), None);
    }

    #[test]
    fn files_in_the_folder_and_one_below_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), [0; 10]).unwrap();
        std::fs::create_dir(folder.path().join("kv")).unwrap();
        std::fs::write(folder.path().join("kv/b"), [0; 5]).unwrap();
        let disk = DiskSpace::new(folder.path());
        assert_eq!(disk.used(), 15);
        let (capacity, available) = disk.measure();
        assert!(capacity >= available && capacity > 0);
    }
}
