//! Folders that are refused, and that a refusal touches nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

use tempfile::TempDir;

use super::*;
use crate::bootstrap::{ClusterSpec, token_hash};
use crate::engine::{Cf, Durability, Engine, ReadView};
use crate::{PeerStorage, PeerStorageOptions, WriteBatch, keys};

fn options() -> EngineOptions {
    EngineOptions {
        block_cache_bytes: 1 << 20,
        kv_memtable_bytes: 1 << 20,
        log_file_bytes: 1 << 20,
        ..EngineOptions::default()
    }
}

fn open(path: &Path, claim: &Claim) -> Result<DataFolder, FolderError> {
    DataFolder::open(path, &options(), claim)
}

fn claim() -> Claim {
    Claim {
        store_id: Some(1),
        cluster_token_hash: Some(token_hash("strata")),
        initial_stores: Some(vec![3, 2, 1]),
    }
}

/// A folder of store 1 that was bootstrapped and closed.
fn initialised() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut open = open(folder.path(), &claim()).unwrap();
    assert_eq!(open.ident(), None);
    let spec = ClusterSpec::new(&[1, 2, 3], "strata", 6, 3).unwrap();
    open.bootstrap(&spec.ident(1, 42), &spec.layout()).unwrap();
    folder
}

type Listing = BTreeMap<PathBuf, (SystemTime, Vec<u8>)>;

/// Every file below a folder with its time of change and its bytes.
fn listing(folder: &Path) -> Listing {
    let mut found = Listing::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let changed = fs::metadata(&path).unwrap().modified().unwrap();
        if path.is_dir() {
            found.extend(listing(&path));
            found.insert(path, (changed, Vec::new()));
        } else {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, (changed, bytes));
        }
    }
    found
}

/// The folder's own files, without those below its engines: engines that are open write to
/// theirs whenever their threads get to it (their log, files that are no longer needed).
fn listing_beside_engines(folder: &Path) -> Listing {
    let mut found = Listing::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let is_folder = path.is_dir();
        let (changed, bytes) = if is_folder {
            (SystemTime::UNIX_EPOCH, Vec::new())
        } else {
            let changed = fs::metadata(&path).unwrap().modified().unwrap();
            (changed, fs::read(&path).unwrap())
        };
        found.insert(path, (changed, bytes));
    }
    found
}

/// Opens, expects a refusal in one line and an untouched folder.
fn refused(path: &Path, claim: &Claim) -> FolderError {
    refused_as(path, claim, listing)
}

/// As [`refused`], of a folder whose engines are open.
fn refused_beside_engines(path: &Path, claim: &Claim) -> FolderError {
    refused_as(path, claim, listing_beside_engines)
}

fn refused_as(path: &Path, claim: &Claim, listing: fn(&Path) -> Listing) -> FolderError {
    let before = listing(path);
    let error = open(path, claim).expect_err("the folder must be refused");
    assert!(before == listing(path), "the folder was touched");
    let line = error.to_string();
    assert!(!line.contains('\n'), "{line}");
    assert!(line.starts_with(path.to_str().unwrap()), "{line}");
    error
}

#[test]
fn folder_opens_again_with_everything() {
    let folder = initialised();
    fs::write(folder.path().join("notes.txt"), "left alone").unwrap();
    let mut first = open(folder.path(), &claim()).unwrap();
    assert_eq!(first.ident().unwrap().incarnation, 42);
    first.mark_admitted().unwrap();
    drop(first);
    let again = open(folder.path(), &Claim::default()).unwrap();
    assert!(again.ident().unwrap().admitted);
    assert_eq!(again.path(), folder.path());
    let layout = bootstrap::layout_of_ident(again.ident().unwrap()).unwrap();
    let storage = PeerStorage::load(
        again.engines(),
        2,
        layout[1].peers[0].id,
        &PeerStorageOptions::default(),
    );
    assert_eq!(storage.unwrap().unwrap().region(), &layout[1]);
    let notes = fs::read_to_string(folder.path().join("notes.txt")).unwrap();
    assert_eq!(notes, "left alone");
}

#[test]
fn folder_is_made_with_its_parents() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("a/b/data");
    drop(open(&path, &claim()).unwrap());
    assert_eq!(
        fs::read_to_string(path.join("FORMAT")).unwrap(),
        "strata 2\n"
    );
}

#[test]
fn folder_interrupted_before_its_identity_is_new() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path(), &claim()).unwrap());
    assert_eq!(open(folder.path(), &claim()).unwrap().ident(), None);
}

