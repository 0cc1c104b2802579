#!/usr/bin/env python3
"""Measures StrataKV and etcd side by side on this machine, with one load generator.

    make bench [SECONDS=10]        all rows; writes docs/benchmarks/comparison.json and the
                                   tables in docs/benchmarks.md
    make bench QUICK=1             short runs, three kills, half the snapshot; prints
                                   the tables only

Each server is a cluster of three processes on ports and a folder of its own, with its
default settings: every write is synced before it is answered. The servers run one after
the other, never side by side. `strata bench` loads both, verifies what they answer, and
reads CPU time and memory of the server's processes around each run.
`raft-bench` then measures the raft crate against the published one, without any server.

Exit code 1: a run failed, or a bound that the project sets itself does not hold.
"""
import argparse
import ctypes
import datetime
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

import bench_table

TOP = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("STRATA_CACHE", pathlib.Path.home() / ".cache/strata"))
TARGET = os.environ.get("CARGO_TARGET_DIR", str(CACHE / "target"))
STRATA = os.environ.get("STRATA_BIN", f"{TARGET}/release/strata")
RAFT_BENCH = f"{TARGET}/release/raft-bench"
RESULTS = TOP / "docs" / "benchmarks" / "comparison.json"

HOST = "127.0.0.1"
NODES = 3
STRATA_PORT = 24790
ETCD_PORT = 24890
ETCD_PEER_PORT = 24990
KEYS = 100_000
VALUE_BYTES = 256
CLIENTS = (1, 64, 256)
WRITERS = 16
# Seconds of steady writing before a kill and in all, in one round.
KILL_AFTER = 2
KILL_ROUND = 8
# The region that travels as a snapshot: 1 GiB of values.
SNAPSHOT_KEYS = 1 << 18
SNAPSHOT_VALUE_BYTES = 4096
# Longest wait for such a snapshot, in seconds.
SNAPSHOT_WAIT = 600
# Longest wait for a server to serve, in seconds.
READY = 60
# etcd refuses writes when its file reaches 2 GiB, which a long run of puts does.
ETCD_QUOTA_BYTES = 8 << 30

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


def say(text):
    print(text, file=sys.stderr, flush=True)


