#!/usr/bin/env python3
"""Makes the tables of docs/benchmarks.md from docs/benchmarks/comparison.json.

    scripts/bench_table.py [FILE]

What stands between the markers in docs/benchmarks.md is replaced; the rest stays.
"""
import json
import pathlib
import statistics
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent
PAGE = TOP / "docs" / "benchmarks.md"
RESULTS = TOP / "docs" / "benchmarks" / "comparison.json"
BEGIN = "<!-- made by scripts/bench_table.py: begin -->"
END = "<!-- made by scripts/bench_table.py: end -->"
MIB = 1 << 20
# Clients of the rows that the bounds speak of.
MOST_CLIENTS = 256
# Longest median gap when a leader is killed, in seconds.
GAP_MAX = 2.0
# Most that either node's memory grows while a large snapshot travels, in bytes.
SNAPSHOT_GROWTH_MAX = 64 * MIB


def fastest(results, target, kind, clients, single_region=False):
    """Operations a second of the fastest such run: etcd is measured in two ways."""
    return max(row["ops_per_second"] for row in results["rows"]
               if (row["target"], row["kind"], row["clients"], row["single_region"])
               == (target, kind, clients, single_region))


def bounds(results):
    """What the project asks of itself against etcd in the same run: text, and whether it
    holds."""
    found = []
    for kind, factor, words in (("put", 1, "at least as fast as"),
                                ("get", 2, "at least twice as fast as")):
        etcd = fastest(results, "etcd", kind, MOST_CLIENTS)
        for single in (False, True):
            ratio = fastest(results, "strata", kind, MOST_CLIENTS, single) / etcd
            where = "one region" if single else "all regions"
            found.append((f"{kind}s, {MOST_CLIENTS} clients, {where}: {words} etcd's "
                          f"({ratio:.2f} times)", ratio >= factor))
    wrong = sum(row["errors"] + row["wrong_answers"] for row in results["rows"])
    found.append((f"no error and no wrong answer in any row ({wrong})", wrong == 0))
    gap = median_gap(results["leader_kills"]["strata"])
    found.append((f"median of the longest gaps when a leader is killed under {GAP_MAX:g} s "
                  f"({gap:.2f} s)", gap < GAP_MAX))
    grew = max(results["snapshot"]["grew_bytes"].values())
    found.append((f"memory of neither node grows by more than {SNAPSHOT_GROWTH_MAX // MIB} MiB "
                  f"while a snapshot of {results['snapshot']['value_bytes'] / (1 << 30):g} GiB is "
                  f"made, sent and installed ({grew / MIB:.0f} MiB)",
                  grew <= SNAPSHOT_GROWTH_MAX))
    least = min(raft_ratios(results).values())
    found.append((f"the raft crate is in no mix slower than the published one ({least:.2f} times "
                  "at least)", least >= 1))
    return found


def raft_ratios(results):
    """Entries a second of the raft crate over those of the published one, at whichever of its
    settings is faster there: for each mix of the work."""
    mixes = {}
    for row in results["raft"]["rows"]:
        speeds = mixes.setdefault((row["batch"], row["in_flight"]), {"own": 0, "published": 0})
        side = "own" if row["crate"] == "strata-raft" else "published"
        speeds[side] = max(speeds[side], row["entries_per_second"])
    return {mix: speeds["own"] / speeds["published"] for mix, speeds in mixes.items()}


def median_gap(rounds):
    return statistics.median(one["longest_gap_us"] for one in rounds) / 1e6


