"""The parts of the benchmark: each measures one thing on clusters of its own.

A part takes the settings of the run and returns what it found, ready for JSON. Rows are what
`strata bench` printed. `PARTS` at the end has them in the order of a whole run.
"""
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import bench_counts
import bench_profile
import bench_stages
from bench_bounds import median_of
from bench_clusters import (
    KEYS, NODES, STRATA, STRATA_PORT, TARGET, VALUE_BYTES, Etcd, Strata, cpu_seconds,
    end_bench, end_with_parent, forget_peak, fresh, resident_bytes, run_bench, say, start_bench,
    strata, wait_for, without_folders,
)

RAFT_BENCH = f"{TARGET}/release/raft-bench"
CLIENTS = (1, 64, 256)
# Requests under way, and keys in each, in batches and scans.
MANY_CLIENTS = 16
BATCH = 64
SCAN = 1000
# Connections of the no-op server: as many as the load has to one node, and to a cluster.
NOOP_CONNECTIONS = (1, NODES)
# Writers while a leader is killed; seconds of steady writing before, and in all, in one round.
WRITERS = 16
KILL_AFTER = 2
KILL_ROUND = 8
# A large region: 1 GiB of values.
SNAPSHOT_KEYS = 1 << 18
SNAPSHOT_VALUE_BYTES = 4096
# Part of these keys that is written anew so that the log of a dead follower is compacted.
SNAPSHOT_KEYS_AGAIN = 4
# Snapshots of each kind; the median counts.
SNAPSHOT_ROUNDS = 3
# Longest wait for such a snapshot, in seconds.
SNAPSHOT_WAIT = 600
# Clients of the puts beside a snapshot.
SNAPSHOT_CLIENTS = 64
# Times that all rows of puts and gets are measured, each for half of the seconds of a run.
THROUGHPUT_TURNS = 3
# Numbers of regions that are compared; none: all keys in one region of a default cluster.
LAYOUTS = (None, 8, 64, 512)
# Bytes of a value of about the largest size: with what an entry adds it stays below
# `raft.max-entry-size`.
LARGE_VALUE_BYTES = 8_000_000
# Loads that are profiled: kind, clients, regions of the cluster if not the default's, bytes of values.
PROFILES = (("put", 1, None, VALUE_BYTES), ("put", 64, None, VALUE_BYTES),
            ("put", 256, None, VALUE_BYTES), ("put", 256, 512, VALUE_BYTES),
            ("put", 1, None, LARGE_VALUE_BYTES), ("get", 64, None, VALUE_BYTES),
            ("get", 256, None, VALUE_BYTES), ("get", 256, 1, VALUE_BYTES),
            ("get", 256, 512, VALUE_BYTES), ("scan", MANY_CLIENTS, None, VALUE_BYTES),
            ("idle", 0, 2000, VALUE_BYTES))
# Regions of the nodes that idle or restart, and data before a restart: 2 GiB of values.
MANY_REGIONS = 2000
RESTART_KEYS = 1 << 19
RESTART_VALUE_BYTES = 4096
# First bytes of the keys that must answer after a restart.
RESTART_PROBES = (0x00, 0x20, 0x40, 0x60, 0x80, 0xa0, 0xc0, 0xe0)


@dataclasses.dataclass
class Run:
    """What a run is told: where it may write, etcd's binary, length of each load."""

    folder: pathlib.Path
    etcd: str
    seconds: int
    kills: int
    quick: bool

    def pick(self, full, quick):
        """A size of a whole run, or of a quick one."""
        return quick if self.quick else full

    def strata(self, **settings):
        return fresh(self.folder, lambda folder: Strata(folder, **settings))

    def both(self):
        """A cluster of each system, one after the other."""
        yield self.strata()
        yield fresh(self.folder, lambda folder: Etcd(folder, self.etcd))


