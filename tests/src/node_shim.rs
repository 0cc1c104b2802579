//! A preloaded library that gives a node clocks of its own, and roads of its own.
//!
//! Clocks   `CLOCK_REALTIME` is read with an offset, `CLOCK_BOOTTIME` (by which leases are
//!          measured) with a rate. Both stand in a small file that the node maps and the
//!          test writes, so they change while the node runs and outlive its restarts.
//!          `CLOCK_MONOTONIC`, in which the kernel takes the times to wait, stays as it is.
//! Roads    A connection to a port of the list in `NEMESIS_ROADS` goes to another port: that
//!          of the proxy which stands between this node and that one.
//!
//! It is compiled once with the system's C compiler, as [`crate::SyncShim`].
//!
//! Invariant: a node's `CLOCK_BOOTTIME` never goes back and never jumps. A reader takes the
//! true time first and the state after it, and waits while the state is written; the time
//! from which a new rate holds is taken in between. So whoever used the old state has read
//! an earlier time, and for such times the new state says the same as the old.

use crate::shim::compile;
use nix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define ROADS_MAX 64

/* Written by the test; `version` is odd while it writes. */
struct clocks {
    uint64_t version;
    int64_t wall_offset;
    int64_t turn, boottime_at_turn, rate_before, rate_after;
};

static struct clocks *shared;
static struct { uint16_t from, to; } roads[ROADS_MAX];
static int road_count;
static int (*real_gettime)(clockid_t, struct timespec *);
static int (*real_connect)(int, const struct sockaddr *, socklen_t);
static int (*real_timedwait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);

__attribute__((constructor)) static void begin(void) {
    real_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    real_connect = dlsym(RTLD_NEXT, "connect");
    real_timedwait = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!real_timedwait) real_timedwait = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    char *word = getenv("NEMESIS_ROADS");
    while (word && *word && road_count < ROADS_MAX) {
        roads[road_count].from = strtoul(word, &word, 10);
        if (*word++ != '=') abort();
        roads[road_count++].to = strtoul(word, &word, 10);
        if (*word == ',') word++;
    }
    const char *path = getenv("NEMESIS_CLOCKS");
    if (!path) return;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) abort();
    void *at = mmap(NULL, sizeof *shared, PROT_READ, MAP_SHARED, file, 0);
    if (at == MAP_FAILED) abort();
    close(file);
    shared = at;
}

static struct clocks now_shared(void) {
    struct clocks seen;
    uint64_t version;
    do {
        while ((version = __atomic_load_n(&shared->version, __ATOMIC_ACQUIRE)) & 1) sched_yield();
        memcpy(&seen, shared, sizeof seen);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
    } while (version != __atomic_load_n(&shared->version, __ATOMIC_RELAXED));
    return seen;
}

static int64_t wall_offset(void) { return shared ? now_shared().wall_offset : 0; }

static struct timespec moved(struct timespec time, int64_t by) {
    int64_t all = time.tv_sec * SECOND + time.tv_nsec + by;
    time.tv_sec = all / SECOND;
    time.tv_nsec = all % SECOND;
    return time;
}

static int raw_gettime(clockid_t clock, struct timespec *time) {
    /* The allocator asks for the time before constructors run. */
    if (real_gettime) return real_gettime(clock, time);
    return syscall(SYS_clock_gettime, clock, time);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = raw_gettime(clock, time);
    if (result != 0 || !shared) return result;
    struct clocks seen = now_shared();
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) {
        *time = moved(*time, seen.wall_offset);
    } else if (clock == CLOCK_BOOTTIME) {
        int64_t at = time->tv_sec * SECOND + time->tv_nsec, since = at - seen.turn;
        int64_t rate = since < 0 ? seen.rate_before : seen.rate_after;
        int64_t gained = (int64_t)((__int128)since * rate / 1000000);
        *time = moved(*time, seen.boottime_at_turn - seen.turn + gained);
    }
    return result;
}

int gettimeofday(struct timeval *time, void *zone) {
    struct timespec now;
    (void)zone;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return result;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

/* RocksDB's background timers wait for a time of the wall clock. */
int pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *until) {
    struct timespec real = moved(*until, -wall_offset());
    if (real.tv_sec < 0) real.tv_sec = 0;
    return real_timedwait(c, m, &real);
}

int connect(int socket, const struct sockaddr *to, socklen_t length) {
    struct sockaddr_in changed;
    if (to->sa_family == AF_INET && length >= sizeof changed) {
        memcpy(&changed, to, sizeof changed);
        for (int i = 0; i < road_count; i++)
            if (ntohs(changed.sin_port) == roads[i].from) {
                changed.sin_port = htons(roads[i].to);
                return real_connect(socket, (struct sockaddr *)&changed, sizeof changed);
            }
    }
    return real_connect(socket, to, length);
}
"#;

/// The library, compiled if it is not there yet.
fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| compile("node-shim", SOURCE))
}

