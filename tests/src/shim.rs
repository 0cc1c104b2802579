//! A preloaded library that records every sync that completed.
//!
//! It is compiled once with the system's C compiler, is kept beside the compiled tests, and
//! is loaded into nodes by `LD_PRELOAD`. For each `fdatasync` and `fsync` it appends one line to the file that
//! `STRATA_SYNC_LOG` names: the call, the length of the file when the sync began (what is
//! surely on disk), and its path. The line is written before the call returns, so that
//! nothing can have been acknowledged on a sync that is not recorded.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int log_fd = -1;

__attribute__((constructor)) static void open_log(void) {
    const char *path = getenv("STRATA_SYNC_LOG");
    if (path) log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

static int recorded(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    struct stat before;
    int known = fstat(fd, &before) == 0;
    int result = real(fd);
    int saved = errno;
    if (result == 0 && known && log_fd >= 0) {
        char link[64], path[4096], line[4352];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, path, sizeof path - 1);
        if (length > 0) {
            path[length] = 0;
            int bytes = snprintf(line, sizeof line, "%s %lld %s\n", name,
                                 (long long)before.st_size, path);
            if (write(log_fd, line, bytes) != bytes) _exit(111);
        }
    }
    errno = saved;
    return result;
}

int fdatasync(int fd) { return recorded("fdatasync", fd); }
int fsync(int fd) { return recorded("fsync", fd); }
"#;

/// Compiles a library for `LD_PRELOAD`, unless this or another test process has done so, and
/// returns where it is: among the compiled tests, under a name that follows from its text.
///
/// # Panics
/// When there is no C compiler.
pub(crate) fn compile(name: &str, text: &str) -> PathBuf {
    let folder = library_folder();
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let library = folder.join(format!("strata-{name}-{:016x}.so", hasher.finish()));
    if library.exists() {
        return library;
    }
    // Others may be at it too. Each works aside; every rename puts the same library there.
    let aside = tempfile::tempdir_in(&folder).expect("a folder for the shim");
    let source = aside.path().join("shim.c");
    let compiled = aside.path().join("shim.so");
    std::fs::write(&source, text).expect("the source is written");
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-O2", "-Wall", "-o"])
        .arg(&compiled)
        .arg(&source)
        .arg("-ldl")
        .output()
        .expect("cc runs");
    assert!(output.status.success(), "{output:?}");
    std::fs::rename(&compiled, &library).expect("the shim gets its name");
    library
}

/// The folder of this test's own program; that of temporary files where the loader would take
/// the path for several.
fn library_folder() -> PathBuf {
    let program = std::env::current_exe().expect("the system names this program");
    let folder = program.parent().expect("a program is in a folder");
    match folder.to_str() {
        Some(path) if !path.contains([' ', ':']) => folder.to_owned(),
        _ => std::env::temp_dir(),
    }
}

/// One completed sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncRecord {
    /// `fdatasync` or `fsync`.
    pub call: String,
    /// Length of the file in bytes when the sync began.
    pub length: u64,
    /// The file.
    pub path: PathBuf,
}

/// The compiled library.
#[derive(Debug, Clone)]
pub struct SyncShim {
    library: PathBuf,
}

impl SyncShim {
    /// The library, compiled if it is not there yet.
    ///
    /// # Panics
    /// When there is no C compiler.
    pub fn build() -> Self {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        let library = BUILT.get_or_init(|| compile("shim", SOURCE));
        Self {
            library: library.clone(),
        }
    }

    /// The variables that load it into a process and say where to record.
    pub fn environment(&self, log: &Path) -> Vec<(String, String)> {
        vec![
            ("LD_PRELOAD".into(), self.library.display().to_string()),
            ("STRATA_SYNC_LOG".into(), log.display().to_string()),
        ]
    }

    /// What was recorded so far, in order. A line that is being written is left out.
    ///
    /// # Panics
    /// When a line is malformed.
    pub fn read(log: &Path) -> Vec<SyncRecord> {
        let text = match std::fs::read_to_string(log) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => panic!("{}: {error}", log.display()),
        };
        text.split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| {
                let mut words = line.trim_end().splitn(3, ' ');
                let (call, length, path) = (words.next(), words.next(), words.next());
                SyncRecord {
                    call: call.expect("a call").into(),
                    length: length.and_then(|word| word.parse().ok()).expect("a length"),
                    path: path.expect("a path").into(),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_is_compiled_once_also_by_many_at_a_time() {
        let texts = ["one", "other"].map(|name| format!("int {name}_{};", std::process::id()));
        let compile = |text: &str| super::compile("test", text);
        let libraries: Vec<PathBuf> = std::thread::scope(|scope| {
            let compiling: Vec<_> = (0..3).map(|_| scope.spawn(|| compile(&texts[0]))).collect();
            let compiled = compiling.into_iter().map(|one| one.join().unwrap());
            compiled.collect()
        });
        let library = &libraries[0];
        assert!(libraries.iter().all(|one| one == library), "{libraries:?}");
        let modified = || library.metadata().unwrap().modified().unwrap();
        let before = modified();
        assert_eq!(compile(&texts[0]), *library);
        assert_eq!(modified(), before, "it was compiled again");
        let other = compile(&texts[1]);
        assert_ne!(other, *library);
        for library in [library, &other] {
            std::fs::remove_file(library).unwrap();
        }
    }

    #[test]
    fn the_shim_records_what_was_synced() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("syncs");
        let file = folder.path().join("file");
        let output = Command::new("dd")
            .args(["if=/dev/zero", "bs=1000", "count=3", "conv=fdatasync"])
            .arg(format!("of={}", file.display()))
            .envs(SyncShim::build().environment(&log))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(
            SyncShim::read(&log),
            [SyncRecord {
                call: "fdatasync".into(),
                length: 3000,
                path: file
            }]
        );
    }
}
