//! A preloaded library that records every sync that completed, and slows some of them.
//!
//! It is compiled once with the system's C compiler, is kept beside the compiled tests, and
//! is loaded into nodes by `LD_PRELOAD`. For each `fdatasync` and `fsync` it appends one line to the file that
//! `STRATA_SYNC_LOG` names: the call, the length of the file when the sync began (what is
//! surely on disk), and its path. The line is written before the call returns, so that
//! nothing can have been acknowledged on a sync that is not recorded.
//!
//! A log of a raft engine (`raft/*.log`) has its length before it has its records, and is used
//! again. Of these the line holds where the records end that were written when the sync began: the
//! end of the last write that was no zeros, from the header at offset 0 on.
//!
//! `STRATA_SYNC_DELAY_MS` makes each sync of a log of a raft engine take so much longer, as on a slower disk. The delay comes behind the sync itself.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int log_fd = -1;
static long delay_ms = 0;

__attribute__((constructor)) static void open_log(void) {
    const char *path = getenv("STRATA_SYNC_LOG");
    if (path) log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    const char *delay = getenv("STRATA_SYNC_DELAY_MS");
    if (delay) delay_ms = atol(delay);
}

#define FILES 65536
/* Ends of records plus one; 0 where nothing was written. */
static long long written[FILES], synced[FILES];
static pthread_mutex_t ends = PTHREAD_MUTEX_INITIALIZER;

static int path_of(int fd, char *path, size_t room) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, room - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return 1;
}

static int is_raft_log(const char *path) {
    const char *name = strrchr(path, '/');
    if (!name || name - path < 5 || strncmp(name - 5, "/raft", 5) != 0) return 0;
    size_t length = strlen(name);
    return length > 4 && strcmp(name + length - 4, ".log") == 0;
}

static void pass_time(void) {
    struct timespec rest = {delay_ms / 1000, delay_ms % 1000 * 1000000};
    while (nanosleep(&rest, &rest) != 0 && errno == EINTR) {}
}

static int recorded(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    struct stat before;
    int known = fstat(fd, &before) == 0 && fd < FILES;
    pthread_mutex_lock(&ends);
    long long end = known ? written[fd] : 0;
    pthread_mutex_unlock(&ends);
    int result = real(fd);
    int saved = errno;
    if (result == 0 && known && (log_fd >= 0 || delay_ms > 0)) {
        char path[4096], line[4352];
        if (path_of(fd, path, sizeof path)) {
            if (delay_ms > 0 && is_raft_log(path)) pass_time();
            /* Two syncs of a file may end in another order than they began. */
            pthread_mutex_lock(&ends);
            if (end > synced[fd]) synced[fd] = end;
            long long length = synced[fd] ? synced[fd] - 1 : (long long)before.st_size;
            int bytes = snprintf(line, sizeof line, "%s %lld %s\n", name, length, path);
            if (log_fd >= 0 && write(log_fd, line, bytes) != bytes) _exit(111);
            pthread_mutex_unlock(&ends);
        }
    }
    errno = saved;
    return result;
}

static ssize_t placed(const char *name, int fd, const void *data, size_t bytes, off_t at) {
    ssize_t (*real)(int, const void *, size_t, off_t) =
        (ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, name);
    char path[4096], there[64];
    static const char zeros[32];
    int is_fill = bytes >= sizeof zeros && memcmp(data, zeros, sizeof zeros) == 0;
    /* A header that is written once more begins nothing. */
    int is_again = at == 0 && bytes <= sizeof there &&
        pread(fd, there, bytes, 0) == (ssize_t)bytes && memcmp(data, there, bytes) == 0;
    ssize_t result = real(fd, data, bytes, at);
    int saved = errno;
    if (result > 0 && log_fd >= 0 && fd < FILES && !is_fill && !is_again &&
        path_of(fd, path, sizeof path) && is_raft_log(path)) {
        pthread_mutex_lock(&ends);
        written[fd] = at + result + 1;
        if (at == 0) synced[fd] = 0;
        pthread_mutex_unlock(&ends);
    }
    errno = saved;
    return result;
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at) {
    return placed("pwrite", fd, data, bytes, at);
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t at) {
    return placed("pwrite64", fd, data, bytes, at);
}

