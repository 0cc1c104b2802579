//! Space on the disk that holds the data folder.

use std::path::{Path, PathBuf};

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
