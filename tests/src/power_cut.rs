//! A power cut, played on the files of a stopped node.

use crate::SyncRecord;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

/// Cuts every log below `folder` back to its length at its last recorded sync; one that was never
/// synced becomes empty. Of a raft engine's log, which has its length before its records, what is
/// behind the last synced record goes. Returns how many bytes that were
/// no zeros are lost.
///
/// # Errors
/// When a file cannot be cut.
pub fn cut_to_synced(folder: &Path, syncs: &[SyncRecord]) -> std::io::Result<u64> {
    let mut synced: BTreeMap<&Path, u64> = BTreeMap::new();
    for record in syncs {
        let length = synced.entry(&record.path).or_default();
        // A file of a raft engine is used again, from its beginning.
        *length = match is_of_raft_engine(&record.path) {
            true => record.length,
            false => record.length.max(*length),
        };
    }
    let mut lost = 0;
    for path in write_ahead_logs(folder)? {
        let keep = synced.get(path.as_path()).copied().unwrap_or(0);
        let length = path.metadata()?.len();
        if length > keep {
            let gone = &std::fs::read(&path)?[keep as usize..];
            lost += gone.iter().filter(|byte| **byte != 0).count() as u64;
            OpenOptions::new().write(true).open(&path)?.set_len(keep)?;
        }
    }
    Ok(lost)
}

fn is_of_raft_engine(path: &Path) -> bool {
    path.parent().is_some_and(|folder| folder.ends_with("raft"))
}

/// All files below `folder` that are named as logs are: `NUMBER.log`.
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
        let write = |name: &str, length: usize| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, vec![1; length]).unwrap();
            path
        };
        let synced = write("kv/000004.log", 1000);
        let never = write("kv/000005.log", 10);
        let table = write("kv/000006.sst", 50);
        let info = write("kv/LOG", 50);
        let again = write("raft/000001.log", 900);
        let record = |path: &Path, length| SyncRecord {
            call: "fdatasync".into(),
            length,
            path: path.to_owned(),
        };
        let syncs = [
            record(&synced, 700),
            record(&synced, 100),
            record(&again, 800),
            record(&again, 300),
        ];
        let lost = cut_to_synced(folder.path(), &syncs).unwrap();
        let length = |path: &Path| path.metadata().unwrap().len();
        assert_eq!(lost, 310 + 600);
        assert_eq!((length(&synced), length(&never)), (700, 0));
        assert_eq!(length(&again), 300, "the last sync of it counts");
        assert_eq!((length(&table), length(&info)), (50, 50));
    }
}