#[test]
fn bad_input_newer_format_folder() {
    let folder = initialised();
    fs::write(folder.path().join("FORMAT"), "strata 3\n").unwrap();
    let error = refused(folder.path(), &claim());
    assert!(matches!(
        error,
        FolderError::NewerFormat {
            found: 3,
            known: 2,
            ..
        }
    ));
    fs::write(folder.path().join("FORMAT"), "strata 1\n").unwrap();
    let error = refused(folder.path(), &claim());
    assert!(matches!(
        error,
        FolderError::OlderFormat {
            found: 1,
            known: 2,
            ..
        }
    ));
    // A format that only the identity tells.
    fs::write(folder.path().join("FORMAT"), "strata 2\n").unwrap();
    let mut ident = files::read_ident(folder.path()).unwrap().unwrap();
    ident.format_version = 3;
    files::write_ident(folder.path(), &ident).unwrap();
    let error = refused(folder.path(), &claim());
    assert!(matches!(error, FolderError::NewerFormat { found: 3, .. }));
    for damage in ["strata", "strata 0\n", "other 1\n", "", "\u{fffd}"] {
        fs::write(folder.path().join("FORMAT"), damage).unwrap();
        let error = refused(folder.path(), &claim());
        assert!(
            matches!(error, FolderError::UnknownFormat { .. }),
            "{error}"
        );
    }
    fs::remove_file(folder.path().join("FORMAT")).unwrap();
    let error = refused(folder.path(), &claim());
    assert!(
        matches!(error, FolderError::FormatMissing { .. }),
        "{error}"
    );
}

#[test]
fn bad_input_folder_in_use() {
    let folder = initialised();
    let first = open(folder.path(), &claim()).unwrap();
    let engines = first.engines().clone();
    drop(first);
    // The engines alone hold the folder.
    let error = refused_beside_engines(folder.path(), &claim());
    let process_id = Some(std::process::id());
    assert_eq!(
        error,
        FolderError::InUse {
            folder: folder.path().to_owned(),
            process_id
        }
    );
    drop(engines);
    open(folder.path(), &claim()).unwrap();
}

#[test]
fn bad_input_read_only_folder() {
    let folder = initialised();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    // The mode counts for the superuser too, whom the system itself would let through.
    for part in ["", "kv", "raft"] {
        let part = folder.path().join(part);
        mode(&part, 0o555);
        let error = refused(folder.path(), &claim());
        assert!(
            matches!(&error, FolderError::ReadOnly { folder, .. } if *folder == part),
            "{error}"
        );
        mode(&part, 0o755);
    }
    open(folder.path(), &claim()).unwrap();

    // A new folder below one that forbids it.
    let parent = tempfile::tempdir().unwrap();
    mode(parent.path(), 0o555);
    let error = open(&parent.path().join("data"), &claim()).unwrap_err();
    assert!(matches!(error, FolderError::ReadOnly { .. }), "{error}");
    assert!(listing(parent.path()).is_empty());
    mode(parent.path(), 0o755);
}

#[test]
fn bad_input_read_only_folder_by_its_file_system() {
    assert!(files::forbids_writing(0o755, true).is_some());
    assert!(files::forbids_writing(0o755, false).is_none());
    // What only the attempt to write shows.
    for errno in [nix::errno::Errno::EROFS, nix::errno::Errno::EACCES] {
        let error = files::file_error(Path::new("/data"), "open", &errno.into());
        assert!(matches!(error, FolderError::ReadOnly { .. }), "{error}");
    }
    let other = files::file_error(Path::new("/data"), "open", &nix::errno::Errno::EIO.into());
    assert!(matches!(other, FolderError::File { .. }));
}

#[test]
fn bad_input_foreign_cluster_folder() {
    let folder = initialised();
    let other_token = Claim {
        cluster_token_hash: Some(token_hash("other")),
        ..claim()
    };
    let error = refused(folder.path(), &other_token);
    assert!(
        matches!(error, FolderError::ForeignCluster { .. }),
        "{error}"
    );
    let other_store = Claim {
        store_id: Some(2),
        ..claim()
    };
    let error = refused(folder.path(), &other_store);
    assert!(
        matches!(
            error,
            FolderError::ForeignStore {
                found: 1,
                asked: 2,
                ..
            }
        ),
        "{error}"
    );
    let other_stores = Claim {
        initial_stores: Some(vec![1, 2, 4]),
        ..claim()
    };
    let error = refused(folder.path(), &other_stores);
    assert!(
        matches!(error, FolderError::ForeignStores { .. }),
        "{error}"
    );
    open(folder.path(), &claim()).unwrap();
}

#[test]
fn bad_input_foreign_cluster_folder_without_its_note() {
    // A damaged copy of the identity is no way around: the engines hold it.
    let folder = initialised();
    let noted = folder.path().join("IDENT");
    let mut bytes = fs::read(&noted).unwrap();
    bytes[3] ^= 4;
    fs::write(&noted, bytes).unwrap();
    let other = Claim {
        store_id: Some(2),
        ..Claim::default()
    };
    let error = open(folder.path(), &other).unwrap_err();
    assert!(matches!(error, FolderError::ForeignStore { .. }), "{error}");
    drop(open(folder.path(), &claim()).unwrap());
    assert!(
        files::read_ident(folder.path()).unwrap().is_some(),
        "made again"
    );
}

