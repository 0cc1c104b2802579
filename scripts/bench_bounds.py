"""What the project asks of itself, judged from the results of `scripts/bench.py`.

Ratios compare figures of one part of one run, so a machine's good or bad day is on both sides.
A part that was not measured is not judged.
"""
import collections
import statistics

MIB = 1 << 20
# Puts and gets against etcd's: kind, clients, least times as fast, aim.
AGAINST_ETCD = (("put", 256, 2.0, 3.5), ("get", 256, 4.0, 6.0), ("put", 64, 2.0, None),
                ("get", 64, 4.0, None), ("put", 1, 1.5, None))
# Clients of the rows that the bounds on CPU time, memory and the no-op server speak of.
MOST_CLIENTS = 256
# Most CPU time of the servers for each operation, in times of etcd's.
CPU_MOST = 0.5
# Aims for the part of the no-op server's speed.
NOOP_AIMS = (("put", 0.60), ("get", 0.85))
# Aims beyond other bounds: p99 and CPU time in times of etcd's, the raft crate's speed in times of
# the published one's, speed of a snapshot as a part of a copy's, worst gap in seconds, part of a
# core of an idle node.
P99_AIM = 0.5
CPU_AIM = 0.25
RAFT_AIM = 2.0
SNAPSHOT_SPEED_AIM = 0.50
GAP_WORST_AIM = 1.0
IDLE_CORES_AIM = 0.02
# Most resident memory of a node under that load, in bytes.
RESIDENT_MOST = 150_000_000
# Least times as fast as one key a request.
BATCH_LEAST = 3.0
# Most times as long for each key as the engine's iterator.
SCAN_MOST = 3.0
# Most between the best number of regions and another, as a part of the best.
REGIONS_SPREAD = 0.10
# Most of a core that an idle node with many regions uses.
IDLE_CORES_MOST = 0.10
# Longest time until what was killed serves again, in seconds.
RESTART_MOST = 5.0
# Longest gaps when a leader is killed, in seconds.
GAP_MEDIAN_MOST = 1.5
GAP_WORST_MOST = 3.0
# Most that either node's memory grows while a large snapshot travels with nothing beside it, in
# bytes.
SNAPSHOT_GROWTH_MOST = 64_000_000
# Least speed of a snapshot, as a part of a copy's.
SNAPSHOT_SPEED_LEAST = 0.30
# Least speed of puts beside a snapshot, as a part of what it was before.
SNAPSHOT_PUTS_LEAST = 0.70
# Least part of the run of puts in which the snapshot travelled, else it shows nothing.
SNAPSHOT_SHARE_LEAST = 0.80

# One line of the page: what is asked, and whether it holds.
Line = collections.namedtuple("Line", "text holds")


def bounds(results):
    """What must hold, a `Line` each."""
    return [line for name, judge in JUDGES.items() if name in results["parts"]
            for line in judge(results["parts"][name])] + [failures(results)]


def aims(results):
    """What is wanted beyond the bounds."""
    return [line for name, judge in AIMS.items() if name in results["parts"]
            for line in judge(results["parts"][name])]


def aim_throughput(part):
    for kind, clients, _, aim in AGAINST_ETCD:
        if aim is not None:
            ratio = against_etcd(part, kind, clients)
            yield Line(f"{kind}s, {clients} clients: {aim:g} times etcd's "
                       f"({ratio:.2f} times)", ratio >= aim)
    for kind, aim in NOOP_AIMS:
        reached = part_of_noop(part, kind)
        yield Line(f"{kind}s, {MOST_CLIENTS} clients: {aim:.0%} of the no-op server's "
                   f"({reached:.0%})", reached >= aim)
    most = max(p99_ratios(part).values())
    yield Line(f"p99 at most {P99_AIM:g} times etcd's in every row ({most:.2f} times at most)",
               most <= P99_AIM)
    for kind in ("put", "get"):
        ratio = cpu_ratio(part, kind)
        yield Line(f"{kind}s, {MOST_CLIENTS} clients: CPU time of the servers for each operation "
                   f"at most {CPU_AIM:g} times etcd's ({ratio:.2f} times)", ratio <= CPU_AIM)


def aim_idle(part):
    most = max(part["cpu_cores"])
    yield Line(f"an idle node with {part['regions']:,} regions under {IDLE_CORES_AIM:.0%} of a "
               f"core ({most:.1%})", most < IDLE_CORES_AIM)


def aim_written(part):
    """By the disk's count where both systems have it."""
    times = {}
    for row in part["rows"]:
        written = row.get("device_written_bytes") or row["servers"]["written_bytes"]
        if written is not None:
            times[row["target"]] = written / max(row["written_user_bytes"] * part["nodes"], 1)
    if len(times) == 2:
        yield Line(f"bytes written for each byte of user data and replica below etcd's "
                   f"({times['strata']:.1f} and {times['etcd']:.1f})",
                   times["strata"] < times["etcd"])


def aim_kills(part):
    worst = max(gaps(part["rounds"]["strata"]))
    yield Line(f"the worst gap when a leader is killed under {GAP_WORST_AIM:g} s ({worst:.2f} s)",
               worst < GAP_WORST_AIM)


