#!/usr/bin/env python3
"""Tests of the benchmark's own logic: bounds, tables, plots, which parts run. No servers.

    scripts/bench_test.py
"""
import argparse
import contextlib
import io
import json
import math
import re
import unittest
import xml.etree.ElementTree
from unittest import mock

import bench
import bench_bounds
import bench_clusters
import bench_parts
import bench_plots
import bench_profile
import bench_quick
import bench_counts
import bench_stages
import bench_table

STAMP = {"date": "2026-01-02", "commit": "abc1234", "seconds": 10, "nodes": 3, "keys": 1000,
         "value_bytes": 256, "versions": {"strata": "strata 1", "etcd": "etcd Version: 3"},
         "machine": {"cores": 2, "architecture": "x86_64", "cpu": "", "memory_bytes": 1 << 33,
                     "kernel": "6", "filesystem": "ext4"}}


def row(target, kind, clients, speed, **more):
    return {"target": target, "kind": kind, "clients": clients, "ops_per_second": speed,
            "single_region": False, "asked": "all", "connections": 1, "keys_per_call": 1,
            "seconds": 10.0, "p50_us": 900, "p99_us": 5_000 if target == "strata" else 9_000,
            "p999_us": 9_900, "errors": 0, "wrong_answers": 0, "failures": 0,
            "latency_us": [[90.0, 3_000]], "written_user_bytes": 1_000_000,
            "servers": {"cpu_us_per_op": 40 if target == "strata" else 100,
                        "resident_bytes": [90_000_000, 80_000_000, 70_000_000],
                        "written_bytes": 9_000_000}} | more


def good():
    """Results in which every bound holds with nothing to spare, and every aim is missed."""
    least = {(kind, clients): factor for kind, clients, factor, _ in bench_bounds.AGAINST_ETCD}
    rows = []
    for kind in ("put", "get"):
        for clients in bench_parts.CLIENTS:
            factor = least.get((kind, clients), 1)
            rows.append(row("strata", kind, clients, 1000 * factor))
            rows.append(row("etcd", kind, clients, 1000))
            rows.append(row("etcd", kind, clients, 900, asked="leader"))
        rows.append(row("noop", f"noop-{kind}", 256, 10_000))
        rows.append(row("noop", f"noop-{kind}", 256, 8_000, connections=3))
    puts = row("strata", "put", 64, 1000)
    limited = {"generate_seconds": 1.0, "send_seconds": 8.0, "install_seconds": 1.0,
               "whole_seconds": 12.0, "grew_bytes": {"sender": 5, "receiver": 64_000_000}}
    layouts = [row("strata", kind, 256, speed, layout=layout) for kind in ("put", "get")
               for layout, speed in ((1, 90), (8, 100), (8, 70), (64, 95), (512, 90))]
    kill = {"longest_gap_us": 1_400_000, "errors": 0, "wrong_answers": 0, "operations": 9}
    parts = {
        "throughput": {"rows": rows},
        "batch": {"rows": [row("strata", kind, 256, speed) for kind, speed in (
            ("put", 100), ("batch-put", 300), ("get", 100), ("batch-get", 300))]},
        "scan": {"rows": [row("strata", "scan", 16, 100),
                          {"target": "rocksdb", "kind": "iterator", "keys_per_call": 1000,
                           "ops_per_second": 300, "wrong_answers": 0}]},
        "regions": {"rows": layouts},
        "idle": {"regions": 2000, "cpu_cores": [0.01, 0.099], "resident_bytes": [1, 2]},
        "restart": {"regions": 2000, "value_bytes": 2 << 30, "rounds": [
            {"killed": "one node", "healthy_seconds": 1.0, "answered_seconds": 4.9,
             "all_led_seconds": 8.0}]},
        "written": {"rows": [row("strata", "put", 256, 100),
                             row("etcd", "put", 256, 50, device_written_bytes=18_000_000)]},
        "kills": {"rounds": {"strata": [kill, kill, kill | {"longest_gap_us": 2_900_000}],
                             "etcd": [kill]}},
        "snapshot": {"value_bytes": 1 << 30, "unlimited": [limited | {"copy_seconds": 3.0}],
                     "limited": [limited | {"before": puts, "after": puts, "share_of_run": 0.9,
                                            "during": puts | {"ops_per_second": 700}}]},
        "raft": {"rows": [{"crate": crate, "batch": 1, "in_flight": 1, "payload_bytes": 256,
                           "entries_per_second": 100, "allocations_per_entry": 1.0,
                           "allocations_per_batch": 1.0} for crate in ("strata-raft", "raft 0.7")]},
        "profile": {"rows": [{"kind": "get", "clients": 64, "regions": None,
                              "areas": {"StrataKV": 1.0}, "threads": {"network, raft shards": 1.0}}]},
        "startup": {"ready_ms": 100, "idle_resident_bytes": 1 << 20, "idle_cpu_cores": 0.01},
    }
    return {"parts": {name: STAMP | part for name, part in parts.items()}}


