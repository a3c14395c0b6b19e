"""``kd-lightning compare``: does the unfinished runs of a comparison and reports all results."""

from __future__ import annotations

import json
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from rich.console import Console

from kd_lightning.cli.configs import find_config
from kd_lightning.cli.errors import Parser, RunStopped
from kd_lightning.compare.measure.measures import NetworkStats
from kd_lightning.compare.messages import Done, Engine, Failed, Job, Message, Outcome
from kd_lightning.compare.plan.artifacts import (
    CONFIG,
    LOG,
    NETWORKS,
    ProfileResult,
    Result,
    damage,
    finished,
    finished_earlier,
    keep_traceback,
)
from kd_lightning.compare.plan.config import network_key
from kd_lightning.compare.plan.order import critical_path, longest_chain_first
from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.compare.plan.schema import json_schema
from kd_lightning.compare.plan.stored import DamagedError, read_stats
from kd_lightning.compare.plan.variants import Run, Variant
from kd_lightning.compare.report.page import write_report
from kd_lightning.compare.run.display import Display, in_minutes
from kd_lightning.compare.run.engines import open_engine
from kd_lightning.compare.run.profile import Profile
from kd_lightning.compare.run.training import Training
from kd_lightning.core.directory_lock import DirectoryLock
from kd_lightning.core.errors import UsageError
from kd_lightning.core.files import write_text

UNKNOWN_SECONDS = 60.0
"""The duration of a run of which nothing is known, for the order of runs alone."""


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
        "tables, learning curves, TensorBoard runs. A finished run is repeated only if its configuration, its "
        "teacher, the sources of its classes or this package's version have changed; a run that fails is reported with "
        "its reason, and the others continue.",
    )
    parser.add_argument("--config", required=True, help="the compare file, such as configs/compare/mnist.yaml")
    parser.add_argument("--root", type=Path, help="directory of all runs and tables (runs/compare/<name of the file>)")
    parser.add_argument(
        "--processes", type=int, default=2, help="runs in parallel, one core each (2); 0 runs all in this process"
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="a running dask scheduler, such as tcp://10.0.0.1:8786")
    parser.add_argument("--cluster", metavar="FILE", type=Path, help="a cluster to start, such as jobs of SLURM")
    parser.add_argument("--report-only", action="store_true", help="run nothing: report the finished runs")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of compare files, for editors")
    if args == ["--schema"]:
        print(json.dumps(json_schema(), indent=2))
        return 0
    options = parser.parse_args(args)
    if options.processes < 0:
        raise UsageError(f"compare: --processes {options.processes}: name the number of runs in parallel, such as 2")
    if options.scheduler and options.cluster:
        raise UsageError("compare: --scheduler and --cluster name two clusters: leave one out")
    path = find_config(options.config)
    plan, root, console = read_plan(path), options.root or Path("runs/compare") / path.stem, Console()
    for line in [*damage(plan.runs, root), *_damaged_stats(root)]:
        print(f"kd-lightning: {line}", file=sys.stderr)
    known = {run: result for run in plan.runs if (result := _stored(run, root)) is not None}
    todo = [run for run in plan.runs if run not in known]
    if line := finished_earlier(list(known.values())):
        console.print(line, highlight=False)
    reasons = dict.fromkeys(todo, "not finished")
    if todo and not options.report_only:
        with DirectoryLock(root, "a comparison", "name another --root"):
            done, reasons = _run(todo, root, options, console)
        known |= done
    command = shlex.join(["kd-lightning", "compare", "--config", options.config, "--root", str(root)])
    write_report(plan, known, reasons, _read_stats(root), root, console, command)
    return 1 if reasons else 0


def _stored(run: Run, root: Path) -> Result | None:
    try:
        return finished(run, root)
    except Exception:  # the run's own task meets it again, and fails with its reason
        return None


def _run(todo: list[Run], root: Path, options: Namespace, console: Console) -> tuple[dict[Run, Result], dict[Run, str]]:
    """Do runs, and return the results of some and the reasons why the others have none."""
    where = options.scheduler or options.cluster
    processes, has_log = min(options.processes, len(todo)), bool(options.processes or where)
    parallel = f"on {where}" if where else f"{processes} in parallel" if processes else "in this process"
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    say(f"{len(todo)} runs to do, {parallel}, in {root}: starting")
    try:
        with open_engine(processes, options.scheduler, options.cluster, root, say) as engine:
            profiles = _profile(list(dict.fromkeys(run.variant for run in todo)), engine, root, say, has_log)
            seconds = _seconds(todo, profiles)
            chain = max(critical_path(run, todo, seconds) for run in todo)
            expected = max(sum(seconds.values()) / engine.processes, chain)
            guessed = " or more" if any(_estimate(run, profiles) is None for run in todo) else ""
            say(f"Expected to take {in_minutes(expected)}{guessed} on this machine")
            jobs = [job_of(run, todo, root, has_log) for run in longest_chain_first(todo, seconds)]
            runs, display = {run.name: run for run in todo}, Display(console, seconds, engine.processes)

            def on_message(name: str, message: Message) -> None:
                display.on_message(runs[name], message)
                if isinstance(message, Failed):
                    keep_traceback(runs[name], root, message.details)

            with display.bar if has_log else nullcontext():
                outcomes = engine.run(jobs, on_message)
    except (KeyboardInterrupt, RunStopped):
        say("The same command continues from here: finished runs are not repeated")
        raise
    done = {runs[name]: outcome.value for name, outcome in outcomes.items() if isinstance(outcome, Done)}
    return done, {runs[name]: outcome.reason for name, outcome in outcomes.items() if isinstance(outcome, Failed)}


def _ignore(name: str, message: Message) -> None:
    pass


def job_of(run: Run, todo: list[Run], root: Path, has_log: bool) -> Job:
    """Describe the training of a run; the runs that it needs and that are finished are not among its needs."""
    parts = {
        need.name: "its teacher" if need is run.teacher else "a run whose checkpoint it loads" for need in run.needs
    }
    needs = {need.name: parts[need.name] for need in run.needs if need in todo}
    return Job(run.name, Training(run, root, has_log), needs, root / run.name / LOG)


def _profile(
    variants: list[Variant], engine: Engine, root: Path, say: Callable[[str], None], has_log: bool
) -> dict[Variant, ProfileResult]:
    """Measure variants before anything is trained; store the costs of their networks for the report.

    A network that is not known yet is measured while nothing else runs, with the first variant that has it.
    """
    stats, profiles = _read_stats(root), dict[Variant, ProfileResult]()
    firsts = {network_key(variant.config): variant for variant in reversed(variants)}
    alone = [variant for key, variant in firsts.items() if key not in stats]
    together = [variant for variant in variants if variant not in alone]
    outcomes: dict[str, Outcome] = {}
    for each in [*([variant] for variant in alone), together]:
        jobs = [
            Job(variant.path, Profile(variant.config, variant in alone, not variant.weights, variant.student, has_log))
            for variant in each
        ]
        outcomes |= engine.run(jobs, _ignore)
    for variant in variants:
        outcome = outcomes[variant.path]
        if isinstance(outcome, Failed):
            reason = re.sub(rf"^\S+{CONFIG}:\d+: ", "", outcome.reason)  # that file was a temporary one
        else:
            profiles[variant] = profile = outcome.value
            reason = profile.reason
            if profile.stats is not None:
                stats[network_key(variant.config)] = profile.stats
        if reason:
            say(f"{variant.path}: no estimate of its duration: {reason}")
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
