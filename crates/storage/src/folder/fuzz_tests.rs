//! The small files of a data folder, damaged in every way: a start, or one line.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use strata_fuzz::{Mutator, run};
use tempfile::TempDir;

use super::*;
use crate::bootstrap::ClusterSpec;
use crate::engine::{Cf, Durability, Engine, ReadView};
use crate::{WriteBatch, keys};

/// Files that are read or written at a start beside tables, logs and manifests.
const SMALL_FILES: [&str; 8] = [
    "FORMAT",
    "IDENT",
    "LOCK",
    "FORMAT.tmp",
    "IDENT.tmp",
    "kv/CURRENT",
    "kv/IDENTITY",
    "raft/000001.log",
];

fn options() -> EngineOptions {
    EngineOptions {
        block_cache_bytes: 1 << 20,
        kv_memtable_bytes: 1 << 20,
        log_file_bytes: 1 << 20,
        ..EngineOptions::default()
    }
}

fn key() -> Vec<u8> {
    keys::data_key(b"k")
}

/// A folder of store 1 with one key, half of it in tables and half in logs.
fn store() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut open = DataFolder::open(folder.path(), &options(), &Claim::default()).unwrap();
    let spec = ClusterSpec::new(&[1, 2, 3], "strata", 6, 3).unwrap();
    open.bootstrap(&spec.ident(1, 42), &spec.layout()).unwrap();
    open.engines().kv.as_kv().unwrap().flush().unwrap();
    let mut batch = WriteBatch::new();
    batch.put(Cf::Raw2, key(), "v");
    open.engines().kv.write(&batch, Durability::Synced).unwrap();
    folder
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Takes away whatever is there.
fn clear(path: &Path) {
    if path.is_dir() {
        fs::remove_dir_all(path).unwrap();
    } else if fs::symlink_metadata(path).is_ok() {
        fs::remove_file(path).unwrap();
    }
}

/// Damages one of the files.
fn damage(mutator: &mut Mutator, file: &Path) {
    let whole = fs::read(file).unwrap_or_else(|_| b"strata 2\n".to_vec());
    clear(file);
    let bytes = match mutator.number() % 10 {
        0 => return,
        1 => return fs::create_dir(file).unwrap(),
        2 => return nix::unistd::mkfifo(file, Mode::S_IRWXU).unwrap(),
        3 => return std::os::unix::fs::symlink("nowhere", file).unwrap(),
        4 => Vec::new(),
        5 => vec![mutator.number() as u8; 2 << 20],
        6 => mutator
            .text(&["strata", "MANIFEST-000001", "2"])
            .into_bytes(),
        7 => format!("strata {}\n", mutator.number()).into_bytes(),
        _ => mutator.bytes(&whole),
    };
    fs::write(file, bytes).unwrap();
}

/// One line that names the folder, or the engine in it.
fn check_line(folder: &Path, error: &FolderError) {
    let line = error.to_string();
    assert!(!line.chars().any(char::is_control), "{line:?}");
    assert!(line.len() < 1_000, "{} bytes", line.len());
    assert!(line.contains(folder.to_str().unwrap()), "{line}");
    assert!(line.contains(';'), "what is to be done? {line}");
}

fn check_whole(open: &DataFolder) {
    assert_eq!(open.ident().unwrap().incarnation, 42);
    let found = open.engines().kv.get(Cf::Raw2, &key()).unwrap();
    assert_eq!(found.as_deref(), Some(&b"v"[..]));
}

/// A start takes the folder with all that is in it, or refuses it; then it is as good as
/// before once the files are restored. A look never writes.
#[test]
fn fuzz_small_files_of_a_folder() {
    let original = store();
    let (mut started, mut refused) = (0, 0);
    run("small files of a folder", 50, |mutator| {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        copy(original.path(), &path);
        let damaged: Vec<PathBuf> = (0..1 + mutator.number() % 2)
            .map(|_| path.join(mutator.pick(&SMALL_FILES)))
            .collect();
        for file in &damaged {
            damage(mutator, file);
        }
        if let Err(error) = FolderReader::open(&path, &options()) {
            check_line(&path, &error);
        }
        match DataFolder::open(&path, &options(), &Claim::default()) {
            Ok(open) => {
                started += 1;
                check_whole(&open);
            }
            Err(error) => {
                refused += 1;
                check_line(&path, &error);
                for file in &damaged {
                    clear(file);
                    let name = file.strip_prefix(&path).unwrap();
                    let _ = fs::copy(original.path().join(name), file);
                }
                check_whole(&DataFolder::open(&path, &options(), &Claim::default()).unwrap());
            }
        }
    });
    if strata_fuzz::is_whole_run() {
        assert!(
            started > 10 && refused > 10,
            "{started} started, {refused} refused"
        );
    }
}

/// A new database in its place would remove the tables of the old one.
#[test]
fn bad_input_engine_without_current_is_refused_not_made_anew() {
    for (engine, ident) in [("kv", true), ("kv", false)] {
        let folder = store();
        let current = folder.path().join(engine).join("CURRENT");
        let kept = fs::read(&current).unwrap();
        fs::remove_file(&current).unwrap();
        if !ident {
            fs::write(folder.path().join("IDENT"), "damaged").unwrap();
        }
        // Twice: a first start that made CURRENT would let the second one remove the tables.
        for _ in 0..2 {
            let error = DataFolder::open(folder.path(), &options(), &Claim::default());
            let error = error.expect_err("the folder must be refused");
            let missing = matches!(
                error,
                FolderError::Engine(crate::OpenError::CurrentMissing { .. })
            );
            assert!(missing, "{error}");
            check_line(folder.path(), &error);
        }
        fs::write(&current, kept).unwrap();
        check_whole(&DataFolder::open(folder.path(), &options(), &Claim::default()).unwrap());
    }
}
