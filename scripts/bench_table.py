#!/usr/bin/env python3
"""Makes the tables of docs/benchmarks.md, and the plots, from docs/benchmarks/comparison.json.

    scripts/bench_table.py [FILE]

What stands between the markers in docs/benchmarks.md is replaced; the rest stays.
"""
import json
import pathlib
import statistics
import sys

import bench_plots
import bench_profile
import bench_counts
import bench_stages
from bench_bounds import (
    MIB, aims, bounds, gaps, layouts, median_of, puts_kept, raft_ratios, snapshot_seconds,
    snapshot_speed)

TOP = pathlib.Path(__file__).resolve().parent.parent
PAGE = TOP / "docs" / "benchmarks.md"
RESULTS = TOP / "docs" / "benchmarks" / "comparison.json"
BEGIN = "<!-- made by scripts/bench_table.py: begin -->"
END = "<!-- made by scripts/bench_table.py: end -->"
NAMES = {"strata": "StrataKV", "etcd": "etcd", "noop": "no-op server", "rocksdb": "the engine alone"}


def table(head, rows):
    """A table of cells that are text already."""
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head),
            *(f"| {' | '.join(map(str, row))} |" for row in rows)]


def mib(size):
    return f"{size / MIB:.0f}"


def measured(part):
    """When and at what state a part was measured, as each may be measured alone."""
    return f"(measured on {part['date']} at commit `{part['commit']}`)"


def load_columns(row):
    """The figures that each row of a load has."""
    servers = row.get("servers") or {}
    return [f"{row['ops_per_second']:,.0f}", f"{row['p50_us'] / 1000:.2f}",
            f"{row['p99_us'] / 1000:.2f}", f"{row['p999_us'] / 1000:.2f}",
            f"{servers['cpu_us_per_op']:.0f}" if servers else "",
            mib(max(servers["resident_bytes"])) if servers else "",
            row["errors"] + row["wrong_answers"]]


LOAD_HEAD = ["p50 ms", "p99 ms", "p99.9 ms", "server CPU us/op",
             "resident MiB, the largest node", "errors"]


def throughput_table(part):
    order = {"strata": 0, "etcd": 1, "noop": 2}
    kinds = {"put": 0, "get": 1}
    rows = sorted(part["rows"], key=lambda row: (
        kinds[row["kind"].replace("noop-", "")], row["clients"], row["single_region"],
        order[row["target"]], row["asked"], row.get("connections", 0)))
    lines = []
    for row in rows:
        kind = row["kind"].replace("noop-", "")
        if row["single_region"]:
            kind += ", one region"
        name = NAMES[row["target"]]
        if row["asked"] == "leader":
            name += ", leader asked"
        if row["target"] == "noop" and row.get("connections", 1) > 1:
            name += f", {row['connections']} connections"
        lines.append([kind, row["clients"], name, *load_columns(row)])
    most = max(row["connections"] for row in part["rows"] if row["target"] != "noop")
    to_each = "one connection" if most == 1 else f"up to {most} connections"
    return [
        f"Puts and gets, one key a request over {to_each} to each node, {runs_of(part)} "
        f"with {part['keys']:,} keys and values of {part['value_bytes']} bytes "
        f"{measured(part)}:",
        "", *table(["work", "clients", "server", "ops/s", *LOAD_HEAD], lines),
        "", "![Operations a second over clients](benchmarks/throughput.svg)",
        "", "![Percentiles of latency](benchmarks/latency.svg)", *stages_table(part)]


def runs_of(part):
    """How long each row of a part was measured, and how often."""
    turns = part.get("turns", [])
    seconds = part["rows"][0].get("seconds", part["seconds"])
    if len(turns) > 1:
        return f"of {len(turns)} runs of {seconds:.0f} s the median,"
    return f"each run {seconds:.0f} s"


