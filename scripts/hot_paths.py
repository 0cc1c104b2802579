#!/usr/bin/env python3
"""Counts the instructions of the hot paths and compares them with an earlier commit's.

    make hot-paths              counts, compares with docs/benchmarks.json; exit code 1 if a
                                path takes more than 10 % more
    make hot-paths UPDATE=1     counts, and writes docs/benchmarks.json
    scripts/hot_paths.py --twice
                                counts everything twice; exit code 1 if two counts of one
                                build differ by 1 % or more
    scripts/hot_paths.py --only NAME
                                one path; may stand several times

Each path of `hot-paths` (crates/hot-paths) runs under callgrind, which counts the
instructions within one function of that program. Where valgrind is missing nothing is
counted, which is said in one line, and the exit code is 0.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("STRATA_CACHE", pathlib.Path.home() / ".cache/strata"))
TARGET = os.environ.get("CARGO_TARGET_DIR", str(CACHE / "target"))
PROGRAM = f"{TARGET}/release/hot-paths"
RESULTS = TOP / "docs" / "benchmarks.json"
# The function whose instructions count (crates/hot-paths/src/main.rs).
MEASURED = "strata_hot_path_measured"
# More instructions than this times those before fail.
GROWTH_MAX = 1.10
# Two counts of one build must not differ by so large a share.
SPREAD_MAX = 0.01
# Longest that one path may take, in seconds; the slowest takes about 10.
RUN_SECONDS_MAX = 300


class Failure(Exception):
    """Something that is said in one line, without a trace."""


def totals(text):
    """Instructions that a callgrind file names, over all its parts."""
    found = [line for line in text.splitlines() if line.startswith("totals:")]
    return sum(int(line.split()[1]) for line in found)


def compare(before, now):
    """Rows (name, before, now, change as a share) and the lines that say what is wrong.
    `before` and `now` hold the instructions of an operation by the path's name. A path that
    is on one side only is wrong, too: nothing would notice that it grows."""
    rows, wrong = [], []
    for name, count in now.items():
        old = before.get(name)
        if old is None:
            rows.append((name, None, count, None))
            wrong.append(f"{name} has no count to be compared with")
            continue
        rows.append((name, old, count, count / old - 1))
        if count > old * GROWTH_MAX:
            wrong.append(f"{name} takes {count / old - 1:.1%} more instructions: "
                         f"{old:,.0f} before, {count:,.0f} now")
    wrong += [f"{name} is not counted any more" for name in before if name not in now]
    return rows, wrong


def spread(first, second):
    """The difference of two counts as a share of the smaller one."""
    return abs(first - second) / min(first, second)


def table(rows):
    """Rows of `compare` as lines of text."""
    lines = [f"{'hot path':<24} {'instructions an operation':>25} {'before':>12} {'change':>8}"]
    for name, old, count, change in rows:
        shown = ("", "new") if old is None else (f"{old:,.0f}", f"{change:+.1%}")
        lines.append(f"{name:<24} {count:>25,.0f} {shown[0]:>12} {shown[1]:>8}")
    return lines


def read_results():
    """All of docs/benchmarks.json; empty where there is none."""
    if not RESULTS.exists():
        return {}
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def write_part(part, value):
    """Replaces one part of docs/benchmarks.json."""
    RESULTS.write_text(json.dumps(read_results() | {part: value}, indent=1) + "\n",
                       encoding="utf-8")


def first_line(*words):
    """The first line that a command prints; empty if it fails."""
    out = subprocess.run(words, check=False, stdout=subprocess.PIPE, text=True, cwd=TOP).stdout
    return (out.splitlines() or [""])[0].strip()


def listed():
    """Operations of each path, by its name."""
    if not os.access(PROGRAM, os.X_OK):
        raise Failure(f"{PROGRAM} is missing: make build")
    out = subprocess.run([PROGRAM, "list"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return {line.split("\t")[0]: int(line.split("\t")[1]) for line in out.splitlines()}


def count(name, operations):
    """Instructions of one operation of a path."""
    with tempfile.TemporaryDirectory(prefix="hot-path-") as folder:
        out = pathlib.Path(folder) / "callgrind.out"
        data = pathlib.Path(folder) / "data"
        data.mkdir()
        words = ["valgrind", "--quiet", "--tool=callgrind", f"--toggle-collect={MEASURED}",
                 f"--callgrind-out-file={out}", PROGRAM, "run", name, "--folder", str(data)]
        try:
            done = subprocess.run(words, check=False, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  timeout=RUN_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise Failure(f"{name} took more than {RUN_SECONDS_MAX} s") from None
        if done.returncode != 0:
            raise Failure(f"{name} ended with {done.returncode}:\n{done.stdout[-2000:]}")
        found = totals(out.read_text(encoding="utf-8", errors="replace"))
    if found == 0:
        raise Failure(f"{name}: nothing was counted; is there a function {MEASURED}?")
    return found / operations


def twice(paths):
    """Counts each path twice, prints both, and returns whether they are close."""
    print(f"{'hot path':<24} {'first count':>14} {'second count':>14} {'apart':>8}")
    close = True
    for name, operations in paths.items():
        first, second = count(name, operations), count(name, operations)
        apart = spread(first, second)
        close = close and apart < SPREAD_MAX
        print(f"{name:<24} {first:>14,.1f} {second:>14,.1f} {apart:>8.3%}", flush=True)
    return close


def check(paths, whole):
    """Counts and compares; prints the table and returns the lines that say what is wrong.
    `whole`: paths that are not in `paths` are missed."""
    before = read_results().get("hot_paths", {})
    old = before.get("instructions", {})
    if not whole:
        old = {name: old[name] for name in paths if name in old}
    now = {name: count(name, operations) for name, operations in paths.items()}
    rows, wrong = compare(old, now)
    print("\n".join(table(rows)))
    if before:
        print(f"before: commit {before['commit']}, {before['compiler']}, {before['valgrind']}")
    return judged(before, tools(), wrong)


def tools():
    """What makes and counts instructions, apart from this project."""
    return {"compiler": first_line("rustc", "--version"),
            "valgrind": first_line("valgrind", "--version")}


def judged(before, now, wrong):
    """The lines that count: counts of other tools say nothing about this project."""
    others = [f"{name} {now[name]}" for name in now if before.get(name) != now[name]]
    if before and others:
        print(f"now {', '.join(others)}: the counts are not judged; see docs/benchmarks.md")
        return []
    return wrong


def update(paths):
    """Counts and writes what later runs are compared with."""
    now = {name: round(count(name, operations), 1) for name, operations in paths.items()}
    rows, _ = compare(read_results().get("hot_paths", {}).get("instructions", {}), now)
    print("\n".join(table(rows)))
    write_part("hot_paths", {
        "commit": first_line("git", "describe", "--always", "--dirty"),
        **tools(),
        "instructions": now,
    })
    print(f"written: {RESULTS.relative_to(TOP)}")


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = options.add_mutually_exclusive_group()
    what.add_argument("--update", action="store_true", help="write docs/benchmarks.json")
    what.add_argument("--twice", action="store_true",
                      help="count twice, to see how much two counts differ")
    options.add_argument("--only", action="append", metavar="NAME", help="count this path alone")
    options = options.parse_args()
    if options.update and options.only:
        sys.exit("--update writes all paths: leave --only out")
    if shutil.which("valgrind") is None:
        print("hot paths: valgrind is missing, so no instructions are counted")
        return 0
    paths = listed()
    unknown = [name for name in options.only or [] if name not in paths]
    if unknown:
        raise Failure(f"no such path: {', '.join(unknown)}; there are {', '.join(paths)}")
    if options.only:
        paths = {name: paths[name] for name in options.only}
    if options.update:
        update(paths)
        return 0
    if options.twice:
        return 0 if twice(paths) else 1
    wrong = check(paths, not options.only)
    for line in wrong:
        print(f"hot paths: {line}", file=sys.stderr)
    if wrong:
        print("hot paths: where that is meant: make hot-paths UPDATE=1", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"hot paths: {failure}")