/* A log gets its name with its header in it, synced under another name. */
int rename(const char *from, const char *to) {
    int (*real)(const char *, const char *) =
        (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    struct stat made;
    int known = log_fd >= 0 && is_raft_log(to) && stat(from, &made) == 0;
    int result = real(from, to);
    int saved = errno;
    if (result == 0 && known) {
        char line[4352];
        int bytes = snprintf(line, sizeof line, "rename %lld %s\n", (long long)made.st_size, to);
        if (write(log_fd, line, bytes) != bytes) _exit(111);
    }
    errno = saved;
    return result;
}

int close(int fd) {
    if (fd >= 0 && fd < FILES) {
        pthread_mutex_lock(&ends);
        written[fd] = synced[fd] = 0;
        pthread_mutex_unlock(&ends);
    }
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "close");
    return real(fd);
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
    /// `fdatasync` or `fsync`; `rename` for a file of a raft engine that has got its name, whole.
    pub call: String,
    /// Length of the file in bytes when the sync began; of a raft engine's log, where its records
    /// ended then.
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

    /// The variables that load it into a process and slow the syncs of its raft engine.
    ///
    /// # Panics
    /// When the delay is no whole number of milliseconds above 0.
    pub fn slow_environment(&self, delay: Duration) -> Vec<(String, String)> {
        let milliseconds = delay.as_millis();
        assert!(
            milliseconds > 0 && delay.subsec_nanos().is_multiple_of(1_000_000),
            "the shim counts milliseconds, not {delay:?}"
        );
        vec![
            ("LD_PRELOAD".into(), self.library.display().to_string()),
            ("STRATA_SYNC_DELAY_MS".into(), milliseconds.to_string()),
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

    /// Writes to files named as a raft engine's are: a header, zeros ahead, records, and all of it
    /// once more when the file is used again.
    const WRITER: &str = r#"
import os, sys
folder = sys.argv[1]
fd = os.open(folder + "/000001.new", os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b"h" * 44, 0)
os.fsync(fd)
os.rename(folder + "/000001.new", folder + "/000001.log")
for life in range(2):
    if life: os.pwrite(fd, b"g" * 44, 0); os.fdatasync(fd)
    os.pwrite(fd, b"r" * 100, 4096)
    os.pwrite(fd, bytes(5000), 4196)
    os.fdatasync(fd)
    os.pwrite(fd, b"r" * 50, 4196)
    os.fdatasync(fd)
os.pwrite(fd, b"g" * 44, 0)
os.fdatasync(fd)
"#;

    #[test]
    fn the_shim_records_where_the_records_of_a_raft_engine_end() {
        let folder = tempfile::tempdir().unwrap();
        let (log, raft) = (folder.path().join("syncs"), folder.path().join("raft"));
        std::fs::create_dir(&raft).unwrap();
        let output = Command::new("python3")
            .args(["-c", WRITER])
            .arg(&raft)
            .envs(SyncShim::build().environment(&log))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let file = raft.join("000001.log");
        let records = SyncShim::read(&log);
        let lengths: Vec<_> = records
            .iter()
            .filter(|record| record.path == file)
            .map(|record| (&record.call[..], record.length))
            .collect();
        let once = [("fdatasync", 4196), ("fdatasync", 4246)];
        let mut expected = vec![("rename", 44)];
        expected.extend(once);
        expected.push(("fdatasync", 44));
        expected.extend(once);
        // The header once more, as it was.
        expected.push(once[1]);
        assert_eq!(lengths, expected);
    }

    #[test]
    fn the_shim_slows_the_syncs_of_a_raft_engine_alone() {
        const DELAY: Duration = Duration::from_millis(700);
        let folder = tempfile::tempdir().unwrap();
        let took = |name: &str| {
            let file = folder.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            let begun = std::time::Instant::now();
            let output = Command::new("dd")
                .args(["if=/dev/zero", "bs=10", "count=1", "conv=fdatasync"])
                .arg(format!("of={}", file.display()))
                .envs(SyncShim::build().slow_environment(DELAY))
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            begun.elapsed()
        };
        assert!(took("raft/000004.log") >= DELAY);
        // A busy machine may be slow by itself: one of many tries is fast.
        for other in ["kv/000004.log", "raft/000004.sst", "raft/log/IDENT"] {
            let fast = (0..20).any(|_| took(other) < DELAY);
            assert!(fast, "{other} is slowed");
        }
    }
}