def stages_table(part):
    """The stages of puts in the nodes, for the rows that have them."""
    rows = sorted((row for row in part["rows"] if row.get("stages")),
                  key=lambda row: row["clients"])
    if not rows:
        return []

    def line(name, what, stage):
        cells = []
        for row in rows:
            found = row["stages"].get(stage)
            cells.append(" / ".join(f"{found[figure]:,.0f}" for figure in
                                    ("mean_us", "p50_us", "p99_us")) if found else "")
        return [name, what, *cells]
    lines = [line(f"`{stage}`", what, stage) for stage, what in bench_stages.IN_ORDER.items()]
    lines.append(line("`total`", "all of these", "total"))
    # A client has one request under way, so this is the mean time of a put as a client sees it.
    means = [row["clients"] / row["ops_per_second"] * 1e6 for row in rows]
    lines.append(["outside", "client, network, gRPC on both sides", *(
        f"{mean - row['stages']['total']['mean_us']:,.0f}" for mean, row in zip(means, rows))])
    lines += [line(f"`{stage}`", f"within `commit`: {what}", stage)
              for stage, what in bench_stages.OF_LOG.items()]
    head = ["stage", "what", *(f"{row['clients']} client{'s' if row['clients'] > 1 else ''}"
                               for row in rows)]
    return ["", f"Where the time of a put goes: mean / p50 / p99 in microseconds, from the "
            f"histograms of all nodes {measured(part)}. Percentiles are read from buckets whose "
            f"bounds double. `commit` is more than its two parts: messages go to the followers, "
            f"and their answers come back:", "", *table(head, lines),
            *counts_table(rows, head[2:])]


def counts_table(rows, names):
    """What a put caused, for rows under these names; nothing where none was counted."""
    if not any(row.get("counts") for row in rows):
        return []
    lines = [[what, *(f"{row['counts'][name]:.2f}" if row.get("counts") else "" for row in rows)]
             for name, what in bench_counts.COUNTED.items()]
    return ["", "What each put caused, on all nodes together and with what they do besides, such as "
            "heartbeats:", "", *table(["what", *names], lines)]


def batch_table(part):
    lines = [[row["kind"], row["clients"], row["keys_per_call"], *load_columns(row)]
             for row in part["rows"]]
    return [f"Requests of many keys {measured(part)}:", "",
            *table(["work", "clients", "keys a request", "keys/s", *LOAD_HEAD], lines)]


def scan_table(part):
    lines = []
    for row in part["rows"]:
        cells = load_columns(row) if "p99_us" in row else [
            f"{row['ops_per_second']:,.0f}", *[""] * 5, row["wrong_answers"]]
        lines.append([f"{row['kind']} of {row['keys_per_call']:,} keys", NAMES[row["target"]],
                      row.get("clients", "one thread"), *cells])
    return [f"Scans, and the iterator of the kv engine over as many such keys {measured(part)}:",
            "", *table(["work", "where", "clients", "keys/s", *LOAD_HEAD], lines)]


def regions_table(part):
    found = layouts(part)
    head = ["work", *(f"{count} region{'s' if count > 1 else ''}" for count in sorted(found["put"]))]
    lines = [[f"{kind}s/s", *(f"{speeds[count]:,.0f}" for count in sorted(speeds))]
             for kind, speeds in found.items()]
    # Of the faster turn of each.
    puts = {}
    for row in sorted(part["rows"], key=lambda row: row["ops_per_second"]):
        if row["kind"] == "put":
            puts[row["layout"]] = row
    return [f"The same load on more and more regions {measured(part)}:", "", *table(head, lines),
            *counts_table([puts[count] for count in sorted(puts)], head[1:])]


def written_table(part):
    lines = []
    for row in part["rows"]:
        user = row["written_user_bytes"] * part["nodes"]
        counted = (row.get("device_written_bytes"), row["servers"]["written_bytes"])
        ratios = ["not counted here" if written is None else f"{written / max(user, 1):.1f}"
                  for written in counted]
        lines.append([NAMES[row["target"]], f"{row['seconds']:.0f}",
                      f"{row['ops_per_second']:,.0f}", *ratios])
    return [f"Bytes written to disk for each byte of keys and values and each replica, under "
            f"{part['rows'][0]['clients']} clients' puts {measured(part)}:", "",
            *table(["server", "seconds", "puts/s", "times, counted at the disk",
                    "times, as the kernel counts them for the processes"], lines)]