/// Variables of a node: its clocks, and which port is reached through which other.
pub(crate) fn environment(
    clocks: &NodeClocks,
    roads: &BTreeMap<u16, u16>,
) -> Vec<(String, String)> {
    let roads: Vec<String> = roads
        .iter()
        .map(|(from, to)| format!("{from}={to}"))
        .collect();
    vec![
        ("LD_PRELOAD".into(), library().display().to_string()),
        ("NEMESIS_CLOCKS".into(), clocks.path.display().to_string()),
        ("NEMESIS_ROADS".into(), roads.join(",")),
    ]
}

/// The clocks of one node.
#[derive(Debug)]
pub struct NodeClocks {
    path: PathBuf,
    file: File,
    version: u64,
    state: State,
}

/// As the node reads it, in nanoseconds; rates in parts per million above the true one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    wall_offset: i64,
    turn: i64,
    boottime_at_turn: i64,
    rate_before: i64,
    rate_after: i64,
}

/// What the machine's own `CLOCK_BOOTTIME` shows, in nanoseconds.
fn boottime() -> i64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every Linux has CLOCK_BOOTTIME");
    time.tv_sec() * 1_000_000_000 + time.tv_nsec()
}

impl State {
    fn boottime(&self, at: i64) -> i64 {
        let since = at - self.turn;
        let rate = if since < 0 {
            self.rate_before
        } else {
            self.rate_after
        };
        let gained = i128::from(since) * i128::from(rate) / 1_000_000;
        self.boottime_at_turn + since + i64::try_from(gained).expect("a short run")
    }
}

impl NodeClocks {
    /// True clocks, in a file of that name.
    ///
    /// # Panics
    /// When the file cannot be made.
    pub fn create(path: &Path) -> Self {
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(path)
            .expect("a file for the clocks");
        let mut clocks = Self {
            path: path.to_owned(),
            file,
            version: 0,
            state: State {
                wall_offset: 0,
                turn: 0,
                boottime_at_turn: 0,
                rate_before: 0,
                rate_after: 0,
            },
        };
        clocks.change(|_| {});
        clocks
    }

    /// Puts the wall clock so many seconds before (negative) or behind the true one.
    pub fn set_wall_offset(&mut self, seconds: i64) {
        self.change(|state| state.wall_offset = seconds * 1_000_000_000);
    }

    /// Lets `CLOCK_BOOTTIME` run so many parts in a million faster than it should; less than
    /// 0: slower; -1,000,000: it stands still.
    ///
    /// # Panics
    /// When the clock would go back.
    pub fn set_rate(&mut self, parts_per_million: i64) {
        assert!(parts_per_million >= -1_000_000, "the clock would go back");
        self.change(|state| {
            let turn = boottime();
            *state = State {
                turn,
                boottime_at_turn: state.boottime(turn),
                rate_before: state.rate_after,
                rate_after: parts_per_million,
                ..*state
            };
        });
    }

    /// Changes the state while all readers wait.
    fn change(&mut self, change: impl FnOnce(&mut State)) {
        self.put(&(self.version + 1).to_ne_bytes(), 0);
        change(&mut self.state);
        let state = &self.state;
        let words = [
            state.wall_offset,
            state.turn,
            state.boottime_at_turn,
            state.rate_before,
            state.rate_after,
        ];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.put(&bytes, 8);
        self.version += 2;
        self.put(&self.version.to_ne_bytes(), 0);
    }

    fn put(&self, bytes: &[u8], at: u64) {
        let written = self.file.write_all_at(bytes, at);
        written.expect("the clocks are written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// What a process under these clocks reads: seconds since 1970.
    fn wall(clocks: &NodeClocks) -> i64 {
        let output = Command::new("date")
            .arg("+%s")
            .envs(environment(clocks, &BTreeMap::new()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.trim().parse().unwrap()
    }

    #[test]
    fn nemesis_wall_clock_of_a_process_jumps_both_ways() {
        let folder = tempfile::tempdir().unwrap();
        let mut clocks = NodeClocks::create(&folder.path().join("clocks"));
        let start = wall(&clocks);
        for (offset, expected) in [(7200, 7200), (-7200, -7200), (0, 0)] {
            clocks.set_wall_offset(offset);
            let moved = wall(&clocks) - start - expected;
            assert!((0..600).contains(&moved), "{offset}: off by {moved} s");
        }
    }

    #[test]
    fn nemesis_boottime_runs_at_its_rate_and_never_jumps() {
        let mut state = State {
            wall_offset: 0,
            turn: 1_000,
            boottime_at_turn: 1_000,
            rate_before: 0,
            rate_after: 50_000,
        };
        assert_eq!(state.boottime(1_000), 1_000);
        assert_eq!(state.boottime(2_001_000), 2_101_000);
        state = State {
            turn: 2_001_000,
            boottime_at_turn: state.boottime(2_001_000),
            rate_before: 50_000,
            rate_after: -1_000_000,
            ..state
        };
        assert_eq!(state.boottime(1_001_000), 1_051_000);
        assert_eq!(state.boottime(9_000_000), 2_101_000);
    }
}
