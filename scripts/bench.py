#!/usr/bin/env python3
"""Measures StrataKV and etcd side by side on this machine, with one load generator.

    make bench [SECONDS=10]        all parts; writes docs/benchmarks/comparison.json, the
                                   tables in docs/benchmarks.md, and the plots
    make bench ONLY=batch,scan     these parts alone; they are put into the last results
    make bench QUICK=1             short runs, small data; prints the tables only

The parts stand in scripts/bench_parts.py. Each starts clusters of its own, one after the
other, never side by side: three processes with default settings, so that every write is synced
before it is answered. `strata bench` loads both systems, verifies what they answer, and reads
CPU time, memory and bytes written of the servers' processes around each run.

Exit code 1: a run failed, or a bound that the project sets itself does not hold.
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile

import bench_table
from bench_bounds import bounds
from bench_clusters import CACHE, KEYS, NODES, STRATA, TOP, VALUE_BYTES, say
from bench_parts import PARTS, Run

RESULTS = bench_table.RESULTS


def lines(*words):
    out = subprocess.run(words, check=False, stdout=subprocess.PIPE, text=True, cwd=TOP).stdout
    return [line.strip() for line in out.splitlines()] or [""]


def machine(folder):
    model = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8")
             if line.startswith("model name")]
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "cpu": model[0] if model else "",
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "filesystem": lines("df", "--output=fstype", str(folder))[-1],
    }


def commit():
    """What is measured; the figures of an earlier part do not make it another thing."""
    changed = lines("git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")
    return lines("git", "describe", "--always")[0] + ("-dirty" if any(changed) else "")


def stamp(run):
    """What every part says of its circumstances."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "seconds": run.seconds,
        "nodes": NODES,
        "keys": KEYS,
        "value_bytes": VALUE_BYTES,
        "versions": {"strata": lines(STRATA, "--version")[0],
                     "etcd": lines(run.etcd, "--version")[0]},
        "machine": machine(run.folder),
    }


def part_names(words):
    """The parts of a list with commas, in the order of a whole run."""
    wanted = [word.strip() for word in words.split(",") if word.strip()]
    unknown = [word for word in wanted if word not in PARTS]
    if unknown or not wanted:
        raise argparse.ArgumentTypeError(
            f"no part {', '.join(unknown) or 'is named'}: there are {', '.join(PARTS)}")
    return [name for name in PARTS if name in wanted]


def parse(words):
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seconds", type=int, default=10, help="length of each run")
    options.add_argument("--kills", type=int, default=20, help="leader kills of each server")
    options.add_argument("--quick", action="store_true",
                         help="runs of 2 seconds, 3 kills, small data; nothing is written")
    options.add_argument("--only", type=part_names, default=list(PARTS), metavar="PART[,PART]",
                         help=f"measure these parts alone: {', '.join(PARTS)}")
    return options.parse_args(words)


def main():
    options = parse(sys.argv[1:])
    etcd = lines(str(TOP / "scripts" / "setup-etcd.sh"))[0]
    if etcd == "":
        sys.exit("no etcd to compare with")
    CACHE.mkdir(parents=True, exist_ok=True)
    # Not in /tmp, which may be memory: the comparison is one of synced writes.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="bench-", dir=CACHE))
    run = Run(folder=folder, etcd=etcd, seconds=2 if options.quick else options.seconds,
              kills=3 if options.quick else options.kills, quick=options.quick)
    results = {"parts": {}}
    if not options.quick and RESULTS.exists():
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
    # Either ends the servers and removes the folder.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit("stopped"))
    try:
        for name in options.only:
            say(name)
            results["parts"][name] = stamp(run) | PARTS[name](run)
            if not options.quick:
                # A part that fails must not take with it what was measured before.
                RESULTS.parent.mkdir(exist_ok=True)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(bench_table.tables(results))
    if options.quick:
        return
    bench_table.write(results)
    say(f"written: {RESULTS.relative_to(TOP)}, docs/benchmarks.md")
    missed = [line.text for line in bounds(results) if not line.holds]
    if missed:
        sys.exit("\n".join(["these bounds do not hold:", *missed]))


if __name__ == "__main__":
    main()
