#!/usr/bin/env python3
"""What scripts/hot_paths.py makes of counts. `make test` runs this."""
import io
import json
import pathlib
import tempfile
import unittest
from unittest import mock

import hot_paths


class Compare(unittest.TestCase):
    def test_more_than_a_tenth_more_is_wrong(self):
        _, wrong = hot_paths.compare({"put": 1000.0}, {"put": 1101.0})
        self.assertEqual(wrong, ["put takes 10.1% more instructions: 1,000 before, 1,101 now"])

    def test_a_tenth_more_or_any_less_is_right(self):
        for now in (1099.0, 1000.0, 1.0):
            rows, wrong = hot_paths.compare({"put": 1000.0}, {"put": now})
            self.assertEqual(wrong, [])
            self.assertEqual(rows, [("put", 1000.0, now, now / 1000 - 1)])

    def test_one_path_does_not_make_up_for_another(self):
        before = {"put": 1000.0, "get": 100.0}
        _, wrong = hot_paths.compare(before, {"put": 10.0, "get": 120.0})
        self.assertEqual(len(wrong), 1)
        self.assertIn("get", wrong[0])

    def test_a_path_on_one_side_only_is_wrong(self):
        _, wrong = hot_paths.compare({}, {"put": 10.0})
        self.assertEqual(wrong, ["put has no count to be compared with"])
        _, wrong = hot_paths.compare({"put": 10.0}, {})
        self.assertEqual(wrong, ["put is not counted any more"])


class Run(unittest.TestCase):
    """The whole script, with counts in the place of valgrind's."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        results = pathlib.Path(folder.name) / "benchmarks.json"
        for name, value in (("RESULTS", results), ("TOP", pathlib.Path(folder.name))):
            patch = mock.patch.object(hot_paths, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def run_with(self, counts, *words, valgrind="/usr/bin/valgrind"):
        """Exit code, and what was printed on both outputs."""
        out = io.StringIO()
        with mock.patch.object(hot_paths, "listed", lambda: dict.fromkeys(counts, 1)), \
                mock.patch.object(hot_paths, "count", lambda name, _: counts[name]), \
                mock.patch.object(hot_paths, "first_line", lambda *words: words[0]), \
                mock.patch.object(hot_paths.shutil, "which", lambda _: valgrind), \
                mock.patch("sys.argv", ["hot_paths.py", *words]), \
                mock.patch("sys.stdout", out), mock.patch("sys.stderr", out):
            return hot_paths.main(), out.getvalue()

    def test_fails_above_a_tenth_more_than_what_was_written(self):
        code, _ = self.run_with({"put": 1000.0, "get": 100.0}, "--update")
        self.assertEqual(code, 0)
        code, printed = self.run_with({"put": 1099.0, "get": 90.0})
        self.assertEqual(code, 0, printed)
        code, printed = self.run_with({"put": 1101.0, "get": 90.0})
        self.assertEqual(code, 1, printed)
        self.assertIn("put takes 10.1% more instructions", printed)

    def test_one_path_alone_does_not_miss_the_others(self):
        self.run_with({"put": 1000.0, "get": 100.0}, "--update")
        code, printed = self.run_with({"put": 1000.0, "get": 500.0}, "--only", "put")
        self.assertEqual(code, 0, printed)

    def test_counts_of_another_compiler_are_not_judged(self):
        self.run_with({"put": 1000.0}, "--update")
        with mock.patch.object(hot_paths, "tools",
                               lambda: {"compiler": "rustc 9.9.9", "valgrind": "valgrind-9"}):
            code, printed = self.run_with({"put": 2000.0})
        self.assertEqual(code, 0, printed)
        self.assertIn("rustc 9.9.9", printed)
        self.assertIn("not judged", printed)

    def test_nothing_to_compare_with_fails(self):
        code, printed = self.run_with({"put": 1000.0})
        self.assertEqual(code, 1, printed)

    def test_an_update_leaves_other_parts_alone(self):
        hot_paths.write_part("ratios", {"puts": 1.5})
        self.run_with({"put": 1000.0}, "--update")
        written = json.loads(hot_paths.RESULTS.read_text(encoding="utf-8"))
        self.assertEqual(written["ratios"], {"puts": 1.5})
        self.assertEqual(written["hot_paths"]["instructions"], {"put": 1000.0})

    def test_without_valgrind_one_line_and_no_failure(self):
        code, printed = self.run_with({"put": 1000.0}, valgrind=None)
        self.assertEqual(code, 0)
        self.assertEqual(len(printed.splitlines()), 1)

    def test_counts_that_differ_fail_when_counted_twice(self):
        for counts, wanted in (([1000.0, 1009.0], 0), ([1000.0, 1011.0], 1)):
            following = iter(counts)
            out = io.StringIO()
            with mock.patch.object(hot_paths, "count", lambda *_, f=following: next(f)), \
                    mock.patch("sys.stdout", out):
                close = hot_paths.twice({"put": 1})
            self.assertEqual(0 if close else 1, wanted, out.getvalue())


class Totals(unittest.TestCase):
    def test_all_parts_of_a_file_count(self):
        self.assertEqual(hot_paths.totals("events: Ir\nsummary: 5\n\ntotals: 5\ntotals: 7\n"), 12)
        self.assertEqual(hot_paths.totals("events: Ir\n"), 0)


if __name__ == "__main__":
    unittest.main()