def missed(results):
    return [line.text for line in bench_bounds.bounds(results) if not line.holds]


class Clusters(unittest.TestCase):
    def test_a_command_line_names_no_folder_of_this_machine(self):
        words = ["/home/one/target/strata", "bench", "iterator", "--dir", "/home/one/bench-1"]
        self.assertEqual(bench_clusters.without_folders(words),
                         ["strata", "bench", "iterator", "--dir", "bench-1"])

    def test_a_killed_node_has_no_process(self):
        cluster = bench_clusters.Cluster(folder=None)
        for node, code in ((1, None), (2, -9), (3, None)):
            cluster.processes[node] = mock.Mock(pid=100 + node, poll=lambda code=code: code)
        self.assertEqual(cluster.pids(), [101, 103])


class Bounds(unittest.TestCase):
    def test_figures_at_their_bounds_hold(self):
        self.assertEqual(missed(good()), [])

    def test_every_part_with_a_bound_is_one_that_is_measured(self):
        self.assertLessEqual(set(bench_bounds.JUDGES), set(bench_parts.PARTS))
        self.assertEqual(set(bench_table.TABLES), set(bench_parts.PARTS))
        self.assertEqual(set(good()["parts"]), set(bench_parts.PARTS))

    def test_each_bound_is_missed_by_a_figure_just_beyond_it(self):
        def speed(part, kind, factor):
            def change(parts):
                for one in parts[part]["rows"]:
                    if one["kind"] == kind and one["target"] in ("strata", "rocksdb"):
                        one["ops_per_second"] *= factor
            return change

        def at(*path):
            """Multiplies one figure by 1.03."""
            def change(parts):
                place = parts
                for step in path[:-1]:
                    place = place[step]
                place[path[-1]] *= 1.03
            return change

        def first_row(name, value):
            def change(parts):
                parts["throughput"]["rows"][0][name] = value
            return change

        def most_clients(parts):
            return next(one for one in parts["throughput"]["rows"] if one["target"] == "strata"
                        and one["kind"] == "get" and one["clients"] == 256)
        cases = {
            "puts, 256 clients, all regions": speed("throughput", "put", 0.99),
            "gets, 64 clients, all regions": speed("throughput", "get", 0.99),
            "p99 below etcd's": first_row("p99_us", 9_000),
            "CPU time": lambda parts: most_clients(parts)["servers"].update(cpu_us_per_op=51),
            "resident memory": lambda parts: most_clients(parts)["servers"].update(
                resident_bytes=[1, 150_000_000]),
            "batch puts": speed("batch", "batch-put", 0.99),
            "batch gets": speed("batch", "batch-get", 0.99),
            "scans": speed("scan", "scan", 0.99),
            "puts in 1, 8, 64, 512 regions": at("regions", "rows", 1, "ops_per_second"),
            "idle node": at("idle", "cpu_cores", 1),
            "one node killed": at("restart", "rounds", 0, "answered_seconds"),
            "the worst of them": lambda parts: parts["kills"]["rounds"]["strata"][2].update(
                longest_gap_us=3_000_000),
            "longest gap when": lambda parts: parts["kills"]["rounds"]["strata"][0].update(
                longest_gap_us=1_600_000) or parts["kills"]["rounds"]["strata"][1].update(
                longest_gap_us=1_600_000),
            "speed of a copy": at("snapshot", "unlimited", 0, "send_seconds"),
            "memory of neither node": lambda parts: parts["snapshot"]["unlimited"][0].update(
                grew_bytes={"sender": 64_000_001}),
            "puts keep": at("snapshot", "limited", 0, "before", "ops_per_second"),
            "of their speed": at("snapshot", "limited", 0, "after", "ops_per_second"),
            "it travelled in 70%": lambda parts: parts["snapshot"]["limited"][0].update(
                share_of_run=0.7),
            "the raft crate": at("raft", "rows", 1, "entries_per_second"),
            "no error": first_row("wrong_answers", 1),
        }
        for words, change in cases.items():
            with self.subTest(words):
                # Parts share what they were made from; a change must reach one place only.
                results = json.loads(json.dumps(good()))
                change(results["parts"])
                self.assertTrue(any(words in text for text in missed(results)), missed(results))

    def test_of_several_snapshots_the_median_counts(self):
        words = ("speed of a copy", "puts keep")
        for slow, holds in ((1, True), (2, False)):
            results = json.loads(json.dumps(good()))
            part = results["parts"]["snapshot"]
            for kind, change in (("unlimited", {"copy_seconds": 0.1}),
                                 ("limited", {"during": part["limited"][0]["during"] | {
                                     "ops_per_second": 1}})):
                one = part[kind][0]
                part[kind] = [one | change] * slow + [one] * (3 - slow)
            found = [word for word in words if any(word in text for text in missed(results))]
            self.assertEqual(found, [] if holds else list(words))

    def test_errors_are_counted_in_every_part_that_asks(self):
        for path in (("batch", "rows", 0), ("snapshot", "limited", 0, "during"),
                     ("snapshot", "limited", 0, "after"), ("kills", "rounds", "etcd", 0)):
            results = json.loads(json.dumps(good()))
            place = results["parts"]
            for step in path:
                place = place[step]
            place["errors"] = 2
            self.assertEqual(missed(results), ["no error and no wrong answer in any row (2)"])

    def test_the_aims_are_judged_by_the_faster_etcd_and_no_op_server(self):
        found = bench_bounds.aims(good())
        self.assertEqual([line.text.split("(")[1] for line in found],
                         ["2.00 times)", "4.00 times)", "20%)", "40%)", "0.56 times at most)",
                          "0.40 times)", "0.40 times)", "9.9%)", "3.0 and 6.0)", "2.90 s)",
                          "30%)", "1.00 times at least)"])
        held = [line.text.split(" (")[0] for line in found if line.holds]
        self.assertEqual(held, ["bytes written for each byte of user data and replica below "
                                "etcd's"])

    def test_a_part_that_was_not_measured_is_not_judged(self):
        results = {"parts": {"idle": good()["parts"]["idle"]}}
        self.assertEqual(len(bench_bounds.bounds(results)), 2)
        self.assertEqual(len(bench_bounds.aims(results)), 1)
        self.assertEqual(bench_bounds.aims({"parts": {}}), [])