#[test]
fn bad_input_foreign_cluster_folder_of_mixed_engines() {
    let (first, second) = (initialised(), tempfile::tempdir().unwrap());
    let mut other = open(second.path(), &claim()).unwrap();
    let spec = ClusterSpec::new(&[1, 2, 3], "strata", 6, 3).unwrap();
    other.bootstrap(&spec.ident(1, 43), &spec.layout()).unwrap();
    drop(other);
    fs::rename(first.path().join("raft"), first.path().join("away")).unwrap();
    fs::rename(second.path().join("raft"), first.path().join("raft")).unwrap();
    let error = open(first.path(), &claim()).unwrap_err();
    let line = error.to_string();
    assert!(line.contains("different stores"), "{line}");
}

#[test]
fn folder_without_an_engine_is_refused_not_made_again() {
    for name in ["kv", "raft"] {
        let folder = initialised();
        fs::remove_dir_all(folder.path().join(name)).unwrap();
        let error = open(folder.path(), &claim()).unwrap_err();
        assert!(matches!(error, FolderError::Engine(_)), "{error}");
        assert!(!folder.path().join(name).join("CURRENT").exists());
    }
}

#[test]
fn folder_that_is_a_file_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("data");
    fs::write(&path, "").unwrap();
    let error = open(&path, &claim()).unwrap_err();
    assert!(matches!(error, FolderError::NotAFolder { .. }));
}

#[test]
fn folder_data_survive() {
    let folder = initialised();
    let opened = open(folder.path(), &claim()).unwrap();
    let mut batch = WriteBatch::new();
    batch.put(Cf::Raw2, keys::data_key(b"k"), "v");
    opened
        .engines()
        .kv
        .write(&batch, Durability::Synced)
        .unwrap();
    drop(opened);
    let opened = open(folder.path(), &claim()).unwrap();
    let found = opened.engines().kv.get(Cf::Raw2, b"zk").unwrap();
    assert_eq!(found.as_deref(), Some(&b"v"[..]));
}

#[test]
fn folder_reader_sees_what_was_written_and_writes_nothing() {
    let folder = initialised();
    let opened = open(folder.path(), &claim()).unwrap();
    let mut batch = WriteBatch::new();
    batch.put(Cf::Raw2, keys::data_key(b"k"), "v");
    let kv = &opened.engines().kv;
    kv.write(&batch, Durability::Synced).unwrap();
    drop(opened);
    let before = listing(folder.path());
    {
        let reader = FolderReader::open(folder.path(), &options()).unwrap();
        assert_eq!(reader.ident().store_id, 1);
        let found = reader.engines().kv.get(Cf::Raw2, b"zk").unwrap();
        assert_eq!(found.as_deref(), Some(&b"v"[..]), "the log is replayed");
        // Beside other readers, not beside a node.
        FolderReader::open(folder.path(), &options()).unwrap();
        let error = refused(folder.path(), &claim());
        assert!(matches!(error, FolderError::InUse { .. }), "{error}");
    }
    assert_eq!(listing(folder.path()), before);
    open(folder.path(), &claim()).unwrap();
}

#[test]
fn folder_reader_is_refused_beside_a_node() {
    let folder = initialised();
    let opened = open(folder.path(), &claim()).unwrap();
    let before = listing_beside_engines(folder.path());
    let error = FolderReader::open(folder.path(), &options()).unwrap_err();
    let pid = std::process::id();
    assert!(
        matches!(&error, FolderError::InUse { process_id: Some(id), .. } if *id == pid),
        "{error}"
    );
    assert_eq!(listing_beside_engines(folder.path()), before);
    drop(opened);
}

#[test]
fn folder_reader_is_refused_where_no_store_is() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().to_owned(), folder.path().join("absent")] {
        let error = FolderReader::open(&path, &options()).unwrap_err();
        assert!(matches!(error, FolderError::NoStore { .. }), "{error}");
    }
    assert!(listing(folder.path()).is_empty(), "nothing was made");
}

/// Set in the process that sees the folder on a read-only file system.
const READ_ONLY_CHILD: &str = "STRATA_TEST_READ_ONLY_FOLDER";
/// What the script answers where the system does not let it mount.
const CANNOT_MOUNT: i32 = 77;
const MOUNT_SCRIPT: &str = r#"
mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 77
exec "$2" --exact --nocapture folder::tests::bad_input_read_only_folder_really_mounted
"#;

/// The real case, where the user may mount: a process in a mount name space of its own,
/// in which the folder is read-only. Elsewhere the tests above stand for it.
#[test]
fn bad_input_read_only_folder_really_mounted() {
    if let Some(path) = std::env::var_os(READ_ONLY_CHILD) {
        let error = refused(Path::new(&path), &claim());
        assert!(matches!(error, FolderError::ReadOnly { .. }), "{error}");
        assert!(error.to_string().contains("mounted read-only"), "{error}");
        return;
    }
    let folder = initialised();
    let output = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", MOUNT_SCRIPT, "sh"])
        .arg(folder.path())
        .arg(std::env::current_exe().unwrap())
        .env(READ_ONLY_CHILD, folder.path())
        .output();
    let Ok(output) = output else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    let not_permitted = output.status.code() == Some(CANNOT_MOUNT)
        || String::from_utf8_lossy(&output.stderr).contains("unshare");
    assert!(
        not_permitted || (output.status.success() && text.contains("1 passed")),
        "{text}"
    );
    open(folder.path(), &claim()).unwrap();
}
