"""Try mutants of the losses and the schedules on their tests: see `python -m benchmarks.mutants --help`."""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from benchmarks.mutants.changes import Mutant, mutants
from benchmarks.mutants.run import Mutations

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("kd_lightning/losses", "kd_lightning/callbacks/schedules")
TESTS = ("tests/losses", "tests/callbacks/schedules", "kd_lightning/losses", "kd_lightning/callbacks/schedules")


def main(args: list[str] | None = None) -> int:
    """Print each mutant that no test notices, and the share of those that are noticed; 1 if it is below the goal."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mutants",
        description="Change one expression at a time in the losses and the schedules of temperature and weights, run "
        "the tests that call its function, and list the changes that no test notices. For Linux and macOS.",
    )
    parser.add_argument("sources", nargs="*", default=SOURCES, help=f"files or folders; by default {' '.join(SOURCES)}")
    parser.add_argument("--sample", type=int, help="try so many mutants, drawn with seed 0, in place of all")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes, one core each")
    parser.add_argument("--goal", type=float, default=0.85, help="share of mutants that tests must notice")
    parser.add_argument("--survivors", type=Path, help="a file for the list of survivors")
    options = parser.parse_args(args)
    paths = [
        path
        for source in map(ROOT.joinpath, options.sources)
        for path in (sorted(source.rglob("*.py")) if source.is_dir() else [source])
    ]
    found = [mutant for path in paths for mutant in mutants(path.relative_to(ROOT), ROOT)]
    if options.sample is not None:
        found = random.Random(0).sample(found, min(options.sample, len(found)))
    counts: Counter[str] = Counter()
    survivors: list[str] = []

    def tell(mutant: Mutant, outcome: str) -> None:
        counts[outcome] += 1
        if outcome != "killed":
            survivors.append(f"{mutant} ({outcome})")
            print(survivors[-1], file=sys.stderr, flush=True)
        if sum(counts.values()) % 100 == 0:
            print(f"{sum(counts.values())} of {len(found)}: {dict(counts)}", file=sys.stderr, flush=True)

    plugin = Mutations(found, ROOT, options.workers, tell)
    with Path(os.devnull).open("w") as silent, redirect_stdout(silent):  # pytest tells of each test of each mutant
        status = pytest.main(
            ["-q", "-p", "no:cacheprovider", "-m", "not slow and not browser", *TESTS], plugins=[plugin]
        )
    if options.survivors is not None:
        options.survivors.write_text("".join(f"{line}\n" for line in sorted(survivors)), encoding="utf-8")
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) or not found:
        return int(status) or 1
    share = counts["killed"] / len(found)
    print(
        f"{counts['killed']} of {len(found)} mutants noticed: {share:.1%} (goal: {options.goal:.0%})", file=sys.stderr
    )
    return int(share < options.goal)


if __name__ == "__main__":
    sys.exit(main())
