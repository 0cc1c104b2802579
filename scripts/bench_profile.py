"""Where the processors' time of the nodes goes under a load: what `perf` samples.

The clock is sampled, as virtual machines often have no counters. Only what the nodes do is in it:
neither the load generator nor the kernel's own threads. A function belongs to the first area whose
pattern is found in its name, or in the file that holds it.
"""
import collections
import pathlib
import re
import shutil
import subprocess

SAMPLES_A_SECOND = 999

# By the name of the function. Kernel functions are told apart by the file they are in.
KERNEL = (
    ("kernel: files and disk",
     r"ext4|xfs|btrfs|blk|bio|virtqueue|virtio|iowrite|sync|filemap|folio|writeback|buffer_|page|"
     r"iomap|inode|generic_perform_write|submit|dd_|vfs_write$|new_sync_write"),
    ("kernel: sockets",
     r"(^|_)(tcp|ip|ipv4|inet|sk|skb|net|nf|ep|epoll)_|sock|netif|napi|dev_queue|backlog|"
     r"do_epoll|sendmsg|recvmsg|writev|_iter$|object_size"),
    ("kernel: switching threads",
     r"sched|switch|futex|yield|wake|rseq|idle|enqueue|dequeue|update_curr|pick_|plist|eevdf|"
     r"load_avg|hrtimer|spin_unlock_irq"),
    ("kernel: other", r""),
)
PROGRAM = (
    ("allocating", r"_rjem_|malloc|calloc|realloc|\bfree$|tcache|__rust_(alloc|dealloc|realloc)"),
    ("copying, comparing", r"^__?mem(move|cpy|cmp|set)|^__memcmp"),
    ("RocksDB", r"rocksdb"),
    ("raft log", r"raft_log|crc32fast"),
    ("HTTP/2, gRPC, tokio",
     r"h2::|hyper|tonic|\bhttp::|http_body|tower|tokio|mio::|hashbrown|slab::|indexmap|fnv"),
    ("encoding", r"prost|strata_proto|bytes::"),
    ("handing over", r"crossbeam|parking_lot|std::thread|__sched_yield|futex|pthread"),
    ("StrataKV", r"strata"),
    ("other", r""),
)
AREAS = [name for name, _ in (*PROGRAM, *KERNEL)]

# Names of the nodes' threads and what the table calls them.
THREADS = {
    "tokio-rt-worker": "network, raft shards",
    "log": "log writers",
    "apply": "apply",
    "read": "readers",
    "region-worker": "region worker",
    "table-writer": "region worker",
    "rocksdb:low": "RocksDB's own",
    "rocksdb:high": "RocksDB's own",
}


def available():
    """Whether this machine has `perf`."""
    return shutil.which("perf") is not None


def area(library, function):
    """The area of a function; `library` is the file that holds it."""
    kernel = library.startswith("[kernel") or library.startswith("[guest.kernel")
    for name, pattern in KERNEL if kernel else PROGRAM:
        if re.search(pattern, function):
            return name
    raise AssertionError("the last pattern fits everything")


def thread(name):
    """What a thread is called in the table: shards and engines have numbers behind theirs."""
    return THREADS.get(name) or THREADS.get(name.split("-")[0], "other threads")


def shares(text):
    """What `perf report` printed, a line for each thread, file and function, as shares of all
    samples by area and by thread."""
    areas, threads = collections.Counter(), collections.Counter()
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("\t")]
        if line.startswith("#") or len(cells) != 4 or not cells[0].endswith("%"):
            continue
        share = float(cells[0].rstrip("%")) / 100
        function = cells[3].split("] ", 1)[-1]
        areas[area(cells[2], function)] += share
        threads[thread(cells[1])] += share
    return {"areas": dict(areas), "threads": dict(threads)}


def sample(folder, pids, seconds):
    """The shares of what processes do in the next seconds."""
    data = pathlib.Path(folder) / "perf.data"
    subprocess.run(
        ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(SAMPLES_A_SECOND), "-o", str(data),
         "-p", ",".join(map(str, pids)), "--", "sleep", str(seconds)],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    done = subprocess.run(
        ["perf", "report", "-i", str(data), "--stdio", "--no-children", "-s", "comm,dso,sym",
         "--percent-limit", "0", "--field-separator", "\t"],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    data.unlink()
    return shares(done.stdout)
