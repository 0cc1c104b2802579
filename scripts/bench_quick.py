#!/usr/bin/env python3
"""The key figures in under three minutes: ratios of speeds, and instructions.

    make bench-quick            prints both beside those in docs/benchmarks.json; exit code 1
                                if a hot path takes more than 10 % more instructions, or a
                                server answered with an error or wrongly
    make bench-quick UPDATE=1   also writes both there

Ratios: StrataKV over all its regions, etcd (the faster of asking all its nodes and its leader
alone) and the no-op server, with 256 clients and short runs. Short runs on a shared machine
differ by 10 % and more, so ratios are printed and not judged; `make bench` judges its own.
Instructions: scripts/hot_paths.py.
"""
import argparse
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

import hot_paths
from bench_clusters import CACHE, STRATA, TOP, VALUE_BYTES, run_bench, wait_for
from bench_parts import Run

CLIENTS = 256
# Fewer keys than `make bench` has: the keys that gets read are written before.
KEYS = 20_000
KINDS = ("put", "get")


def fastest(cluster, kind, seconds):
    """The row with most operations a second: etcd is asked in two ways."""
    asked = [None]
    if cluster.name == "etcd":
        asked.append(cluster.endpoint(wait_for("a leader", cluster.leader)))
    rows = []
    for endpoints in asked:
        # Gets of the first run write the keys, before their clock starts.
        more = ["--loaded"] if kind == "get" and rows else []
        words = cluster.bench_words(kind, CLIENTS, seconds, *more, keys=KEYS, endpoints=endpoints)
        rows += run_bench(words)
    return max(rows, key=lambda row: row["ops_per_second"])


def measure(run):
    """Rows by server and kind."""
    rows = {}
    for made in run.both():
        with made as cluster:
            for kind in KINDS:
                rows[cluster.name, kind] = fastest(cluster, kind, run.seconds)
    noop = run_bench([
        STRATA, "--format", "json", "bench", "noop", "--clients", str(CLIENTS),
        "--seconds", str(run.seconds), "--keys", str(KEYS), "--value-size", str(VALUE_BYTES)])
    for row in noop:
        rows["noop", row["kind"].replace("noop-", "")] = row
    return rows


def ratios(rows):
    """StrataKV's operations a second over those of the others, by what is compared."""
    return {f"{kind}s, {CLIENTS} clients, against {title}":
            round(rows["strata", kind]["ops_per_second"] / rows[other, kind]["ops_per_second"], 2)
            for other, title in (("etcd", "etcd"), ("noop", "the no-op server"))
            for kind in KINDS}


def table(before, now):
    """Ratios as lines of text."""
    lines = [f"{'StrataKV, all regions':<44} {'times':>6} {'before':>7}"]
    for name, ratio in now.items():
        old = f"{before[name]:.2f}" if name in before else ""
        lines.append(f"{name:<44} {ratio:>6.2f} {old:>7}")
    return lines


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seconds", type=int, default=4, help="length of each run")
    options.add_argument("--update", action="store_true", help="write docs/benchmarks.json")
    options = options.parse_args()
    etcd = hot_paths.first_line(str(TOP / "scripts" / "setup-etcd.sh"))
    if not etcd:
        sys.exit("no etcd to compare with")
    CACHE.mkdir(parents=True, exist_ok=True)
    # Not in /tmp, which may be memory: the comparison is one of synced writes.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="bench-quick-", dir=CACHE))
    # Either ends the servers and removes the folder.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit("stopped"))
    try:
        rows = measure(Run(folder, etcd, options.seconds, kills=0, quick=True))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = ratios(rows)
    print("\n".join(table(hot_paths.read_results().get("ratios", {}), found)), flush=True)
    if options.update:
        hot_paths.write_part("ratios", found)
    wrong = sum(row["errors"] + row["wrong_answers"] for row in rows.values())
    if wrong:
        print(f"{wrong} errors and wrong answers", file=sys.stderr)
    words = [str(TOP / "scripts" / "hot_paths.py"), *(["--update"] * options.update)]
    counted = subprocess.run(words, check=False).returncode
    return 1 if wrong else counted


if __name__ == "__main__":
    sys.exit(main())
