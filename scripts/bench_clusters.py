"""Clusters of real processes for the benchmark: StrataKV's and etcd's.

Each is three processes on ports of its own, in a folder of its own, with default settings
except where a part of the benchmark says otherwise. They end with the script.
"""
import contextlib
import ctypes
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

TOP = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("STRATA_CACHE", pathlib.Path.home() / ".cache/strata"))
TARGET = os.environ.get("CARGO_TARGET_DIR", str(CACHE / "target"))
STRATA = os.environ.get("STRATA_BIN", f"{TARGET}/release/strata")

HOST = "127.0.0.1"
NODES = 3
STRATA_PORT = 24790
ETCD_PORT = 24890
ETCD_PEER_PORT = 24990
KEYS = 100_000
VALUE_BYTES = 256
# Longest wait for a server to serve, in seconds.
READY = 60
# A cluster is quiet when its processes together use less than so much of a core for a second.
QUIET_CORES = 0.15
# Longest wait for that, in seconds.
QUIET_WAIT = 60
# etcd refuses writes when its file reaches 2 GiB, which a long run of puts does.
ETCD_QUOTA_BYTES = 8 << 30

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


def say(text):
    print(text, file=sys.stderr, flush=True)


def end_with_parent():
    """Between fork and exec: no server outlives this script."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_for(what, ask, seconds=READY, pause=0.05):
    """Asks until the answer is true; the last error is told when the time is over."""
    until = time.monotonic() + seconds
    last = None
    while time.monotonic() < until:
        try:
            answer = ask()
            if answer:
                return answer
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            last = error
        time.sleep(pause)
    raise RuntimeError(f"waited {seconds} s for {what}; last: {last}")


def http(port, path, body=None):
    """The body of a page of a server, or of a POST."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"http://{HOST}:{port}{path}", data, timeout=2) as answer:
        return answer.read()


def strata(*words):
    """Runs a command and returns what it printed."""
    return subprocess.run([STRATA, *words], check=True, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True).stdout


def cpu_seconds(pid):
    """User and system time of a process."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid, field="VmRSS"):
    """Resident memory of a process; with VmHWM its peak."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def forget_peak(pid):
    """The peak of a process's resident memory begins anew (proc(5), clear_refs)."""
    pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


class Cluster:
    """Three processes in a folder. Subclasses say how one is started and who leads."""

    name = ""
    port = 0

    def __init__(self, folder, environment=None):
        self.folder = folder
        self.environment = os.environ | (environment or {})
        self.processes = {}

    def __enter__(self):
        # A node that does not start must not leave the others behind.
        with contextlib.ExitStack() as stack:
            stack.push(self)
            for node in range(1, NODES + 1):
                self.start(node)
            for node in range(1, NODES + 1):
                self.wait(node)
            stack.pop_all()
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def endpoint(self, node):
        return f"{HOST}:{self.port + node - 1}"

    def endpoints(self):
        return ",".join(self.endpoint(node) for node in range(1, NODES + 1))

    def pids(self):
        """Those of the nodes that run; one may have been killed."""
        return [process.pid for process in self.processes.values() if process.poll() is None]

    def start(self, node):
        with open(self.folder / f"{self.name}-{node}.out", "ab") as log:
            self.processes[node] = subprocess.Popen(
                self.words(node), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self.environment, preexec_fn=end_with_parent)

    def wait(self, node):
        """Waits until a node serves."""
        def ask():
            if self.processes[node].poll() is not None:
                log = (self.folder / f"{self.name}-{node}.out").read_text(errors="replace")
                sys.exit(f"{self.name} node {node} ended:\n{log[-2000:]}")
            return self.serves(node)
        wait_for(f"{self.name} node {node} to serve", ask)

    def kill(self, node):
        self.processes[node].kill()
        self.processes[node].wait()

    def wait_until_quiet(self):
        """Waits until what earlier work left behind, such as compactions, is done. Goes on
        after a while in any case: what comes is then measured beside it."""
        until = time.monotonic() + QUIET_WAIT
        while time.monotonic() < until:
            before = sum(cpu_seconds(pid) for pid in self.pids())
            time.sleep(1)
            if sum(cpu_seconds(pid) for pid in self.pids()) - before < QUIET_CORES:
                return

    def bench_words(self, kind, clients, seconds, *more, keys=KEYS, value_bytes=VALUE_BYTES,
                    endpoints=None):
        return [STRATA, "--endpoints", endpoints or self.endpoints(), "--format", "json",
                "bench", kind, "--target", self.name, "--clients", str(clients),
                "--seconds", str(seconds), "--keys", str(keys), "--value-size", str(value_bytes),
                *more]

    def bench(self, kind, clients, seconds, *more, **sizes):
        """One run as the dictionary that `strata bench` prints."""
        pids = ",".join(str(pid) for pid in self.pids())
        words = self.bench_words(kind, clients, seconds, "--server-pids", pids, *more, **sizes)
        return run_bench(words)[-1]


