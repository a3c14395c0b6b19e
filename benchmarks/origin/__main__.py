"""The command line of the origin: see `python -m benchmarks.origin --help`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.origin.notebook import VARIANTS
from benchmarks.origin.report import write_report
from benchmarks.origin.runs import Job, run_all

DOCUMENT = Path(__file__).parents[2] / "docs/origin.md"


def main(args: list[str] | None = None) -> None:
    """Run the unfinished networks of the notebook and its controls and, with ``--report``, write the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.origin",
        description="The notebook that this project began with, unchanged: teacher, student and distilled student on "
        "MNIST, and two controls. A finished run is not run again.",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes, one core each")
    parser.add_argument("--limit-batches", type=int, help="batches an epoch, to try the command out")
    parser.add_argument("--folder", type=Path, default=Path("runs/origin"), help="where the results are kept")
    parser.add_argument("--report", action="store_true", help="write the figures into docs/origin.md")
    options = parser.parse_args(args)
    if options.report and options.limit_batches is not None:
        parser.error("--report is for whole epochs: leave out --limit-batches")
    jobs = [Job(seed, name, options.epochs, options.limit_batches) for name in VARIANTS for seed in options.seeds]
    run_all(jobs, options.folder, options.workers)
    if options.report:
        write_report(DOCUMENT, [result for job in jobs if (result := job.finished(options.folder))])


if __name__ == "__main__":
    main()