def end_with_parent():
    """Between fork and exec: no server outlives this script."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_for(what, ask, seconds=READY):
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
        time.sleep(0.05)
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


class Cluster:
    """Three processes in a folder. Subclasses say how one is started and who leads."""

    name = ""
    port = 0

    def __init__(self, folder):
        self.folder = folder
        self.processes = {}

    def __enter__(self):
        for node in range(1, NODES + 1):
            self.start(node)
        for node in range(1, NODES + 1):
            self.wait(node)
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

    def endpoints(self):
        return ",".join(f"{HOST}:{self.port + node - 1}" for node in range(1, NODES + 1))

    def pids(self):
        return ",".join(str(process.pid) for process in self.processes.values())

    def start(self, node):
        with open(self.folder / f"{self.name}-{node}.out", "ab") as log:
            self.processes[node] = subprocess.Popen(
                self.words(node), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=end_with_parent)

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

    def bench_words(self, kind, clients, seconds, *more, keys=KEYS, value_bytes=VALUE_BYTES,
                    endpoints=None):
        return [STRATA, "--endpoints", endpoints or self.endpoints(), "--format", "json",
                "bench", kind, "--target", self.name, "--clients", str(clients), "--seconds", str(seconds),
                "--keys", str(keys), "--value-size", str(value_bytes), *more]

    def bench(self, kind, clients, seconds, *more, endpoints=None):
        """One run as the dictionary that `strata bench` prints."""
        words = self.bench_words(kind, clients, seconds, "--server-pids", self.pids(), *more,
                                 endpoints=endpoints)
        return run_bench(words)[-1]


def run_bench(words):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}\nended with {done.returncode}: {done.stderr.strip()[-500:]}")
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    for row in rows:
        say(f"  {row['target']} {row['kind']} {row['clients']:>3} clients"
            f"{' one region' if row['single_region'] else ''}: {row['ops_per_second']:,.0f} ops/s"
            f"  p99 {row['p99_us'] / 1000:.1f} ms  {row['errors']} errors")
    return rows


class Strata(Cluster):
    name = "strata"
    port = STRATA_PORT

    def words(self, node):
        members = ",".join(f"{i}={HOST}:{self.port + i - 1}" for i in range(1, NODES + 1))
        return [STRATA, "node", "--id", str(node), "--addr", f"{HOST}:{self.port + node - 1}",
                "--data-dir", str(self.folder / f"strata-{node}"), "--initial-cluster", members]

    def serves(self, node):
        if http(self.port + node - 1, "/healthz") is None:
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
        client = f"http://{HOST}:{self.port + node - 1}"
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


def throughput(cluster, seconds):
    """Puts, then gets of the same keys, at each number of clients. StrataKV's client finds
    each leader by itself; etcd is asked at all its nodes in turn, as its own client does,
    and at its leader alone, which spares it the way between two nodes."""
    rows = []
    for kind in ("put", "get"):
        for asked in ("all",) if cluster.name == "strata" else ("all", "leader"):
            for clients in CLIENTS:
                endpoints = None
                if asked == "leader":
                    endpoints = f"{HOST}:{cluster.port + wait_for('a leader', cluster.leader) - 1}"
                # The first run of gets writes the keys, before its clock starts.
                first = asked == "all" and clients == CLIENTS[0]
                more = ["--loaded"] if kind == "get" and not first else []
                row = cluster.bench(kind, clients, seconds, *more, endpoints=endpoints)
                rows.append(row | {"asked": asked})
    if cluster.name == "strata":
        for kind in ("put", "get"):
            row = cluster.bench(kind, CLIENTS[-1], seconds, "--single-region")
            rows.append(row | {"asked": "all"})
    return rows


def leader_kills(cluster, kills):
    """Longest gap between acknowledgements, in microseconds, of steady writers in one
    region, in a round for each kill -9 of their leader."""
    gaps = []
    for _ in range(kills):
        words = cluster.bench_words("put", WRITERS, KILL_ROUND, "--single-region", keys=1000)
        load = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                preexec_fn=end_with_parent)
        time.sleep(KILL_AFTER)
        victim = wait_for("a leader", cluster.leader)
        cluster.kill(victim)
        printed, _ = load.communicate()
        if load.returncode != 0:
            sys.exit(f"the writers of {cluster.name} ended with {load.returncode}")
        row = json.loads(printed)
        gaps.append({"longest_gap_us": row["longest_gap_us"], "errors": row["errors"],
                     "operations": row["operations"]})
        say(f"  {cluster.name} kill {len(gaps)}: longest gap {row['longest_gap_us'] / 1e6:.2f} s")
        cluster.start(victim)
        cluster.wait(victim)
    return gaps


def forget_peak(pid):
    """The peak of a process's resident memory begins anew (proc(5), clear_refs)."""
    pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def big_snapshot(cluster, keys, value_bytes, idle_resident_bytes):
    """A follower is dead while a region is filled and its log compacted; it comes back by a
    snapshot. Seconds of each step as the nodes' logs tell them, and the growth of memory: the
    sender's since before the follower started, the receiver's above that of an idle node."""
    region = cluster.regions()[0]
    region_id, leader = region["region_id"], region["leader_store_id"]
    follower = leader % NODES + 1
    applied = cluster.page(follower, region_id)["applied_index"]
    cluster.kill(follower)
    run_bench(cluster.bench_words("get", 64, 1, "--single-region", keys=keys,
                                  value_bytes=value_bytes))
    leader = wait_for("a leader", cluster.leader)
    wait_for("the log to be compacted",
             lambda: cluster.page(leader, region_id)["truncated_index"] > applied, SNAPSHOT_WAIT)
    sender = cluster.processes[leader].pid
    before = {"sender": resident_bytes(sender), "receiver": idle_resident_bytes}
    forget_peak(sender)
    began = time.monotonic()
    cluster.start(follower)
    cluster.wait(follower)
    pids = {"sender": sender, "receiver": cluster.processes[follower].pid}
    wanted = cluster.page(leader, region_id)["applied_index"]

    def caught_up():
        page = cluster.page(follower, region_id)
        return page["applied_index"] >= wanted and page["snapshots_received"] > 0
    wait_for("the snapshot to be installed", caught_up, SNAPSHOT_WAIT)
    seconds = time.monotonic() - began
    page = cluster.page(leader, region_id)
    for node, line in ((leader, "a snapshot was made"), (leader, "a snapshot was sent"),
                       (follower, "a snapshot was installed")):
        wait_for(f"the line: {line}", lambda: cluster.told(node, line) is not None)
    found = {
        "value_bytes": keys * value_bytes,
        "chunks_sent": page["snapshot_chunks_sent"],
        "generate_seconds": cluster.told(leader, "a snapshot was made"),
        "send_seconds": cluster.told(leader, "a snapshot was sent"),
        "install_seconds": cluster.told(follower, "a snapshot was installed"),
        "whole_seconds": seconds,
        "grew_bytes": {name: max(0, resident_bytes(pid, "VmHWM") - before[name])
                       for name, pid in pids.items()},
        "resident_bytes": {name: resident_bytes(pid) for name, pid in pids.items()},
    }
    say(f"  snapshot: {found}")
    return found


def startup(folder, idle_seconds):
    """How soon `strata up` serves on an empty folder, and what an idle node uses."""
    up = subprocess.Popen(
        [STRATA, "up", "--data-dir", str(folder / "up"), "--port", str(STRATA_PORT)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=end_with_parent)
    try:
        pids, ready = [], None
        for line in up.stdout:
            if " pid " in line:
                pids.append(int(line.split()[-1]))
            if line.startswith("cluster ready in "):
                ready = int(line.split()[3])
                break
        if ready is None:
            sys.exit("`strata up` did not become ready")
        time.sleep(idle_seconds)
        before = sum(cpu_seconds(pid) for pid in pids)
        time.sleep(idle_seconds)
        cpu = (sum(cpu_seconds(pid) for pid in pids) - before) / idle_seconds / len(pids)
        resident = max(resident_bytes(pid) for pid in pids)
    finally:
        up.send_signal(signal.SIGINT)
        up.wait()
    return {"ready_ms": ready, "idle_cpu_cores": cpu, "idle_resident_bytes": resident}


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid, field="VmRSS"):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def lines(*words):
    out = subprocess.run(words, check=False, stdout=subprocess.PIPE, text=True, cwd=TOP).stdout
    return [line.strip() for line in out.splitlines()] or [""]