def metrics_page(times):
    """What a node shows of these microseconds of one stage, among other lines."""
    name = "strata_store_write_stage_seconds"
    lines = ["# TYPE strata_store_proposals counter", "strata_store_proposals 7",
             f"# TYPE {name} histogram"]
    for bound in (16, 32, 64):
        count = sum(time <= bound for time in times)
        lines.append(f'{name}_bucket{{stage="commit",le="{bound / 1e6:.6f}"}} {count}')
    lines += [f'{name}_bucket{{stage="commit",le="+Inf"}} {len(times)}',
              f'{name}_sum{{stage="commit"}} {sum(times) / 1e6:.6f}',
              f'{name}_count{{stage="commit"}} {len(times)}',
              f'{name}_bucket{{stage="reply",le="+Inf"}} 0',
              f'{name}_sum{{stage="reply"}} 0', f'{name}_count{{stage="reply"}} 0']
    return "\n".join(lines) + "\n"


class Turns(unittest.TestCase):
    def test_of_each_row_the_median_turn_counts(self):
        speeds = iter((5, 100, 9, 300, 7, 200))

        def turn(_, seconds):
            rows = [{"kind": kind, "seconds": seconds, "ops_per_second": next(speeds)}
                    for kind in ("put", "get")]
            return [row | {"errors": int(row["ops_per_second"] == 5), "wrong_answers": 0,
                           "servers": {"resident_bytes": [1, row["ops_per_second"]]}}
                    for row in rows]
        with mock.patch.object(bench_parts, "throughput_turn", turn):
            run = bench_parts.Run(folder=None, etcd="", seconds=8, kills=1, quick=False)
            found = bench_parts.throughput(run)
        self.assertEqual([(row["kind"], row["ops_per_second"], row["seconds"])
                          for row in found["rows"]], [("put", 7, 4), ("get", 200, 4)])
        # What went wrong in another turn, and what a node took there, counts, too.
        self.assertEqual([row["errors"] for row in found["rows"]], [1, 0])
        self.assertEqual([row["servers"]["resident_bytes"] for row in found["rows"]],
                         [[1, 9], [1, 300]])
        self.assertEqual(found["turns"], [[5, 100], [9, 300], [7, 200]])
        self.assertEqual(bench_table.runs_of(found | {"seconds": 8}),
                         "of 3 runs of 4 s the median,")


