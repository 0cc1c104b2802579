"""Where the time of writes goes: the nodes' histograms of the stages of writes.

A node's `/metrics` has one histogram for each stage (`strata_store_write_stage_seconds`), which
counts from the node's start. Two readings around a run give what the run did; those of all nodes
are added up. `crates/raftstore/src/write_stages.rs` says what begins and ends each stage.
"""
import math
import re

from bench_clusters import NODES, http

LINE = re.compile(r'strata_store_write_stage_seconds_(bucket|sum|count)'
                  r'\{stage="(\w+)"(?:,le="([^"]+)")?\} (\S+)')
# Stages of a put that follow each other, with what happens in each. They make up `total`.
IN_ORDER = {
    "inbox": "from the gate to the region's shard",
    "propose": "until its entry is proposed",
    "commit": "until a quorum and the leader have synced it",
    "apply_queue": "until its batch is begun",
    "apply_write": "execution and write to the kv engine",
    "reply": "delivering the answers of the batch",
}
# Parts of `commit`, one a log batch of any node.
OF_LOG = {
    "log_queue": "a log batch waits for its writer",
    "log_write": "the log writer writes and syncs what has gathered",
}


def read(text):
    """The histograms of a `/metrics` page by stage: sum in seconds, count, and the count up to
    each bound in seconds."""
    stages = {}
    for kind, stage, bound, value in LINE.findall(text):
        one = stages.setdefault(stage, {"sum": 0.0, "count": 0, "buckets": {}})
        if kind == "bucket":
            one["buckets"][math.inf if bound == "+Inf" else float(bound)] = int(value)
        else:
            one[kind] = float(value) if kind == "sum" else int(value)
    return stages


def scrape(cluster):
    """The histograms of each node."""
    return [read(http(cluster.port + node, "/metrics").decode()) for node in range(NODES)]


def quantile(buckets, share):
    """The time in seconds below which a share of all lies, as if times were spread evenly within
    each bucket; the highest bound where it lies above that. `buckets` ascend."""
    rank = share * buckets[-1][1]
    below, under = 0.0, 0
    for bound, count in buckets:
        if count >= rank and count > under:
            if bound == math.inf:
                return below
            return below + (bound - below) * (rank - under) / (count - under)
        below, under = bound, count
    return below


def between(before, after):
    """What was added from one scrape to the next on all nodes: for each stage the count, and the
    mean, p50 and p99 in microseconds. A stage in which nothing was counted is left out."""
    found = {}
    for stage in after[0]:
        def grown(figure):
            return sum(figure(late[stage]) - figure(early[stage])
                       for early, late in zip(before, after))
        count = grown(lambda one: one["count"])
        if count == 0:
            continue
        buckets = [(bound, grown(lambda one: one["buckets"][bound]))
                   for bound in sorted(after[0][stage]["buckets"])]
        found[stage] = {"count": count,
                        "mean_us": grown(lambda one: one["sum"]) / count * 1e6,
                        "p50_us": quantile(buckets, 0.5) * 1e6,
                        "p99_us": quantile(buckets, 0.99) * 1e6}
    return found
