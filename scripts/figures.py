#!/usr/bin/env python3
"""Measures a local three-node cluster with `strata bench` and writes docs/benchmarks.md.

    make build && scripts/figures.py [SECONDS]

Starts `strata up` on a folder of its own, runs puts and gets at 1, 64 and 256 clients and
the no-op ceiling, each for SECONDS (10), and stops the cluster. Everything is measured in
one run on one machine, load generator included; absolute figures are that machine's.
"""
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parent.parent
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.expanduser("~/.cache/strata/target"))
STRATA = os.environ.get("STRATA_BIN", f"{TARGET}/release/strata")
SECONDS = sys.argv[1] if len(sys.argv) > 1 else "10"
PORT = "24790"
ENDPOINT = f"127.0.0.1:{PORT}"


def bench(kind, clients, *more):
    """One measurement as the dictionary that `strata bench` prints."""
    out = subprocess.run(
        [STRATA, "--endpoints", ENDPOINT, "--format", "json", "bench", kind,
         "--clients", str(clients), "--seconds", SECONDS, *more],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return [json.loads(line) for line in out.splitlines() if line.strip()]


def status_kb(pid, key):
    """A figure of /proc/PID/status, in KiB."""
    for line in open(f"/proc/{pid}/status", encoding="ascii"):
        if line.startswith(key + ":"):
            return int(line.split()[1])
    return 0


def cpu_seconds(pid):
    """User and system time of a process so far."""
    fields = open(f"/proc/{pid}/stat", encoding="ascii").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def row(name, clients, r, cpu):
    """A line of the table."""
    micros = f"{cpu * 1e6 / max(r['operations'], 1):.0f}" if cpu is not None else ""
    return (f"| {name} | {clients} | {r['ops_per_second']:,.0f} | {r['p50_us'] / 1000:.2f} "
            f"| {r['p99_us'] / 1000:.2f} | {r['p999_us'] / 1000:.2f} | {micros} "
            f"| {r['errors'] + r['wrong_answers']} |")


def main():
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        up = subprocess.Popen([STRATA, "up", "--data-dir", folder, "--port", PORT],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        pids, ready = [], ""
        for line in up.stdout:
            if " pid " in line:
                pids.append(int(line.split()[-1]))
            if "cluster ready" in line:
                ready = line.split(" in ")[1].strip()
                break
        else:
            sys.exit("the cluster did not start")
        print(f"ready in {ready} ({time.monotonic() - started:.1f} s in all)", file=sys.stderr)
        try:
            time.sleep(10)
            before = sum(cpu_seconds(p) for p in pids)
            time.sleep(10)
            idle_cpu = (sum(cpu_seconds(p) for p in pids) - before) / 10 / len(pids) * 100
            idle = max(status_kb(p, "VmRSS") for p in pids) / 1024
            for kind in ("put", "get"):
                for clients in (1, 64, 256):
                    before = sum(cpu_seconds(p) for p in pids)
                    result = bench(kind, clients)[-1]
                    cpu = sum(cpu_seconds(p) for p in pids) - before
                    rows.append(row(kind, clients, result, cpu))
                    print(rows[-1], file=sys.stderr)
            for kind in ("put", "get"):
                result = bench(kind, 256, "--single-region")[-1]
                rows.append(row(kind + ", one region", 256, result, None))
                print(rows[-1], file=sys.stderr)
            loaded = max(status_kb(p, "VmHWM") for p in pids) / 1024
        finally:
            up.send_signal(signal.SIGINT)
            up.wait()
        for result in bench("noop", 256):
            name = result["kind"].replace("noop-", "") + ", no-op server"
            rows.append(row(name, 256, result, None))
            print(rows[-1], file=sys.stderr)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=TOP, check=True,
                            stdout=subprocess.PIPE, text=True).stdout.strip()
    text = f"""# Figures

Measured by `scripts/figures.py {SECONDS}` at commit `{commit}`: three nodes and the load
generator on one machine with {os.cpu_count()} cores ({platform.machine()}), values of 256
bytes, 100,000 keys over all regions, three replicas, every write synced, every answer
verified. Absolute figures are this machine's; compare them with the no-op server, which
answers the same calls from constants on the same machine, in the same run.

| work | clients | ops/s | p50 ms | p99 ms | p99.9 ms | server CPU us/op, all nodes | errors |
|---|---|---|---|---|---|---|---|
""" + "\n".join(rows) + f"""

| what | figure |
|---|---|
| `strata up` ready on an empty folder | {ready} |
| resident memory of an idle node, the largest | {idle:.0f} MiB |
| CPU of an idle node, mean | {idle_cpu:.1f} % of a core |
| resident memory of a node at its peak in this run, the largest | {loaded:.0f} MiB |

How long writers wait when a leader is killed with -9 is printed by
`cargo nextest run --release -p strata-tests gap_between --no-capture`.
"""
    (TOP / "docs" / "benchmarks.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