class Counts(unittest.TestCase):
    def test_what_was_added_is_told_for_each_write(self):
        page = ("# TYPE strata_store_proposals counter\nstrata_store_proposals 4\n"
                "strata_store_proposed_commands 10\nstrata_store_log_syncs 9\nother_total 7\n")
        more = page.replace("proposals 4", "proposals 9").replace("commands 10", "commands 20")
        before, after = ([bench_counts.read(text) for text in texts]
                         for texts in ((page, ""), (more, page)))
        found = bench_counts.between(before, after)
        self.assertEqual(found["strata_store_proposals"], (5 + 4) / 20)
        self.assertEqual(found["strata_store_log_syncs"], 9 / 20)
        self.assertEqual(found["strata_store_messages_sent"], 0)
        self.assertEqual(bench_counts.between(before, before), {})

    def test_the_tables_tell_what_a_put_caused(self):
        results = good()
        for one in results["parts"]["regions"]["rows"]:
            if one["kind"] == "put":
                one["counts"] = dict.fromkeys(bench_counts.COUNTED, one["layout"] / 100)
        text = bench_table.tables(results)
        self.assertIn("| what | 1 region | 8 regions | 64 regions | 512 regions |", text)
        self.assertIn("| entries | 0.01 | 0.08 | 0.64 | 5.12 |", text)


