"""The order of runs: teachers before their students, the longest chain first, several runs in parallel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from typing import NamedTuple

from kd_lightning.compare.messages import Done, Failed, Message, Task, TaskRunner
from kd_lightning.compare.plan.artifacts import Result
from kd_lightning.compare.plan.variants import Run


class Outcome(NamedTuple):
    """The result of a run, or the reason why there is none."""

    result: Result | None
    reason: str = ""


class Schedule:
    """Distributes runs to workers; a run that needs a failed one is skipped, and all others continue.

    Args:
        runs: The runs to do; a run that they need and that is not among them is finished.
        seconds: The estimated duration of each run.
        finished: Returns the stored result of a run, or None; called when the runs that it needs are finished.
        task_of: Returns the task that a worker runs.
        on_message: Called with a run and each message about it.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        seconds: Mapping[Run, float],
        finished: Callable[[Run], Result | None],
        task_of: Callable[[Run], Task],
        on_message: Callable[[Run, Message], None],
    ) -> None:
        self.waiting = sorted(runs, key=lambda run: critical_path(run, runs, seconds), reverse=True)
        self.finished, self.task_of, self.on_message = finished, task_of, on_message
        self.needed = {need for run in runs for need in run.needs} & set(runs)
        self.busy: dict[TaskRunner, Run] = {}
        self.outcomes: dict[Run, Outcome] = {}

    def run(self, workers: Sequence[TaskRunner]) -> dict[Run, Outcome]:
        """Do all runs and return their outcomes."""
        idle = list(workers)
        while self.waiting or self.busy:
            for run in [run for run in self.waiting if self._is_ready(run)]:
                self._begin(run, idle)
            for connection in wait([worker.connection for worker in self.busy]) if self.busy else []:
                worker = next(worker for worker in self.busy if worker.connection is connection)
                if self._receive(worker):
                    idle.append(worker)
        return self.outcomes

    def _is_ready(self, run: Run) -> bool:
        return all(need not in self.needed or need in self.outcomes for need in run.needs)

    def _begin(self, run: Run, idle: list[TaskRunner]) -> None:
        failed = next((need for need in run.needs if self.outcomes.get(need, Outcome({})).result is None), None)
        if failed:
            which = "its teacher" if failed is run.teacher else "a run whose checkpoint it loads"
            self.outcomes[run] = Outcome(None, f"not run, because {which} failed ({failed.name})")
        elif not idle:
            return
        elif (result := self.finished(run)) is not None:
            self.outcomes[run] = Outcome(result)
        else:
            worker = idle.pop()
            worker.start(self.task_of(run))
            self.busy[worker] = run
        self.waiting.remove(run)

    def _receive(self, worker: TaskRunner) -> bool:
        """Take one message; True when the worker is idle again."""
        run, message = self.busy[worker], worker.receive()
        self.on_message(run, message)
        if isinstance(message, Done):
            self.outcomes[run] = Outcome(message.value)
        elif isinstance(message, Failed):
            self.outcomes[run] = Outcome(None, message.reason)
        else:
            return False
        del self.busy[worker]
        return True


def critical_path(run: Run, runs: Sequence[Run], seconds: Mapping[Run, float]) -> float:
    """Add up the seconds of a run and of the longest chain of runs that need it."""
    students = [other for other in runs if run in other.needs]
    return seconds[run] + max((critical_path(student, runs, seconds) for student in students), default=0.0)
