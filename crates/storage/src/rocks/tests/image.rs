//! What a crash leaves of an engine's folder: a copy that is made while the engine is open.
//!
//! It holds what the process has handed to the system and nothing that a close would add.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tempfile::TempDir;

/// How often a copy is made at most. Nobody writes meanwhile, so the work in the background ends.
const TURNS_MAX: u32 = 10_000;

/// The folder as of one moment.
///
/// RocksDB flushes and compacts in the background: of a folder that changes under the copy, a manifest
/// may name a table that was not there when the folder was listed, or is gone by now. Such a copy is
/// of no moment, no crash leaves it, and it is made again.
pub(super) fn copy(from: &Path) -> TempDir {
    for _ in 0..TURNS_MAX {
        let before = listing(from);
        let to = tempfile::tempdir().unwrap();
        for (path, _, _) in &before {
            match fs::copy(path, to.path().join(path.file_name().unwrap())) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                copied => assert!(copied.is_ok(), "{copied:?}"),
            }
        }
        let after = listing(from);
        if before == after {
            return to;
        }
    }
    panic!("the folder changed under each of {TURNS_MAX} copies");
}

/// Each file of a folder with its length and when it was written last, by name.
fn listing(folder: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let of = |path: PathBuf| match fs::metadata(&path) {
        Ok(found) => Some((path, found.len(), found.modified().unwrap())),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("{}: {error}", path.display()),
    };
    let paths = fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = paths
        .filter_map(|entry| of(entry.unwrap().path()))
        .collect();
    files.sort();
    files
}