class Stages(unittest.TestCase):
    def test_a_page_is_read_into_histograms(self):
        found = bench_stages.read(metrics_page([10, 20, 90]))
        self.assertEqual(set(found), {"commit", "reply"})
        self.assertEqual(found["commit"], {
            "sum": 0.00012, "count": 3,
            "buckets": {16e-6: 1, 32e-6: 2, 64e-6: 2, math.inf: 3}})

    def test_what_was_added_on_all_nodes_counts_and_what_was_there_does_not(self):
        def pages(*nodes):
            return [bench_stages.read(metrics_page(times)) for times in nodes]
        before = pages([60] * 10, [])
        after = pages([60] * 10 + [20] * 3, [20])
        found = bench_stages.between(before, after)
        self.assertEqual(set(found), {"commit"})
        self.assertEqual(found["commit"]["count"], 4)
        self.assertAlmostEqual(found["commit"]["mean_us"], 20)
        # Four times between 16 and 32: half of them below the middle.
        self.assertAlmostEqual(found["commit"]["p50_us"], 24)
        self.assertAlmostEqual(found["commit"]["p99_us"], 16 + 16 * 0.99)

    def test_a_quantile_above_all_bounds_is_the_highest_bound(self):
        buckets = [(1.0, 1), (2.0, 1), (4.0, 3), (math.inf, 10)]
        self.assertEqual(bench_stages.quantile(buckets, 0.1), 1.0)
        self.assertEqual(bench_stages.quantile(buckets, 0.2), 3.0)
        self.assertEqual(bench_stages.quantile(buckets, 0.3), 4.0)
        self.assertEqual(bench_stages.quantile(buckets, 0.99), 4.0)

    def test_the_table_has_the_rows_with_stages_and_what_is_outside_of_them(self):
        results = good()
        rows = results["parts"]["throughput"]["rows"]
        self.assertEqual(bench_table.stages_table(results["parts"]["throughput"]), [])
        for one in rows:
            if one["target"] == "strata" and one["kind"] == "put" and one["clients"] != 64:
                figures = {"count": 9, "mean_us": 100.0, "p50_us": 90.0, "p99_us": 1200.0}
                one["stages"] = {name: dict(figures) for name in
                                 [*bench_stages.IN_ORDER, "log_queue", "total"]}
                one["ops_per_second"] = one["clients"] * 1e6 / 350
        text = bench_table.tables(results)
        self.assertIn("| stage | what | 1 client | 256 clients |", text)
        self.assertIn("| `inbox` | from the gate to the region's shard | 100 / 90 / 1,200 | "
                      "100 / 90 / 1,200 |", text)
        self.assertIn("| outside | client, network, gRPC on both sides | 250 | 250 |", text)
        # A stage without a count has no figures.
        self.assertRegex(text, r"\| `log_write` \| within `commit`: [^|]+ \|  \|  \|")

    def test_puts_of_the_own_cluster_are_read_before_and_after(self):
        cluster = mock.Mock(bench=lambda kind, clients, *_, **__: {"kind": kind,
                                                                   "clients": clients})
        cluster.name = "strata"
        pages = iter(range(1000))
        counts = ({bench_counts.WRITES: 10 * page} | dict.fromkeys(bench_counts.COUNTED, 20 * page)
                  for page in range(1000))
        with mock.patch.object(bench_stages, "scrape", lambda _: next(pages)), \
                mock.patch.object(bench_stages, "between", lambda early, late: (early, late)), \
                mock.patch.object(bench_counts, "scrape", lambda _: [next(counts)]):
            rows = bench_parts.throughput_of(cluster, 1)
        self.assertEqual([one["counts"] for one in rows if "counts" in one], [
            dict.fromkeys(bench_counts.COUNTED, 2.0)] * 3)
        self.assertFalse([one for one in rows if "counts" in one and one["kind"] != "put"])
        found = {one["clients"]: one["stages"] for one in rows if "stages" in one}
        self.assertEqual(found, {1: (0, 1), 64: (2, 3), 256: (4, 5)})
        self.assertFalse([one for one in rows if "stages" in one and one["kind"] != "put"])


PERF = """# Overhead\tCommand\tShared Object\tSymbol
    30.00%\ttokio-rt-worker\tstrata             \t[.] h2::proto::connection::poll
    12.50%\tlog-0\t[kernel.kallsyms]\t[k] ext4_sync_file
    10.00%\tlog-0\t[kernel.kallsyms]\t[k] finish_task_switch.isra.0
     5.00%\ttokio-rt-worker\t[kernel.kallsyms]\t[k] tcp_sendmsg_locked
     2.50%\tlog-0\t[kernel.kallsyms]\t[k] do_syscall_64
    20.00%\tapply-0\tstrata\t[.] rocksdb::InlineSkipList<strata>::Insert<false>
     8.00%\ttokio-rt-worker\tstrata\t[.] strata_raftstore::shard::Shard<E>::handle
     7.00%\tapply-0\tlibc.so.6\t[.] __memmove_avx512_unaligned_erms
     3.00%\tapply-0\tstrata\t[.] _rjem_malloc
     2.00%\tstore\tlibm.so.6\t[.] __ieee754_pow_fma

"""