def idle_table(part):
    return [f"Nodes with {part['regions']:,} regions and nothing to do {measured(part)}:", "",
            *table(["CPU, the largest, % of a core", "resident MiB, the largest"],
                   [[f"{max(part['cpu_cores']) * 100:.1f}", mib(max(part["resident_bytes"]))]])]


def restart_table(part):
    lines = [[one["killed"], *(f"{one[name]:.2f}" for name in (
        "healthy_seconds", "answered_seconds", "all_led_seconds"))] for one in part["rounds"]]
    return [f"Killed with -9 and started again, {part['value_bytes'] / (1 << 30):g} GiB of values "
            f"in {part['regions']:,} regions; seconds from the start {measured(part)}:", "",
            *table(["killed", "healthy", "gets answered", "every region led"], lines)]


def kills_table(part):
    lines = []
    for name, title in (("strata", "StrataKV"), ("etcd", "etcd")):
        found = gaps(part["rounds"].get(name, []))
        if found:
            lines.append([title, len(found), f"{statistics.median(found):.2f}",
                          f"{min(found):.2f}", f"{max(found):.2f}"])
    return ["Longest time without an acknowledgement to 16 steady writers in one region, when the "
            f"leader is killed with -9 {measured(part)}:", "",
            *table(["server", "kills", "median s", "least s", "most s"], lines)]


def snapshot_table(part):
    unlimited = median_of(part["unlimited"], snapshot_speed)
    limited = median_of(part["limited"], puts_kept)
    ways = (("without a limit", unlimited), ("default limit", limited))
    lines = [[what, *(f"{one[name]:.1f}" for _, one in ways)] for what, name in (
        ("making it, at the leader, s", "generate_seconds"),
        ("sending it, s", "send_seconds"),
        ("installing it, at the follower, s", "install_seconds"),
        ("from the follower's start until it has applied what the leader had, s",
         "whole_seconds"))]
    lines += [[f"memory of the {name} grew at most, MiB",
               *(mib(one["grew_bytes"][name]) for _, one in ways)]
              for name in ("sender", "receiver")]
    before, during, after = (limited[when] for when in ("before", "during", "after"))
    speeds = ", ".join(f"{snapshot_speed(one):.0%}" for one in part["unlimited"])
    kept = ", ".join(f"{puts_kept(one):.0%}" for one in part["limited"])
    return [f"A follower whose log is gone gets a region of {part['value_bytes'] / (1 << 30):g} "
            f"GiB by a snapshot {measured(part)}:", "",
            *table(["step", *(name for name, _ in ways)], lines), "",
            f"A copy of as many bytes with `cp` and `sync` on the same disk took "
            f"{unlimited['copy_seconds']:.1f} s, the three steps without a limit "
            f"{snapshot_seconds(unlimited):.1f} s. {before['clients']} clients put "
            f"{before['ops_per_second']:,.0f} keys a second before the limited one, "
            f"{during['ops_per_second']:,.0f} while it travelled, and "
            f"{after['ops_per_second']:,.0f} afterwards. In all rounds it had {speeds} of the "
            f"copy's speed, and puts kept {kept}."]


def raft_table(part):
    ratios = raft_ratios(part)
    lines = []
    for row in part["rows"]:
        own = row["crate"] == "strata-raft"
        lines.append([row["batch"], row["in_flight"], row["crate"],
                      f"{row['entries_per_second']:,.0f}", f"{row['allocations_per_entry']:.2f}",
                      f"{row['allocations_per_batch']:.1f}",
                      f"{ratios[row['batch'], row['in_flight']]:.2f}" if own else ""])
    return ["The raft crate against the published `raft` crate 0.7: three replicas in one thread, "
            f"in memory, proposals of {part['rows'][0]['payload_bytes']} bytes, entries for each "
            f"second of CPU time {measured(part)}:", "",
            *table(["proposals before a Ready", "batches in flight", "crate", "entries/s",
                    "allocations per entry", "per batch", "times the published"], lines)]


