"""What a write causes: counters of the nodes.

Two readings of `/metrics` around a run give what the run did, on all nodes together; it is told for
each write that was proposed. Heartbeats and other work of the nodes are in it.
"""
import re

from bench_clusters import NODES, http

LINE = re.compile(r"(\w+) (\d+)")
# Writes: what all else is divided by.
WRITES = "strata_store_proposed_commands"
COUNTED = {
    "strata_store_proposals": "entries",
    "strata_store_log_batches": "log batches written, on three nodes",
    "strata_store_log_syncs": "log batches synced, on three nodes",
    "strata_store_messages_sent": "raft messages sent",
    "strata_transport_frames_total": "frames in which they travelled",
    "strata_store_apply_batches": "batches applied, on three nodes",
}


def read(text):
    """The counters of a `/metrics` page that matter here."""
    found = {name: int(value) for name, value in LINE.findall(text)}
    return {name: found.get(name, 0) for name in (WRITES, *COUNTED)}


def scrape(cluster):
    """The counters of each node."""
    return [read(http(cluster.port + node, "/metrics").decode()) for node in range(NODES)]


def between(before, after):
    """How often each happened for a write from one scrape to the next. Empty without writes."""
    def grown(name):
        return sum(late[name] - early[name] for early, late in zip(before, after))
    writes = grown(WRITES)
    return {name: grown(name) / writes for name in COUNTED} if writes else {}
