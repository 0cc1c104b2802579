//! A power cut, played on the files of a stopped node.

use crate::SyncRecord;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

/// Cuts every write-ahead log below `folder` back to its length at its last recorded
/// sync; one that was never synced becomes empty. Returns the number of bytes lost.
///
/// # Errors
/// When a file cannot be cut.
pub fn cut_to_synced(folder: &Path, syncs: &[SyncRecord]) -> std::io::Result<u64> {
    let mut synced: BTreeMap<&Path, u64> = BTreeMap::new();
    for record in syncs {
        let length = synced.entry(&record.path).or_default();
        *length = record.length.max(*length);
    }
    let mut lost = 0;
    for path in write_ahead_logs(folder)? {
        let keep = synced.get(path.as_path()).copied().unwrap_or(0);
        let length = path.metadata()?.len();
        if length > keep {
            OpenOptions::new().write(true).open(&path)?.set_len(keep)?;
            lost += length - keep;
        }
    }
    Ok(lost)
}

/// All files below `folder` that RocksDB names as write-ahead logs: `NUMBER.log`.
fn write_ahead_logs(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in folder.read_dir()? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(write_ahead_logs(&path)?);
        } else if path.extension().is_some_and(|ending| ending == "log")
            && path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .is_some_and(|stem| stem.bytes().all(|byte| byte.is_ascii_digit()))
        {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_lose_what_was_not_synced_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let engine = folder.path().join("raft");
        std::fs::create_dir(&engine).unwrap();
        let write = |name: &str, length: usize| {
            let path = engine.join(name);
            std::fs::write(&path, vec![1; length]).unwrap();
            path
        };
        let synced = write("000004.log", 1000);
        let never = write("000005.log", 10);
        let table = write("000006.sst", 50);
        let info = write("LOG", 50);
        let record = |length| SyncRecord {
            call: "fdatasync".into(),
            length,
            path: synced.clone(),
        };
        let lost = cut_to_synced(folder.path(), &[record(100), record(700)]).unwrap();
        let length = |path: &Path| path.metadata().unwrap().len();
        assert_eq!(lost, 310);
        assert_eq!((length(&synced), length(&never)), (700, 0));
        assert_eq!((length(&table), length(&info)), (50, 50));
    }
}