class Profile(unittest.TestCase):
    def test_every_sample_is_in_one_area_and_one_thread(self):
        found = bench_profile.shares(PERF)
        self.assertEqual({name: round(share, 3) for name, share in found["areas"].items()}, {
            "HTTP/2, gRPC, tokio": 0.3, "kernel: files and disk": 0.125,
            "kernel: switching threads": 0.1, "kernel: sockets": 0.05, "kernel: other": 0.025,
            "RocksDB": 0.2, "StrataKV": 0.08, "copying, comparing": 0.07, "allocating": 0.03,
            "other": 0.02})
        self.assertEqual({name: round(share, 3) for name, share in found["threads"].items()}, {
            "network, raft shards": 0.43, "log writers": 0.25, "apply": 0.3, "other threads": 0.02})
        self.assertLessEqual(set(found["areas"]), set(bench_profile.AREAS))

    def test_lines_that_are_no_samples_are_left_out(self):
        self.assertEqual(bench_profile.shares("# 10%\ta\tb\tc\n\nnothing\n"),
                         {"areas": {}, "threads": {}})

    def test_the_table_has_a_column_for_each_load_and_no_row_of_nothing(self):
        rows = [{"kind": "put", "clients": 1, "regions": 512} | bench_profile.shares(PERF),
                {"kind": "put", "clients": 1, "regions": None, "value_bytes": 8_000_000, "areas": {},
                 "threads": {}},
                {"kind": "get", "clients": 64, "regions": 1, "areas": {}, "threads": {}},
                {"kind": "snapshot", "clients": 0, "regions": None, "areas": {}, "threads": {}},
                {"kind": "idle", "clients": 0, "regions": 2000, "areas": {"StrataKV": 1.0},
                 "threads": {"apply": 1.0}}]
        text = "\n".join(bench_table.profile_table(STAMP | {"rows": rows}))
        self.assertIn("| area | put, 1 client, 512 regions | put, 1 client, values of 8 MB "
                      "| get, 64 clients, one region | snapshot, both nodes | idle, 2,000 regions |",
                      text)
        self.assertIn("| StrataKV | 8% | 0% | 0% | 0% | 100% |", text)
        self.assertIn("| log writers | 25% | 0% | 0% | 0% | 0% |", text)
        self.assertNotIn("readers", text)
        self.assertEqual(bench_table.profile_table(STAMP | {"rows": []}), [])


class Quick(unittest.TestCase):
    """`make bench-quick` from its command line to its table, with clusters that only say what
    they are asked."""

    def run_main(self, words, before, wrong=0, counted=0):
        asked, written = [], {}

        @contextlib.contextmanager
        def cluster(name):
            fake = mock.Mock(leader=lambda: 2, endpoint=lambda node: f"node-{node}")
            fake.name = name
            fake.bench_words = lambda kind, clients, seconds, *more, keys, endpoints: [
                name, kind, str(clients), str(seconds), endpoints or "all", *more]
            yield fake

        def run_bench(words):
            asked.append(words)
            if "noop" in words:
                return [row("noop", f"noop-{kind}", 256, 8000) for kind in ("put", "get")]
            speed = {"strata": 4000}.get(words[0], 2000 if words[4] == "all" else 2500)
            return [row(words[0], words[1], 256, speed, wrong_answers=wrong)]

        printed = io.StringIO()
        with contextlib.ExitStack() as stack:
            def patch(where, name, what):
                stack.enter_context(mock.patch.object(where, name, what))
            patch(bench_quick, "run_bench", run_bench)
            patch(bench_quick.Run, "both", lambda _: iter((cluster("strata"), cluster("etcd"))))
            patch(bench_quick.sys, "argv", ["bench_quick.py", *words])
            patch(bench_quick.signal, "signal", lambda *_: None)
            patch(bench_quick.hot_paths, "first_line", lambda *_: "etcd")
            patch(bench_quick.hot_paths, "read_results", lambda: {"ratios": before})
            patch(bench_quick.hot_paths, "write_part", written.__setitem__)
            counting = mock.Mock(return_value=mock.Mock(returncode=counted))
            patch(bench_quick.subprocess, "run", counting)
            stack.enter_context(contextlib.redirect_stdout(printed))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            code = bench_quick.main()
        return code, printed.getvalue(), asked, written, counting.call_args.args[0]

    def test_ratios_are_printed_beside_those_before_and_instructions_are_counted(self):
        name = "puts, 256 clients, against etcd"
        code, printed, asked, written, counted = self.run_main(["--seconds", "3"], {name: 1.25})
        self.assertEqual((code, written), (0, {}))
        # etcd's leader alone is faster here.
        self.assertRegex(printed, rf"{name} +1.60 +1.25\n")
        self.assertRegex(printed, r"gets, 256 clients, against the no-op server +0.50 +\n")
        self.assertIn(["etcd", "get", "256", "3", "node-2", "--loaded"], asked)
        self.assertIn(["strata", "put", "256", "3", "all"], asked)
        self.assertTrue(counted[0].endswith("hot_paths.py") and len(counted) == 1, counted)

    def test_an_update_writes_ratios_and_instructions(self):
        _, _, _, written, counted = self.run_main(["--update"], {})
        self.assertEqual(written["ratios"]["puts, 256 clients, against etcd"], 1.6)
        self.assertEqual(counted[1:], ["--update"])

    def test_wrong_answers_and_more_instructions_fail(self):
        self.assertEqual(self.run_main([], {}, wrong=1)[0], 1)
        self.assertEqual(self.run_main([], {}, counted=3)[0], 3)


