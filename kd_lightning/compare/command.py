"""``kd-lightning compare``: runs what is not finished, and shows what it came to."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from rich.console import Console

from kd_lightning.cli.configs import find_config
from kd_lightning.cli.errors import Parser
from kd_lightning.compare.display import Display, in_minutes
from kd_lightning.compare.plan import Run
from kd_lightning.compare.plan_file import read_plan
from kd_lightning.compare.report import Facts, write_report
from kd_lightning.compare.schedule import Outcome, Schedule, seconds_of_chain
from kd_lightning.compare.survey import Survey, Surveyed
from kd_lightning.compare.tensorboard import Layout
from kd_lightning.compare.training import finished, keep_traceback, training_of
from kd_lightning.compare.worker import Done, Failed, GetReady, Message, Worker
from kd_lightning.core.errors import UsageError

NETWORKS = "networks.json"


def main(args: list[str]) -> int:
    """Runs what is not finished of a comparison, and writes and prints its tables.

    Args:
        args: What stands behind ``kd-lightning compare``.

    Returns:
        0, or 1 if a run failed.

    Raises:
        UsageError: The arguments, or the compare file, are wrong.
    """
    parser = Parser(
        prog="kd-lightning compare",
        description="Trains the variants of a compare file under its seeds, several side by side, and shows what each "
        "is worth: tables, learning curves, TensorBoard runs. A finished run is not run again unless its configuration "
        "or its teacher has changed; one that fails says why, and the others go on.",
    )
    parser.add_argument("--config", required=True, help="the compare file, such as configs/compare/mnist.yaml")
    parser.add_argument("--root", type=Path, help="the folder of all runs and tables (runs/compare/<name of the file>)")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side, one core each (2)")
    parser.add_argument("--report-only", action="store_true", help="run nothing: show what is finished")
    options = parser.parse_args(args)
    if options.processes < 1:
        raise UsageError(f"compare: --processes {options.processes}: at least one is needed")
    path = find_config(options.config)
    plan, root, console = read_plan(path), options.root or Path("runs/compare") / path.stem, Console()
    known = {run: result for run in plan.runs if (result := finished(run, root)) is not None}
    todo = [run for run in plan.runs if run not in known]
    outcomes = {run: Outcome(None, "not finished") for run in todo}
    if todo and not options.report_only:
        outcomes = _run(todo, root, options.processes, console)
    known |= {run: outcome.result for run, outcome in outcomes.items() if outcome.result is not None}
    reasons = {run: outcome.reason for run, outcome in outcomes.items() if outcome.result is None}
    write_report(plan, known, reasons, _read_facts(root), root, console)
    return 1 if reasons else 0


def _run(todo: list[Run], root: Path, processes: int, console: Console) -> dict[Run, Outcome]:
    console.print(f"{len(todo)} runs to do, {processes} side by side, in {root}: getting ready", highlight=False)
    workers = [Worker() for _ in range(min(processes, len(todo)))]
    try:
        for worker in workers:
            worker.start(GetReady())
        for worker in workers:
            worker.receive()
        workers[0].start(Layout(str(root)))
        workers[0].receive()
        seconds = _survey(todo, workers[0], root)
        chain = max(seconds_of_chain(run, todo, seconds) for run in todo)
        expected = max(sum(seconds.values()) / len(workers), chain)
        console.print(f"Expected to take {in_minutes(expected)} on this machine", highlight=False)
        display = Display(console, seconds, len(workers))

        def hear(run: Run, message: Message) -> None:
            display.hear(run, message)
            if isinstance(message, Failed):
                keep_traceback(run, root, message.details)

        with display.bar:
            schedule = Schedule(todo, seconds, partial(finished, root=root), partial(training_of, root=root), hear)
            return schedule.run(workers)
    except KeyboardInterrupt:
        console.print("The same command goes on from here: what is finished is not run again")
        raise
    finally:
        for worker in workers:
            worker.stop()


def _survey(todo: list[Run], worker: Worker, root: Path) -> dict[Run, float]:
    """About how long each run takes; keeps what was learned about the networks for the report."""
    worker.start(Survey({run.variant.path: run.variant.config for run in todo}))
    message = worker.receive()
    surveyed: Surveyed = message.value if isinstance(message, Done) else Surveyed({}, {})
    root.mkdir(parents=True, exist_ok=True)
    (root / NETWORKS).write_text(json.dumps(surveyed.facts | _read_facts(root), indent=1))
    unknown = max(surveyed.seconds.values(), default=60.0)
    return {run: surveyed.seconds.get(run.variant.path, unknown) for run in todo}


def _read_facts(root: Path) -> Facts:
    path = root / NETWORKS
    return json.loads(path.read_text()) if path.exists() else {}