def profile_table(part):
    """Shares of the nodes' samples; empty where nothing was sampled."""
    if not part["rows"]:
        return []

    def name(row):
        if row["kind"] == "idle":
            return f"idle, {row['regions']:,} regions"
        if row["kind"] == "snapshot":
            return "snapshot, both nodes"
        clients = f"{row['clients']} client{'s' if row['clients'] > 1 else ''}"
        regions = f", {row['regions']} regions" if row["regions"] else ""
        regions = ", one region" if row["regions"] == 1 else regions
        size = row.get("value_bytes", 0)
        large = f", values of {size / 1e6:.0f} MB" if size >= 1e6 else ""
        return f"{row['kind']}, {clients}{regions}{large}"

    def lines(figure, names):
        found = [(one, [row[figure].get(one, 0) for row in part["rows"]]) for one in names]
        return [[one, *(f"{share:.0%}" for share in cells)] for one, cells in found
                if max(cells) >= 0.005]
    threads = [*dict.fromkeys(bench_profile.THREADS.values()), "other threads"]
    columns = [name(row) for row in part["rows"]]
    return [f"Where the processors' time of the nodes goes, sampled under load {measured(part)}:",
            "", *table(["area", *columns], lines("areas", bench_profile.AREAS)),
            "", *table(["threads", *columns], lines("threads", threads))]


def startup_table(part):
    return [f"A cluster of six regions on an empty folder {measured(part)}:", "", *table(
        ["what", "figure"],
        [["`strata up` ready", f"{part['ready_ms']} ms"],
         ["resident memory of an idle node, the largest",
          f"{mib(part['idle_resident_bytes'])} MiB"],
         ["CPU of an idle node, mean", f"{part['idle_cpu_cores'] * 100:.1f} % of a core"]])]


TABLES = {
    "throughput": throughput_table,
    "batch": batch_table,
    "scan": scan_table,
    "regions": regions_table,
    "written": written_table,
    "idle": idle_table,
    "restart": restart_table,
    "kills": kills_table,
    "snapshot": snapshot_table,
    "raft": raft_table,
    "startup": startup_table,
    "profile": profile_table,
}


def tables(results):
    """The text between the markers: what was measured, part by part."""
    parts = results["parts"]
    last = max(parts.values(), key=lambda part: part["date"])
    machine = last["machine"]
    lines = [
        f"The machine: {machine['cores']} cores ({machine['cpu'] or machine['architecture']}), "
        f"{machine['memory_bytes'] / (1 << 30):.0f} GiB of memory, Linux {machine['kernel']}, "
        f"{machine['filesystem']}. {last['versions']['strata']}, "
        f"{last['versions']['etcd'].lower()}."]
    for name, make in TABLES.items():
        if name in parts:
            lines += ["", *make(parts[name])]
    lines += ["", "What must hold, each within one run:", "",
              *table(["bound", "holds"], [[line.text, "yes" if line.holds else "**no**"]
                                          for line in bounds(results)])]
    wanted = aims(results)
    if wanted:
        lines += ["", "What is wanted beyond that:", "",
                  *table(["aim", "reached"], [[line.text, "yes" if line.holds else "no"]
                                              for line in wanted])]
    return "\n".join(lines)


def write(results):
    """Replaces what stands between the markers, and draws the plots."""
    page = PAGE.read_text(encoding="utf-8")
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        sys.exit(f"{PAGE}: the markers {BEGIN} and {END} must stand there once each, in order")
    head, rest = page.split(BEGIN)
    tail = rest.split(END)[1]
    PAGE.write_text(f"{head}{BEGIN}\n{tables(results)}\n{END}{tail}", encoding="utf-8")
    if "throughput" in results["parts"]:
        for name, text in bench_plots.plots(results["parts"]["throughput"]).items():
            (RESULTS.parent / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    FILE = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    write(json.loads(FILE.read_text(encoding="utf-8")))
