"""An engine for tests and debuggers: one job after another in the calling process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kd_lightning.compare.messages import Job, OnMessage, Outcome, Progress, ReportProgress
from kd_lightning.compare.run.attempt import attempt_job


class InlineEngine:
    """Runs jobs in this process and this thread, without dask; what they print is shown.

    Args:
        marks: A directory for the marks of running jobs.
    """

    processes = 1

    def __init__(self, marks: Path) -> None:
        self.marks = marks

    def run(self, jobs: Sequence[Job], on_message: OnMessage) -> dict[str, Outcome]:
        """Run jobs in their order and return their outcomes by name.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> with TemporaryDirectory() as folder:
            ...     engine = InlineEngine(Path(folder))
            ...     engine.run([Job("half", lambda report_progress: 1 / 2)], lambda name, message: print(message))
            Progress(fraction=0.0)
            Done(value=0.5)
            {'half': Done(value=0.5)}
        """
        outcomes: dict[str, Outcome] = {}
        for job in jobs:
            outcomes[job.name] = attempt_job(job, outcomes, self.marks, self._reporter(job, on_message))
            on_message(job.name, outcomes[job.name])
        return outcomes

    @staticmethod
    def _reporter(job: Job, on_message: OnMessage) -> ReportProgress:
        return lambda fraction: on_message(job.name, Progress(fraction))