def first_line(*words):
    return lines(*words)[0]


def last_line(*words):
    return lines(*words)[-1]


def machine(folder):
    model = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8")
             if line.startswith("model name")]
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "cpu": model[0] if model else "",
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "filesystem": last_line("df", "--output=fstype", str(folder)),
    }


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seconds", type=int, default=10, help="length of each run")
    options.add_argument("--kills", type=int, default=10, help="leader kills of each server")
    options.add_argument("--quick", action="store_true",
                         help="runs of 2 seconds, 3 kills, half the snapshot; nothing is written")
    alone = options.add_mutually_exclusive_group()
    alone.add_argument("--snapshot", action="store_true",
                       help="measure the snapshot alone, and put it into the last results")
    alone.add_argument("--raft", action="store_true",
                       help="measure the raft crate alone, and put it into the last results")
    options = options.parse_args()
    seconds, kills, idle, snapshot_keys = options.seconds, options.kills, 10, SNAPSHOT_KEYS
    if options.quick:
        seconds, kills, idle, snapshot_keys = 2, 3, 2, SNAPSHOT_KEYS // 2
    etcd = None if options.raft else first_line(str(TOP / "scripts" / "setup-etcd.sh"))
    if etcd == "":
        sys.exit("no etcd to compare with")
    CACHE.mkdir(parents=True, exist_ok=True)
    # Not in /tmp, which may be memory: the comparison is one of synced writes.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="bench-", dir=CACHE))
    # Either ends the servers and removes the folder.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit("stopped"))
    try:
        if options.snapshot:
            results = json.loads(RESULTS.read_text(encoding="utf-8"))
            start = startup(folder, idle)
            results["snapshot"] = snapshot_part(folder, snapshot_keys, start)
        elif options.raft:
            results = json.loads(RESULTS.read_text(encoding="utf-8"))
            results["raft"] = raft_part(options.quick)
        else:
            results = measure(folder, etcd, seconds, kills, idle, snapshot_keys)
            results["raft"] = raft_part(options.quick)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(bench_table.tables(results))
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        bench_table.write(results)
        say(f"written: {RESULTS.relative_to(TOP)}, docs/benchmarks.md")
        if not all(holds for _, holds in bench_table.bounds(results)):
            sys.exit("a bound does not hold")


def snapshot_part(folder, keys, start):
    within = folder / "snapshot"
    within.mkdir()
    with Strata(within) as cluster:
        found = big_snapshot(cluster, keys, SNAPSHOT_VALUE_BYTES, start["idle_resident_bytes"])
    shutil.rmtree(within, ignore_errors=True)
    return found | {"commit": own_commit()}


def raft_part(quick):
    """The raft crate against the published one: what `raft-bench` prints as JSON."""
    say("raft")
    words = [RAFT_BENCH, *(["--turns", "3"] if quick else [])]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    rows = []
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            rows.append(json.loads(line))
        else:
            say(f"  {line}")
    return {"commit": own_commit(), "rows": rows}


def own_commit():
    return first_line("git", "describe", "--always", "--dirty")


def measure(folder, etcd, seconds, kills, idle, snapshot_keys):
    results = {
        "date": datetime.date.today().isoformat(),
        "commit": own_commit(),
        "seconds": seconds,
        "nodes": NODES,
        "keys": KEYS,
        "value_bytes": VALUE_BYTES,
        "versions": {"strata": first_line(STRATA, "--version"),
                     "etcd": first_line(etcd, "--version")},
        "machine": machine(folder),
        "rows": [],
        "leader_kills": {},
    }
    say("startup")
    results["startup"] = startup(folder, idle)
    for make in (Strata, lambda where: Etcd(where, etcd)):
        with make(folder) as cluster:
            say(cluster.name)
            results["rows"] += throughput(cluster, seconds)
            results["leader_kills"][cluster.name] = leader_kills(cluster, kills)
    say("snapshot")
    results["snapshot"] = snapshot_part(folder, snapshot_keys, results["startup"])
    say("noop")
    noop = run_bench([
        STRATA, "--format", "json", "bench", "noop", "--clients", str(CLIENTS[-1]),
        "--seconds", str(seconds), "--keys", str(KEYS), "--value-size", str(VALUE_BYTES)])
    results["rows"] += [row | {"asked": "all"} for row in noop]
    for name, rounds in results["leader_kills"].items():
        median = statistics.median(one["longest_gap_us"] for one in rounds) / 1e6
        say(f"median longest gap of {name}: {median:.2f} s")
    return results


if __name__ == "__main__":
    main()