def aim_snapshot(part):
    speed = snapshot_speed(median_of(part["unlimited"], snapshot_speed))
    yield Line(f"a snapshot without a rate limit at {SNAPSHOT_SPEED_AIM:.0%} of the speed of a "
               f"copy ({speed:.0%})", speed >= SNAPSHOT_SPEED_AIM)


def aim_raft(part):
    least = min(raft_ratios(part).values())
    yield Line(f"the raft crate at {RAFT_AIM:g} times the published one's speed in every mix "
               f"({least:.2f} times at least)", least >= RAFT_AIM)


def rows_of(part, target, kind, clients, single_region=False):
    return [row for row in part["rows"]
            if (row["target"], row["kind"], row["clients"], row["single_region"])
            == (target, kind, clients, single_region)]


def fastest(part, target, kind, clients):
    """Operations a second of the fastest such run over all regions: etcd is measured in two
    ways, the no-op server with two numbers of connections."""
    return max(row["ops_per_second"] for row in rows_of(part, target, kind, clients))


def against_etcd(part, kind, clients):
    return fastest(part, "strata", kind, clients) / fastest(part, "etcd", kind, clients)


def part_of_noop(part, kind):
    noop = fastest(part, "noop", f"noop-{kind}", MOST_CLIENTS)
    return fastest(part, "strata", kind, MOST_CLIENTS) / noop


def judge_throughput(part):
    for kind, clients, least, _ in AGAINST_ETCD:
        ratio = against_etcd(part, kind, clients)
        name = "one client" if clients == 1 else f"{clients} clients"
        yield Line(f"{kind}s, {name}, all regions: at least {least:g} times etcd's "
                   f"({ratio:.2f} times)", ratio >= least)
    ratios = p99_ratios(part)
    missed = [f"{name}: {ratio:.2f}" for name, ratio in ratios.items() if ratio >= 1]
    told = "; ".join(missed) or f"{max(ratios.values()):.2f} times at most"
    yield Line(f"p99 below etcd's in every row ({told})", not missed)
    for kind in ("put", "get"):
        ratio = cpu_ratio(part, kind)
        yield Line(f"{kind}s, {MOST_CLIENTS} clients: CPU time of the servers for each operation "
                   f"at most {CPU_MOST:g} times etcd's ({ratio:.2f} times)", ratio <= CPU_MOST)
    most = max(max(row["servers"]["resident_bytes"]) for row in part["rows"]
               if row["target"] == "strata" and row["clients"] == MOST_CLIENTS)
    yield Line(f"resident memory of each node with {MOST_CLIENTS} clients under "
               f"{RESIDENT_MOST / 1e6:g} MB ({most / 1e6:.0f} MB)", most < RESIDENT_MOST)


def p99_ratios(part):
    """Of each row, against each of the ways in which etcd is measured, whichever is quicker."""
    ratios = {}
    for row in part["rows"]:
        if row["target"] == "strata":
            etcd = rows_of(part, "etcd", row["kind"], row["clients"])
            least = min(other["p99_us"] for other in etcd)
            one_region = ", one region" if row["single_region"] else ""
            ratios[f"{row['kind']}s, {row['clients']}{one_region}"] = row["p99_us"] / least
    return ratios


def cpu_ratio(part, kind):
    own = min(cpu(row) for row in rows_of(part, "strata", kind, MOST_CLIENTS))
    return own / min(cpu(row) for row in rows_of(part, "etcd", kind, MOST_CLIENTS))


def cpu(row):
    return row["servers"]["cpu_us_per_op"]


def judge_batch(part):
    speeds = {row["kind"]: row["ops_per_second"] for row in part["rows"]}
    for kind in ("put", "get"):
        ratio = speeds[f"batch-{kind}"] / speeds[kind]
        yield Line(f"batch {kind}s: at least {BATCH_LEAST:g} times the keys of single {kind}s at "
                   f"{MOST_CLIENTS} clients ({ratio:.2f} times)", ratio >= BATCH_LEAST)


def judge_scan(part):
    speeds = {row["kind"]: row["ops_per_second"] for row in part["rows"]}
    ratio = speeds["iterator"] / speeds["scan"]
    yield Line(f"scans: no slower for each key than {SCAN_MOST:g} times the engine's iterator in "
               f"one thread ({ratio:.2f} times)", ratio <= SCAN_MOST)


def layouts(part):
    """Operations a second of each kind and number of regions: the fastest of the turns."""
    found = {"put": {}, "get": {}}
    for row in part["rows"]:
        speeds = found[row["kind"]]
        speeds[row["layout"]] = max(speeds.get(row["layout"], 0), row["ops_per_second"])
    return found


def judge_regions(part):
    for kind, speeds in layouts(part).items():
        best = max(speeds.values())
        worst = min(speeds, key=speeds.get)
        behind = 1 - speeds[worst] / best
        yield Line(f"{kind}s in {', '.join(map(str, sorted(speeds)))} regions: within "
                   f"{REGIONS_SPREAD:.0%} of the best ({behind:.0%} behind with {worst})",
                   behind <= REGIONS_SPREAD)


