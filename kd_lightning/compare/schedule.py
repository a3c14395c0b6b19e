"""Which run comes next: teachers before whom they teach, the longest first, several side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any, NamedTuple

from kd_lightning.compare.plan import Run
from kd_lightning.compare.worker import Done, Failed, Message, Task, Worker

Result = dict[str, Any]
"""What a run measured: plain values."""


class Outcome(NamedTuple):
    """What became of a run: a result, or the reason why there is none."""

    result: Result | None
    reason: str = ""


class Schedule:
    """Runs that are to be done; one that needs another that failed is not run, and all others go on.

    Args:
        runs: What is to be run; what they need and is not among them is finished.
        seconds: About how long each takes.
        finished: The result of a run that need not be run, or None; asked once its teacher is there.
        task_of: What a worker does for a run.
        tell: Called with each run that is under way and each message about it.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        seconds: Mapping[Run, float],
        finished: Callable[[Run], Result | None],
        task_of: Callable[[Run], Task],
        tell: Callable[[Run, Message], None],
    ) -> None:
        self.waiting = sorted(runs, key=lambda run: seconds_of_chain(run, runs, seconds), reverse=True)
        self.finished, self.task_of, self.tell = finished, task_of, tell
        self.needed = {need for run in runs for need in run.needs} & set(runs)
        self.busy: dict[Worker, Run] = {}
        self.outcomes: dict[Run, Outcome] = {}

    def run(self, workers: Sequence[Worker]) -> dict[Run, Outcome]:
        """The outcome of every run."""
        idle = list(workers)
        while self.waiting or self.busy:
            for run in [run for run in self.waiting if self._is_ready(run)]:
                self._begin(run, idle)
            for connection in wait([worker.connection for worker in self.busy]) if self.busy else []:
                worker = next(worker for worker in self.busy if worker.connection is connection)
                if self._listen(worker):
                    idle.append(worker)
        return self.outcomes

    def _is_ready(self, run: Run) -> bool:
        return all(need not in self.needed or need in self.outcomes for need in run.needs)

    def _begin(self, run: Run, idle: list[Worker]) -> None:
        failed = next((need for need in run.needs if self.outcomes.get(need, Outcome({})).result is None), None)
        if failed:
            what = "its teacher" if failed is run.teacher else "a run that it begins with"
            self.outcomes[run] = Outcome(None, f"not run, for {what} failed ({failed.name})")
        elif not idle:
            return
        elif (result := self.finished(run)) is not None:
            self.outcomes[run] = Outcome(result)
        else:
            worker = idle.pop()
            worker.start(self.task_of(run))
            self.busy[worker] = run
        self.waiting.remove(run)

    def _listen(self, worker: Worker) -> bool:
        """Takes one message; True when the worker is idle again."""
        run, message = self.busy[worker], worker.receive()
        self.tell(run, message)
        if isinstance(message, Done):
            self.outcomes[run] = Outcome(message.value)
        elif isinstance(message, Failed):
            self.outcomes[run] = Outcome(None, message.reason)
        else:
            return False
        del self.busy[worker]
        return True


def seconds_of_chain(run: Run, runs: Sequence[Run], seconds: Mapping[Run, float]) -> float:
    """Its own time, and that of the longest chain of runs that wait for it."""
    students = [other for other in runs if run in other.needs]
    return seconds[run] + max((seconds_of_chain(student, runs, seconds) for student in students), default=0.0)