class Page(unittest.TestCase):
    def test_every_table_has_as_many_cells_in_each_row(self):
        blocks = bench_table.tables(good()).split("\n\n")
        found = [block.splitlines() for block in blocks if block.startswith("|")]
        self.assertGreater(len(found), len(bench_parts.PARTS))
        for lines in found:
            self.assertEqual({line.count("|") for line in lines}, {lines[0].count("|")}, lines)

    def test_a_bound_that_does_not_hold_is_printed_with_its_figure(self):
        results = good()
        results["parts"]["idle"]["cpu_cores"] = [0.2]
        self.assertIn("under 10% of a core (20.0%) | **no** |", bench_table.tables(results))

    def test_some_parts_alone_make_a_page(self):
        for name, part in good()["parts"].items():
            with self.subTest(name):
                text = bench_table.tables({"parts": {name: part}})
                self.assertIn("(measured on 2026-01-02 at commit `abc1234`)", text)


class Plots(unittest.TestCase):
    def test_plots_are_well_formed_and_show_every_value(self):
        for name, text in bench_plots.plots(good()["parts"]["throughput"]).items():
            tree = xml.etree.ElementTree.fromstring(text)
            width, height = (float(tree.get(side)) for side in ("width", "height"))
            circles = tree.findall(".//{*}circle")
            # Two panels of two lines of three and one point, or six of two lines of four.
            marks = 14 if name == "throughput.svg" else 48
            legend = 3 if name == "throughput.svg" else 2
            self.assertEqual(len(circles), marks + legend, name)
            for circle in circles:
                self.assertTrue(0 <= float(circle.get("cx")) <= width)
                self.assertTrue(0 <= float(circle.get("cy")) <= height)

    def test_an_axis_holds_its_values_in_round_steps(self):
        self.assertEqual(bench_plots.axis([3, 87], False), [0, 20, 40, 60, 80, 100])
        self.assertEqual(bench_plots.axis([100], False), [0, 20, 40, 60, 80, 100])
        self.assertEqual(bench_plots.axis([0.3, 40], True), [0.1, 1, 10, 100])
        self.assertEqual(bench_plots.axis([1], True), [1, 10])
        self.assertEqual(bench_plots.place(10, [1, 10, 100], True), 0.5)

    def test_what_was_not_measured_has_no_line(self):
        panel = bench_plots.Panel("t", "x", "y", ["1"], {"etcd": [None]}, False)
        self.assertIn("not measured", bench_plots.draw([[panel]]))


class CommandLine(unittest.TestCase):
    def test_parts_run_in_the_order_of_a_whole_run(self):
        self.assertEqual(bench.parse([]).only, list(bench_parts.PARTS))
        self.assertEqual(bench.parse(["--only", "scan, batch"]).only, ["batch", "scan"])

    def test_an_unknown_part_is_refused_with_those_there_are(self):
        with self.assertRaises(argparse.ArgumentTypeError) as refused:
            bench.part_names("batch,bathc")
        self.assertTrue(re.search("no part bathc: there are .*throughput", str(refused.exception)))
        with self.assertRaises(argparse.ArgumentTypeError):
            bench.part_names(",")


if __name__ == "__main__":
    unittest.main()
