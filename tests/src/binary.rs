//! The binary under test.

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What the binary is built from, relative to the repository.
const SOURCES: [&str; 11] = [
    "Cargo.toml",
    "Cargo.lock",
    "proto",
    "crates/raft",
    "crates/storage",
    "crates/raftstore",
    "crates/scheduler",
    "crates/client",
    "crates/server",
    "crates/sim",
    "crates/strata",
];

/// The binary that `STRATA_BIN` names, else the one in the target folder.
///
/// # Panics
/// When there is none, or when it is older than what it is built from: a test of
/// yesterday's binary proves nothing.
pub fn strata_binary() -> PathBuf {
    let path = match std::env::var_os("STRATA_BIN") {
        Some(path) => PathBuf::from(path),
        None => target_folder().join("release/strata"),
    };
    if let Err(error) = check_not_older(&path, &repository()) {
        panic!("{error:#}");
    }
    path
}

/// Where the tests keep their lock and what they build.
pub(crate) fn target_folder() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(path) => PathBuf::from(path),
        None => repository().join("target"),
    }
}

fn repository() -> PathBuf {
    // Asked for at run time: one target folder may serve several checkouts.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo");
    Path::new(&package).join("..")
}

/// Refuses a binary that is missing, or older than a source file of `repository`.
///
/// # Errors
/// Says what to run.
pub fn check_not_older(binary: &Path, repository: &Path) -> anyhow::Result<()> {
    let built = binary
        .metadata()
        .and_then(|metadata| metadata.modified())
        .with_context(|| format!("{} is missing: run `make build`", binary.display()))?;
    for source in SOURCES {
        let path = repository.join(source);
        if let Some((newest, when)) = newest(&path)?
            && when > built
        {
            bail!(
                "{} is older than {}: run `make build`",
                binary.display(),
                newest.display()
            );
        }
    }
    Ok(())
}

/// The file below `path` that was changed last.
fn newest(path: &Path) -> anyhow::Result<Option<(PathBuf, SystemTime)>> {
    if !path.exists() {
        return Ok(None);
    }
    let metadata = path.metadata()?;
    if metadata.is_file() {
        let is_source = path.extension().is_some_and(|ending| {
            ["rs", "proto", "toml", "lock"]
                .iter()
                .any(|known| ending == *known)
        });
        // Lint settings do not go into the binary.
        let is_lint = path.file_name().is_some_and(|name| name == "clippy.toml");
        return Ok((is_source && !is_lint)
            .then(|| Ok((path.into(), metadata.modified()?)))
            .transpose()
            .map_err(|error: std::io::Error| error)?);
    }
    let mut latest: Option<(PathBuf, SystemTime)> = None;
    for entry in path.read_dir()? {
        let entry = entry?.path();
        // Tests and their data do not go into the binary either.
        if ["tests", "testdata", "benches"]
            .iter()
            .any(|name| entry.ends_with(name))
        {
            continue;
        }
        if let Some(found) = newest(&entry)?
            && latest.as_ref().is_none_or(|(_, when)| found.1 > *when)
        {
            latest = Some(found);
        }
    }
    Ok(latest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_older_than_a_source_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("crates/raft/src");
        std::fs::create_dir_all(&source).unwrap();
        let binary = folder.path().join("strata");
        let missing = check_not_older(&binary, folder.path()).unwrap_err();
        assert!(missing.to_string().contains("make build"), "{missing:#}");
        let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let write = |path: &Path, when| {
            let file = std::fs::File::create(path).unwrap();
            file.set_modified(when).unwrap();
        };
        write(&binary, at(2000));
        write(&source.join("lib.rs"), at(1000));
        check_not_older(&binary, folder.path()).unwrap();
        write(&source.join("log.rs"), at(3000));
        let older = check_not_older(&binary, folder.path()).unwrap_err();
        assert!(older.to_string().contains("log.rs"), "{older:#}");
    }
}
