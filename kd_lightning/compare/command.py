"""``kd-lightning compare``: does the unfinished runs of a comparison and reports all results."""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from pathlib import Path

from rich.console import Console

from kd_lightning.cli.configs import find_config
from kd_lightning.cli.errors import Parser
from kd_lightning.compare.measure.measures import NetworkStats
from kd_lightning.compare.messages import Failed, Message
from kd_lightning.compare.plan.artifacts import (
    CONFIG,
    NETWORKS,
    ProfileResult,
    damage,
    finished,
    finished_earlier,
    keep_traceback,
    run_spec,
)
from kd_lightning.compare.plan.config import network_key
from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.compare.plan.schedule import Outcome, Schedule, critical_path
from kd_lightning.compare.plan.stored import DamagedError, read_stats
from kd_lightning.compare.plan.variants import Run, Variant
from kd_lightning.compare.report.page import write_report
from kd_lightning.compare.report.tensorboard import Layout
from kd_lightning.compare.run.display import Display, in_minutes
from kd_lightning.compare.run.profile import Profile
from kd_lightning.compare.run.training import Training
from kd_lightning.compare.run.worker import WarmUp, Worker
from kd_lightning.core.directory_lock import DirectoryLock
from kd_lightning.core.errors import UsageError
from kd_lightning.core.files import write_text

UNKNOWN_SECONDS = 60.0
"""The duration of a run of which nothing is known, for the order of runs alone."""
NEEDED_BY_ALL = ("kd_lightning.compare.run.execution",)


def main(args: list[str]) -> int:
    """Do the unfinished runs of a comparison, then write and print its tables.

    Args:
        args: The arguments after ``kd-lightning compare``.

    Returns:
        0, or 1 if a run failed.

    Raises:
        UsageError: The arguments, or the compare file, are wrong.
    """
    parser = Parser(
        prog="kd-lightning compare",
        description="Trains the variants of a compare file under its seeds, several in parallel, and reports them: "
        "tables, learning curves, TensorBoard runs. A finished run is repeated only if its configuration or its "
        "teacher has changed; a run that fails is reported with its reason, and the others continue.",
    )
    parser.add_argument("--config", required=True, help="the compare file, such as configs/compare/mnist.yaml")
    parser.add_argument("--root", type=Path, help="directory of all runs and tables (runs/compare/<name of the file>)")
    parser.add_argument("--processes", type=int, default=2, help="runs in parallel, one core each (2)")
    parser.add_argument("--report-only", action="store_true", help="run nothing: report the finished runs")
    options = parser.parse_args(args)
    if options.processes < 1:
        raise UsageError(f"compare: --processes {options.processes}: at least one is needed")
    path = find_config(options.config)
    plan, root, console = read_plan(path), options.root or Path("runs/compare") / path.stem, Console()
    for line in [*damage(plan.runs, root), *_damaged_stats(root)]:
        print(f"kd-lightning: {line}", file=sys.stderr)
    known = {run: result for run in plan.runs if (result := finished(run, root)) is not None}
    todo = [run for run in plan.runs if run not in known]
    if line := finished_earlier(list(known.values())):
        console.print(line, highlight=False)
    outcomes = {run: Outcome(None, "not finished") for run in todo}
    if todo and not options.report_only:
        with DirectoryLock(root, "a comparison", "name another --root"):
            outcomes = _run(todo, root, options.processes, console)
    known |= {run: outcome.result for run, outcome in outcomes.items() if outcome.result is not None}
    reasons = {run: outcome.reason for run, outcome in outcomes.items() if outcome.result is None}
    write_report(plan, known, reasons, _read_stats(root), root, console)
    return 1 if reasons else 0


def _run(todo: list[Run], root: Path, processes: int, console: Console) -> dict[Run, Outcome]:
    console.print(f"{len(todo)} runs to do, {processes} in parallel, in {root}: starting", highlight=False)
    workers = [Worker() for _ in range(min(processes, len(todo)))]
    try:
        for worker in workers:
            worker.start(WarmUp(NEEDED_BY_ALL))
        for worker in workers:
            worker.result()
        profiles = _profile(list(dict.fromkeys(run.variant for run in todo)), workers[0], root, console)
        workers[0].start(Layout.of_metrics(root, [(each.metrics, each.monitor) for each in profiles.values()]))
        workers[0].result()
        seconds = _seconds(todo, profiles)
        chain = max(critical_path(run, todo, seconds) for run in todo)
        expected = max(sum(seconds.values()) / len(workers), chain)
        guessed = " or more" if any(_estimate(run, profiles) is None for run in todo) else ""
        console.print(f"Expected to take {in_minutes(expected)}{guessed} on this machine", highlight=False)
        display = Display(console, seconds, len(workers))

        def on_message(run: Run, message: Message) -> None:
            display.on_message(run, message)
            if isinstance(message, Failed):
                keep_traceback(run, root, message.details)

        def task_of(run: Run) -> Training:
            return Training(run_spec(run, root))

        with display.bar:
            return Schedule(todo, seconds, partial(finished, root=root), task_of, on_message).run(workers)
    except KeyboardInterrupt:
        console.print("The same command continues from here: finished runs are not repeated")
        raise
    finally:
        for worker in workers:
            worker.stop()


def _profile(variants: list[Variant], worker: Worker, root: Path, console: Console) -> dict[Variant, ProfileResult]:
    """Measure variants before anything is trained; store the costs of their networks for the report."""
    stats, profiles = _read_stats(root), dict[Variant, ProfileResult]()
    for variant in variants:
        key = network_key(variant.config)
        worker.start(Profile(variant.config, measure_network=key not in stats, trains=not variant.weights))
        message = worker.result()
        if isinstance(message, Failed):
            reason = re.sub(rf"^\S+{CONFIG}:\d+: ", "", message.reason)  # that file was a temporary one
        else:
            profiles[variant] = profile = message.value
            reason = profile.reason
            if profile.stats is not None:
                stats[key] = profile.stats
        if reason:
            line = f"{variant.path}: no estimate of its duration: {reason}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    write_text(root / NETWORKS, json.dumps(stats, indent=1))
    return profiles


def _seconds(todo: list[Run], profiles: dict[Variant, ProfileResult]) -> dict[Run, float]:
    """The estimated duration of each run; a run without an estimate gets the longest of the others."""
    estimates = {run: _estimate(run, profiles) for run in todo}
    longest = max((seconds for seconds in estimates.values() if seconds is not None), default=UNKNOWN_SECONDS)
    return {run: longest if seconds is None else seconds for run, seconds in estimates.items()}


def _estimate(run: Run, profiles: dict[Variant, ProfileResult]) -> float | None:
    return profiles[run.variant].seconds if run.variant in profiles else None


def _damaged_stats(root: Path) -> list[str]:
    try:
        read_stats(root / NETWORKS)
    except DamagedError as error:
        return [f"{error}: networks have no costs until a run needs them"]
    return []


def _read_stats(root: Path) -> dict[str, NetworkStats]:
    try:
        return read_stats(root / NETWORKS)
    except DamagedError:  # which `main` has reported
        return {}