def startup(run):
    """How soon `strata up` serves on an empty folder, and what an idle node uses."""
    idle = run.pick(10, 2)
    up = subprocess.Popen(
        [STRATA, "up", "--data-dir", str(run.folder / "up"), "--port", str(STRATA_PORT)],
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
        time.sleep(idle)
        cores = idle_cores(pids, idle)
        resident = max(resident_bytes(pid) for pid in pids)
    finally:
        up.send_signal(signal.SIGINT)
        up.wait()
    return {"ready_ms": ready, "idle_cpu_cores": sum(cores) / len(cores),
            "idle_resident_bytes": resident}


def idle_cores(pids, seconds):
    """What each process uses of a core in the next seconds."""
    before = [cpu_seconds(pid) for pid in pids]
    time.sleep(seconds)
    return [(cpu_seconds(pid) - was) / seconds for pid, was in zip(pids, before)]


def throughput(run):
    """Puts and gets of both systems at each number of clients, and the no-op server: all of it in
    turns, as a machine is not the same from one minute to the next. Of each row the turn with the
    median speed counts."""
    number, seconds = run.pick((THROUGHPUT_TURNS, max(1, run.seconds // 2)), (1, run.seconds))
    turns = [throughput_turn(run, seconds) for _ in range(number)]
    return {"rows": [median_turn(rows) for rows in zip(*turns)],
            "turns": [[row["ops_per_second"] for row in rows] for rows in turns]}


def median_turn(rows):
    """The turn of a row with the median speed, with the errors and wrong answers of all, and the
    most memory of any."""
    found = dict(median_of(rows, lambda row: row["ops_per_second"]))
    for count in ("errors", "wrong_answers"):
        found[count] = sum(row[count] for row in rows)
    if found.get("servers"):
        most = max((row["servers"]["resident_bytes"] for row in rows), key=max)
        found["servers"] = found["servers"] | {"resident_bytes": most}
    return found


def throughput_turn(run, seconds):
    """Each row once, always in this order."""
    rows = []
    for made in run.both():
        with made as cluster:
            rows += throughput_of(cluster, seconds)
    for connections in NOOP_CONNECTIONS:
        noop = run_bench([
            STRATA, "--format", "json", "bench", "noop", "--clients", str(CLIENTS[-1]),
            "--seconds", str(seconds), "--keys", str(KEYS), "--value-size", str(VALUE_BYTES),
            "--connections", str(connections)])
        rows += [row | {"asked": "all"} for row in noop]
    return rows


def throughput_of(cluster, seconds):
    """Puts, then gets of the same keys, at each number of clients. StrataKV's client finds
    each leader by itself; etcd is asked at all its nodes in turn, as its own client does,
    and at its leader alone, which spares it the way between two nodes."""
    rows = []
    for kind in ("put", "get"):
        for asked in ("all",) if cluster.name == "strata" else ("all", "leader"):
            for clients in CLIENTS:
                endpoints = None
                if asked == "leader":
                    endpoints = cluster.endpoint(wait_for("a leader", cluster.leader))
                # The first run of gets writes the keys, before its clock starts.
                first = asked == "all" and clients == CLIENTS[0]
                more = ["--loaded"] if kind == "get" and not first else []
                staged = kind == "put" and cluster.name == "strata"
                before = bench_stages.scrape(cluster) if staged else None
                row = counted(cluster, kind, clients, seconds, *more, endpoints=endpoints)
                if staged:
                    row["stages"] = bench_stages.between(before, bench_stages.scrape(cluster))
                rows.append(row | {"asked": asked})
    if cluster.name == "strata":
        for kind in ("put", "get"):
            row = cluster.bench(kind, CLIENTS[-1], seconds, "--single-region")
            rows.append(row | {"asked": "all"})
    return rows


def counted(cluster, kind, *words, **more):
    """A run, and of puts into StrataKV what each caused."""
    if kind != "put" or cluster.name != "strata":
        return cluster.bench(kind, *words, **more)
    before = bench_counts.scrape(cluster)
    row = cluster.bench(kind, *words, **more)
    return row | {"counts": bench_counts.between(before, bench_counts.scrape(cluster))}


def batch(run):
    """Batches of keys beside the same work with a request for each key."""
    with run.strata() as cluster:
        rows = []
        for kind in ("put", "get"):
            rows.append(cluster.bench(kind, CLIENTS[-1], run.seconds))
            # The gets before wrote the keys.
            more = ["--loaded"] if kind == "get" else []
            rows.append(cluster.bench(f"batch-{kind}", MANY_CLIENTS, run.seconds, "--batch",
                                      str(BATCH), *more))
        return {"rows": rows}


def scan(run):
    """Scans of a cluster, and the iterator of one engine over as many such keys."""
    with run.strata() as cluster:
        rows = [cluster.bench("scan", MANY_CLIENTS, run.seconds, "--limit", str(SCAN))]
    rows += run_bench([
        STRATA, "--format", "json", "bench", "iterator", "--limit", str(SCAN), "--seconds",
        str(run.seconds), "--keys", str(KEYS), "--value-size", str(VALUE_BYTES),
        "--dir", str(run.folder)])
    return {"rows": rows}


def regions(run):
    """The same load on all keys in one region and on clusters of more and more regions, each
    on an empty folder. In turns, so that no layout has the machine's better minutes alone."""
    rows = []
    for _ in range(run.pick(2, 1)):
        for layout in LAYOUTS:
            with run.strata(**({} if layout is None else {"regions": layout})) as cluster:
                more = ["--single-region"] if layout is None else []
                for kind in ("put", "get"):
                    row = counted(cluster, kind, CLIENTS[-1], run.seconds, *more)
                    rows.append(row | {"layout": layout or 1})
    return {"rows": rows}


def idle(run):
    """What nodes with many regions use while nobody asks them anything."""
    with run.strata(regions=MANY_REGIONS) as cluster:
        time.sleep(run.pick(15, 5))
        seconds = run.pick(30, 5)
        cores = idle_cores(cluster.pids(), seconds)
        found = {"regions": MANY_REGIONS, "measured_seconds": seconds, "cpu_cores": cores,
                 "resident_bytes": [resident_bytes(pid) for pid in cluster.pids()]}
    say(f"  idle: {found}")
    return found


def restart(run):
    """How soon a node, and a whole cluster, with much data and many regions serves again
    after a kill -9."""
    keys = run.pick(RESTART_KEYS, RESTART_KEYS // 16)
    with run.strata(regions=MANY_REGIONS) as cluster:
        for probe in RESTART_PROBES:
            strata("--endpoints", cluster.endpoints(), "kv", "--hex", "put", probe_key(probe), "01")
        fill = run_bench(cluster.bench_words("get", 64, 1, keys=keys,
                                             value_bytes=RESTART_VALUE_BYTES))[0]
        found = {"regions": MANY_REGIONS, "value_bytes": keys * RESTART_VALUE_BYTES,
                 "fill_command": fill["command"], "rounds": []}
        for name, nodes in (("one node", [1]), ("all nodes", list(range(1, NODES + 1)))):
            for node in nodes:
                cluster.kill(node)
            began = time.monotonic()
            for node in nodes:
                cluster.start(node)
            for node in nodes:
                wait_for("/healthz", lambda: cluster.healthy(node), pause=0.01)
            healthy = time.monotonic() - began
            for node in nodes:
                for probe in RESTART_PROBES:
                    wait_for("a get", lambda: answers(cluster, node, probe), pause=0.01)
            answered = time.monotonic() - began
            for node in range(1, NODES + 1):
                cluster.wait(node)
            found["rounds"].append({"killed": name, "healthy_seconds": healthy,
                                    "answered_seconds": answered,
                                    "all_led_seconds": time.monotonic() - began})
            say(f"  restart: {found['rounds'][-1]}")
    return found


def probe_key(first):
    """A key in hexadecimal digits; the first byte spreads them over the regions."""
    return f"{first:02x}" + b"strata-bench-restart".hex()


def answers(cluster, node, probe):
    """Whether a get that is sent to this node first has the value."""
    printed = strata("--endpoints", cluster.endpoint(node), "--timeout", "1", "kv", "--hex", "get",
                     probe_key(probe))
    return printed.strip() == "01"


def device_written_bytes(folder):
    """What was written to the disk that holds a folder since the system started, by anybody;
    none where the system does not tell."""
    number = os.stat(folder).st_dev
    counters = pathlib.Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat")
    # The seventh field, in sectors of 512 bytes whatever the disk's own are.
    return int(counters.read_text(encoding="ascii").split()[6]) * 512 if counters.exists() else None


def written(run):
    """What sustained puts cause to be written to disk, on both systems. At the disk everything is
    counted that the machine writes meanwhile; for the processes the kernel counts whole pages of
    its cache, and these may be large."""
    rows = []
    for made in run.both():
        with made as cluster:
            os.sync()
            before = device_written_bytes(run.folder)
            row = cluster.bench("put", CLIENTS[-1], run.pick(max(60, run.seconds), 5))
            os.sync()
            after = device_written_bytes(run.folder)
            rows.append(row | {"device_written_bytes":
                               None if before is None else after - before})
    return {"rows": rows}


def leader_kills(run):
    """Longest gap between acknowledgements, in microseconds, of steady writers in one region,
    in a round for each kill -9 of their leader; both systems."""
    found = {}
    for made in run.both():
        with made as cluster:
            rounds = found.setdefault(cluster.name, [])
            for _ in range(run.kills):
                words = cluster.bench_words("put", WRITERS, KILL_ROUND, "--single-region",
                                            keys=1000)
                load = start_bench(words)
                time.sleep(KILL_AFTER)
                victim = wait_for("a leader", cluster.leader)
                cluster.kill(victim)
                row = end_bench(load)[-1]
                rounds.append({name: row[name] for name in (
                    "longest_gap_us", "errors", "wrong_answers", "operations", "command")})
                say(f"  {cluster.name} kill {len(rounds)}: longest gap "
                    f"{row['longest_gap_us'] / 1e6:.2f} s")
                cluster.start(victim)
                cluster.wait(victim)
    return {"rounds": found}


def snapshot(run):
    """A region travels as a snapshot: as fast as it goes, beside a copy of as many bytes on the
    same disk; and with the default rate limit beside puts."""
    keys = run.pick(SNAPSHOT_KEYS, SNAPSHOT_KEYS // 2)
    rounds = run.pick(SNAPSHOT_ROUNDS, 1)
    with run.strata(environment={"STRATA_SNAPSHOT_RATE_LIMIT": "0B"}) as cluster:
        unlimited = [beside_copy(cluster, run.folder, keys, first=number == 0)
                     for number in range(rounds)]
    with run.strata() as cluster:
        limited = beside_puts(cluster, keys, run.pick(12, 5), rounds)
    return {"value_bytes": keys * SNAPSHOT_VALUE_BYTES,
            "unlimited": unlimited, "limited": limited}


def beside_copy(cluster, folder, keys, first):
    """A snapshot of the first region, of which a part is written anew unless it is the first one;
    and a copy of as many bytes when all is quiet again."""
    found = dead_follower(cluster, keys if first else keys // SNAPSHOT_KEYS_AGAIN)
    found |= come_back(cluster, found)
    cluster.wait_until_quiet()
    found["copy_seconds"] = copy_seconds(folder, keys * SNAPSHOT_VALUE_BYTES)
    say(f"  unlimited: {found}")
    return found


def fill_region(cluster, keys):
    """Writes the first keys of the first region, in batches."""
    run_bench(cluster.bench_words("get", 64, 1, "--single-region", keys=keys,
                                  value_bytes=SNAPSHOT_VALUE_BYTES))


def dead_follower(cluster, keys):
    """Kills a follower of the first region and writes until the log that it lacks is gone."""
    region = cluster.regions()[0]
    region_id, leader = region["region_id"], region["leader_store_id"]
    follower = leader % NODES + 1
    applied = cluster.page(follower, region_id)["applied_index"]
    idle_bytes = resident_bytes(cluster.processes[follower].pid)
    cluster.kill(follower)
    fill_region(cluster, keys)
    leader = wait_for("a leader", cluster.leader)
    wait_for("the log to be compacted",
             lambda: cluster.page(leader, region_id)["truncated_index"] > applied, SNAPSHOT_WAIT)
    cluster.wait_until_quiet()
    return {"region_id": region_id, "leader": leader, "follower": follower,
            "idle_resident_bytes": idle_bytes}


def come_back(cluster, place, meanwhile=lambda: None):
    """Starts the dead follower, which gets a snapshot. Seconds of each step as the nodes' logs
    tell them, and the growth of memory: the sender's since before the follower started, the
    receiver's above what it had when it was killed."""
    region_id, leader, follower = place["region_id"], place["leader"], place["follower"]
    sender = cluster.processes[leader].pid
    before = {"sender": resident_bytes(sender), "receiver": place["idle_resident_bytes"]}
    forget_peak(sender)
    wanted = cluster.page(leader, region_id)["applied_index"]
    began = time.monotonic()
    cluster.start(follower)
    meanwhile()
    pids = {"sender": sender, "receiver": cluster.processes[follower].pid}

    def caught_up():
        page = cluster.page(follower, region_id)
        return page["applied_index"] >= wanted and page["snapshots_received"] > 0
    wait_for("the snapshot to be installed", caught_up, SNAPSHOT_WAIT)
    seconds = time.monotonic() - began
    page = cluster.page(leader, region_id)
    told = {}
    for name, node, line in (("generate_seconds", leader, "a snapshot was made"),
                             ("send_seconds", leader, "a snapshot was sent"),
                             ("install_seconds", follower, "a snapshot was installed")):
        wait_for(f"the line: {line}", lambda: cluster.told(node, line) is not None)
        told[name] = cluster.told(node, line)
    return told | {
        "chunks_sent": page["snapshot_chunks_sent"],
        "whole_seconds": seconds,
        "grew_bytes": {name: max(0, resident_bytes(pid, "VmHWM") - before[name])
                       for name, pid in pids.items()},
        "resident_bytes": {name: resident_bytes(pid) for name, pid in pids.items()},
    }


def beside_puts(cluster, keys, seconds, rounds):
    """Puts into all regions before a snapshot travels with the default limit, while it does, and
    afterwards, which is before the next: a machine that gets slower meanwhile shows there. The
    region is filled, and the follower has led nothing since a restart, before all: else the runs
    would differ in more than the snapshot."""
    fill_region(cluster, keys)
    region = cluster.regions()[0]
    follower = region["leader_store_id"] % NODES + 1
    cluster.kill(follower)
    cluster.start(follower)
    cluster.wait(follower)
    cluster.wait_until_quiet()
    found = []
    before = cluster.bench("put", SNAPSHOT_CLIENTS, seconds)
    for _ in range(rounds):
        place = dead_follower(cluster, keys // SNAPSHOT_KEYS_AGAIN)
        words = cluster.bench_words("put", SNAPSHOT_CLIENTS, seconds)
        loads = []
        began = time.monotonic()
        steps = come_back(cluster, place, lambda: loads.append(start_bench(words)))
        installed = time.monotonic() - began
        during = end_bench(loads[0])[-1]
        # Part of the second run in which the snapshot was on its way.
        share = min(1.0, installed / during["seconds"])
        cluster.wait_until_quiet()
        after = cluster.bench("put", SNAPSHOT_CLIENTS, seconds)
        found.append(place | steps | {"before": before, "during": during, "after": after,
                                      "share_of_run": share})
        say(f"  limited: {found[-1]}")
        before = after
    return found


def copy_seconds(folder, size):
    """Seconds that `cp` and `sync` take for a file of random bytes, which is read from memory
    as it was just written."""
    source, copy = folder / "copy-source", folder / "copy"
    with open(source, "wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    began = time.monotonic()
    subprocess.run(["cp", str(source), str(copy)], check=True)
    subprocess.run(["sync", str(copy)], check=True)
    seconds = time.monotonic() - began
    copy.unlink()
    source.unlink()
    return seconds


def raft(run):
    """The raft crate against the published one: what `raft-bench` prints as JSON."""
    words = [RAFT_BENCH, *run.pick([], ["--turns", "3"])]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    rows = []
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            rows.append(json.loads(line))
        else:
            say(f"  {line}")
    return {"command": without_folders(words), "rows": rows}


def profile(run):
    """What the nodes' processors are busy with, under the loads whose bounds are near or not
    held. Nothing where there is no `perf`."""
    if not bench_profile.available():
        say("  no perf: nothing is sampled")
        return {"rows": []}
    seconds = run.pick(5, 2)
    rows = []
    for kind, clients, regions, value_bytes in PROFILES:
        # One region is one of those that a cluster has.
        layout = {} if regions in (None, 1) else {"regions": regions}
        more = ["--single-region"] if regions == 1 else []
        with run.strata(**layout) as cluster:
            load = None
            if kind != "idle":
                load = start_bench(cluster.bench_words(kind, clients, seconds + 6, *more,
                                                       keys=KEYS // 5, value_bytes=value_bytes))
            # Keys are written before gets and scans, and an idle cluster comes to rest.
            time.sleep(4 if load else run.pick(15, 5))
            found = bench_profile.sample(run.folder, cluster.pids(), seconds)
            if load:
                end_bench(load)
        rows.append({"kind": kind, "clients": clients, "regions": regions,
                     "value_bytes": value_bytes} | found)
    rows.append(profile_of_snapshot(run))
    return {"rows": rows}


def profile_of_snapshot(run):
    """As the others, of both nodes while one makes a snapshot and sends it to the other, without
    a limit."""
    samples = []
    with run.strata(environment={"STRATA_SNAPSHOT_RATE_LIMIT": "0B"}) as cluster:
        place = dead_follower(cluster, run.pick(SNAPSHOT_KEYS, SNAPSHOT_KEYS // 4))

        def sample():
            pids = [cluster.processes[place[node]].pid for node in ("leader", "follower")]
            samples.append(bench_profile.sample(run.folder, pids, run.pick(3, 1)))
        sampling = threading.Thread(target=sample)
        come_back(cluster, place, sampling.start)
        sampling.join()
    return {"kind": "snapshot", "clients": 0, "regions": None,
            "value_bytes": SNAPSHOT_VALUE_BYTES} | samples[0]


PARTS = {
    "startup": startup,
    "throughput": throughput,
    "batch": batch,
    "scan": scan,
    "regions": regions,
    "idle": idle,
    "restart": restart,
    "written": written,
    "kills": leader_kills,
    "snapshot": snapshot,
    "raft": raft,
    "profile": profile,
}