def run_bench(words):
    """The rows that a run of `strata bench` printed; its end with an error ends the script."""
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          check=False)
    return read_rows(words, done.returncode, done.stdout, done.stderr)


def start_bench(words):
    """Starts a run of `strata bench` beside something else; `end_bench` has its rows."""
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=end_with_parent)


def end_bench(load):
    """Waits for a run that `start_bench` began."""
    printed, errors = load.communicate()
    return read_rows(load.args, load.returncode, printed, errors)


def without_folders(words):
    """A command line as it can be repeated anywhere: folders are this machine's."""
    return [pathlib.PurePath(word).name if word.startswith("/") else word for word in words]


def read_rows(words, code, printed, errors):
    if code != 0:
        sys.exit(f"{' '.join(words)}\nended with {code}: {errors.strip()[-500:]}")
    rows = [json.loads(line) for line in printed.splitlines() if line.strip()]
    for row in rows:
        if "command" in row:
            row["command"] = without_folders(row["command"])
        one_region = " one region" if row.get("single_region") else ""
        line = f"  {row['target']} {row['kind']} {row.get('clients', 1):>3} clients{one_region}: "
        line += f"{row['ops_per_second']:,.0f} a second"
        if "p99_us" in row:
            line += f"  p99 {row['p99_us'] / 1000:.1f} ms  {row['failures']} failures"
        say(line)
    return rows


class Strata(Cluster):
    name = "strata"
    port = STRATA_PORT

    def __init__(self, folder, regions=None, environment=None):
        super().__init__(folder, environment)
        self.flags = [] if regions is None else ["--regions", str(regions)]

    def words(self, node):
        members = ",".join(f"{i}={self.endpoint(i)}" for i in range(1, NODES + 1))
        return [STRATA, "node", "--id", str(node), "--addr", self.endpoint(node),
                "--data-dir", str(self.folder / f"strata-{node}"), "--initial-cluster", members,
                *self.flags]

    def healthy(self, node):
        return http(self.port + node - 1, "/healthz") is not None

    def serves(self, node):
        if not self.healthy(node):
            return False
        return all(region["leader_store_id"] for region in self.regions())

    def regions(self):
        words = ("--endpoints", self.endpoints(), "--format", "json", "region", "list")
        regions = json.loads(strata(*words))
        for region in regions:
            region.setdefault("leader_store_id", (region.get("leader") or {}).get("store_id"))
        return regions

    def page(self, node, region_id):
        """What a node shows of its replica of a region."""
        return json.loads(http(self.port + node - 1, f"/debug/regions/{region_id}"))

    def told(self, node, line):
        """The seconds in the last log line of a node with this text; none if there is none."""
        log = (self.folder / f"{self.name}-{node}.out").read_text(errors="replace")
        found = [one for one in log.splitlines() if f"{line}," in one or one.endswith(line)]
        seconds = found and re.search(r"seconds: ([0-9.]+)", found[-1])
        return float(seconds.group(1)) if seconds else None

    def leader(self):
        """Who leads the first region, which holds all keys of a run in one region."""
        return self.regions()[0]["leader_store_id"]


class Etcd(Cluster):
    name = "etcd"
    port = ETCD_PORT

    def __init__(self, folder, binary):
        super().__init__(folder)
        self.binary = binary

    def words(self, node):
        def peer(i):
            return f"http://{HOST}:{ETCD_PEER_PORT + i - 1}"
        client = f"http://{self.endpoint(node)}"
        members = ",".join(f"n{i}={peer(i)}" for i in range(1, NODES + 1))
        return [self.binary, "--name", f"n{node}", "--data-dir", str(self.folder / f"etcd-{node}"),
                "--listen-client-urls", client, "--advertise-client-urls", client,
                "--listen-peer-urls", peer(node), "--initial-advertise-peer-urls", peer(node),
                "--initial-cluster", members, "--initial-cluster-token", "strata-bench",
                "--quota-backend-bytes", str(ETCD_QUOTA_BYTES), "--log-level", "error"]

    def status(self, node):
        return json.loads(http(self.port + node - 1, "/v3/maintenance/status", {}))

    def serves(self, node):
        return json.loads(http(self.port + node - 1, "/health"))["health"] in ("true", True)

    def leader(self):
        for node in range(1, NODES + 1):
            status = self.status(node)
            if status["leader"] == status["header"]["member_id"]:
                return node
        return None


@contextlib.contextmanager
def fresh(parent, make):
    """A cluster that `make` builds in a folder of its own, which goes with it."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="cluster-", dir=parent))
    try:
        with make(folder) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)