def judge_idle(part):
    most = max(part["cpu_cores"])
    yield Line(f"an idle node with {part['regions']:,} regions uses under {IDLE_CORES_MOST:.0%} of "
               f"a core ({most:.1%})", most < IDLE_CORES_MOST)


def judge_restart(part):
    for one in part["rounds"]:
        seconds = max(one["healthy_seconds"], one["answered_seconds"])
        yield Line(f"{one['killed']} killed with {part['value_bytes'] / (1 << 30):g} GiB in "
                   f"{part['regions']:,} regions: healthy and answering gets in under "
                   f"{RESTART_MOST:g} s ({seconds:.1f} s)", seconds < RESTART_MOST)


def gaps(rounds):
    """The longest gap of each round, in seconds."""
    return [one["longest_gap_us"] / 1e6 for one in rounds]


def judge_kills(part):
    found = gaps(part["rounds"]["strata"])
    median, worst = statistics.median(found), max(found)
    yield Line(f"longest gap when a leader is killed, {len(found)} times: median under "
               f"{GAP_MEDIAN_MOST:g} s ({median:.2f} s)", median < GAP_MEDIAN_MOST)
    yield Line(f"the worst of them under {GAP_WORST_MOST:g} s ({worst:.2f} s)",
               worst < GAP_WORST_MOST)


def snapshot_seconds(one):
    """Making, sending and installing."""
    return one["generate_seconds"] + one["send_seconds"] + one["install_seconds"]


def snapshot_speed(one):
    """As a part of that of the copy beside it."""
    return one["copy_seconds"] / snapshot_seconds(one)


def puts_kept(one):
    """Speed of puts while a snapshot travelled, as a part of that before and afterwards."""
    alone = (one["before"]["ops_per_second"] + one["after"]["ops_per_second"]) / 2
    return one["during"]["ops_per_second"] / alone


def median_of(rounds, value):
    """The round whose value is the median; of an even number the higher one."""
    return sorted(rounds, key=value)[len(rounds) // 2]


def judge_snapshot(part):
    speed = snapshot_speed(median_of(part["unlimited"], snapshot_speed))
    size = f"{part['value_bytes'] / (1 << 30):g} GiB"
    yield Line(f"a snapshot of {size} without a rate limit is made, sent and installed at "
               f"{SNAPSHOT_SPEED_LEAST:.0%} or more of the speed of a copy ({speed:.0%})",
               speed >= SNAPSHOT_SPEED_LEAST)
    grew = max(most for one in part["unlimited"] for most in one["grew_bytes"].values())
    yield Line(f"memory of neither node grows by more than {SNAPSHOT_GROWTH_MOST / 1e6:g} MB by "
               f"it ({grew / 1e6:.0f} MB)", grew <= SNAPSHOT_GROWTH_MOST)
    kept = puts_kept(median_of(part["limited"], puts_kept))
    share = min(one["share_of_run"] for one in part["limited"])
    yield Line(f"beside one with the default rate limit puts keep {SNAPSHOT_PUTS_LEAST:.0%} of "
               f"their speed ({kept:.0%}; it travelled in {share:.0%} of each run)",
               kept >= SNAPSHOT_PUTS_LEAST and share >= SNAPSHOT_SHARE_LEAST)


def raft_ratios(part):
    """Entries a second of the raft crate over those of the published one, at whichever of its
    settings is faster there: for each mix of the work."""
    mixes = {}
    for row in part["rows"]:
        speeds = mixes.setdefault((row["batch"], row["in_flight"]), {"own": 0, "published": 0})
        side = "own" if row["crate"] == "strata-raft" else "published"
        speeds[side] = max(speeds[side], row["entries_per_second"])
    return {mix: speeds["own"] / speeds["published"] for mix, speeds in mixes.items()}


def judge_raft(part):
    least = min(raft_ratios(part).values())
    yield Line(f"the raft crate is in no mix slower than the published one ({least:.2f} times at "
               "least)", least >= 1)


def failures(results):
    """Errors and wrong answers, wherever something was asked."""
    count = 0
    for part in results["parts"].values():
        rows = list(part["rows"]) if "rows" in part else []
        if "limited" in part:
            rows += [one[when] for one in part["limited"] for when in ("before", "during", "after")]
        for rounds in part.get("rounds", {}).values() if "strata" in part.get("rounds", {}) else []:
            rows += rounds
        count += sum(row.get("errors", 0) + row.get("wrong_answers", 0) for row in rows)
    return Line(f"no error and no wrong answer in any row ({count})", count == 0)


JUDGES = {
    "throughput": judge_throughput,
    "batch": judge_batch,
    "scan": judge_scan,
    "regions": judge_regions,
    "idle": judge_idle,
    "restart": judge_restart,
    "kills": judge_kills,
    "snapshot": judge_snapshot,
    "raft": judge_raft,
}

AIMS = {
    "throughput": aim_throughput,
    "idle": aim_idle,
    "written": aim_written,
    "kills": aim_kills,
    "snapshot": aim_snapshot,
    "raft": aim_raft,
}