def throughput_table(results):
    lines = ["| work | clients | server | ops/s | p50 ms | p99 ms | p99.9 ms "
             "| server CPU us/op | resident MiB, sum of the nodes | errors |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    order = {"strata": 0, "etcd": 1, "noop": 2}
    kinds = {"put": 0, "get": 1}
    rows = sorted(results["rows"], key=lambda row: (
        kinds[row["kind"].replace("noop-", "")], row["clients"], row["single_region"],
        order[row["target"]], row["asked"]))
    for row in rows:
        kind = row["kind"].replace("noop-", "")
        if row["single_region"]:
            kind += ", one region"
        servers = row["servers"] or {}
        cpu = f"{servers['cpu_us_per_op']:.0f}" if servers else ""
        memory = f"{sum(servers['resident_bytes']) / MIB:.0f}" if servers else ""
        name = {"strata": "StrataKV", "etcd": "etcd", "noop": "no-op server"}[row["target"]]
        if row["asked"] == "leader":
            name += ", leader asked"
        lines.append(
            f"| {kind} | {row['clients']} | {name} | {row['ops_per_second']:,.0f} "
            f"| {row['p50_us'] / 1000:.2f} | {row['p99_us'] / 1000:.2f} "
            f"| {row['p999_us'] / 1000:.2f} | {cpu} | {memory} "
            f"| {row['errors'] + row['wrong_answers']} |")
    return lines


def gap_table(results):
    lines = ["| server | kills | median s | least s | most s |", "|---|---|---|---|---|"]
    for name, title in (("strata", "StrataKV"), ("etcd", "etcd")):
        rounds = results["leader_kills"].get(name)
        if rounds:
            gaps = [one["longest_gap_us"] / 1e6 for one in rounds]
            lines.append(f"| {title} | {len(gaps)} | {median_gap(rounds):.2f} | {min(gaps):.2f} "
                         f"| {max(gaps):.2f} |")
    return lines


def snapshot_table(results):
    snapshot = results["snapshot"]
    grew, resident = snapshot["grew_bytes"], snapshot["resident_bytes"]
    return [
        "| step | seconds |", "|---|---|",
        f"| making it, at the leader | {snapshot['generate_seconds']} |",
        f"| sending it, {snapshot['chunks_sent']} chunks | {snapshot['send_seconds']} |",
        f"| installing it, at the follower | {snapshot['install_seconds']} |",
        f"| from the follower's start until it has applied what the leader had "
        f"| {snapshot['whole_seconds']:.1f} |",
        "",
        "| node | resident MiB at the end | growth at most, MiB |", "|---|---|---|",
        *(f"| {name} | {resident[name] / MIB:.0f} | {grew[name] / MIB:.0f} |"
          for name in ("sender", "receiver")),
    ]


def raft_table(results):
    ratios = raft_ratios(results)
    lines = ["| proposals before a Ready | batches in flight | crate | entries/s "
             "| allocations per entry | per batch | times the published |",
             "|---|---|---|---|---|---|---|"]
    for row in results["raft"]["rows"]:
        own = row["crate"] == "strata-raft"
        ratio = f"{ratios[row['batch'], row['in_flight']]:.2f}" if own else ""
        lines.append(f"| {row['batch']} | {row['in_flight']} | {row['crate']} "
                     f"| {row['entries_per_second']:,.0f} | {row['allocations_per_entry']:.2f} "
                     f"| {row['allocations_per_batch']:.1f} | {ratio} |")
    return lines


def tables(results):
    """The text between the markers."""
    machine, start = results["machine"], results["startup"]
    lines = [
        f"Measured on {results['date']} at commit `{results['commit']}`: {machine['cores']} cores "
        f"({machine['cpu'] or machine['architecture']}), "
        f"{machine['memory_bytes'] / (1 << 30):.0f} GiB of memory, Linux {machine['kernel']}, "
        f"{machine['filesystem']}; {results['versions']['strata']}, "
        f"{results['versions']['etcd'].lower()}. Each run lasted {results['seconds']} s, with "
        f"{results['keys']:,} keys and values of {results['value_bytes']} bytes.",
        "",
        *throughput_table(results),
        "",
        "Longest time without an acknowledgement to 16 steady writers in one region, when the "
        "leader is killed with -9:",
        "",
        *gap_table(results),
        "",
        f"A follower that was dead while {results['snapshot']['value_bytes'] / (1 << 30):g} GiB of "
        "values were written to a region, and its log compacted, comes back by a snapshot "
        f"(measured at commit `{results['snapshot']['commit']}`):",
        "",
        *snapshot_table(results),
        "",
        "The raft crate against the published `raft` crate 0.7: three replicas in one thread, in "
        f"memory, proposals of {results['raft']['rows'][0]['payload_bytes']} bytes, entries for "
        f"each second of CPU time (measured at commit `{results['raft']['commit']}`):",
        "",
        *raft_table(results),
        "",
        "| what | figure |",
        "|---|---|",
        f"| `strata up` ready on an empty folder | {start['ready_ms']} ms |",
        f"| resident memory of an idle node, the largest | {start['idle_resident_bytes'] / MIB:.0f} MiB |",
        f"| CPU of an idle node, mean | {start['idle_cpu_cores'] * 100:.1f} % of a core |",
        "",
        "| bound, within this run | holds |",
        "|---|---|",
        *(f"| {text} | {'yes' if holds else '**no**'} |" for text, holds in bounds(results)),
    ]
    return "\n".join(lines)


def write(results):
    """Replaces what stands between the markers."""
    page = PAGE.read_text(encoding="utf-8")
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        sys.exit(f"{PAGE}: the markers {BEGIN} and {END} must stand there once each, in order")
    head, rest = page.split(BEGIN)
    tail = rest.split(END)[1]
    PAGE.write_text(f"{head}{BEGIN}\n{tables(results)}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    FILE = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    write(json.loads(FILE.read_text(encoding="utf-8")))
