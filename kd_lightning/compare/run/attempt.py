"""One attempt at a job, wherever it runs: its errors are plain values, and a process that died has left a mark."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from kd_lightning.compare.messages import Done, Failed, Job, Outcome, ReportProgress
from kd_lightning.core.failures import describe, shortened

LIMIT = 3
"""A job whose process has died this often is not started again."""


def attempt_job(job: Job, needed: Mapping[str, Outcome], marks: Path, report_progress: ReportProgress) -> Outcome:
    """Run a job, unless one that it needs has failed or too many processes have died of it.

    Args:
        job: The job.
        needed: The outcomes of the jobs that it needs, by name.
        marks: A directory that all workers share, for the marks of the running jobs.
        report_progress: Called with 0 at the start of the task, and by the task.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     half, none = Job("half", lambda report: 1 / 2), Job("none", lambda report: int("x"))
        ...     attempt_job(half, {}, Path(folder), lambda fraction: None)
        ...     attempt_job(none, {}, Path(folder), lambda fraction: None).reason
        Done(value=0.5)
        "ValueError: invalid literal for int() with base 10: 'x' (...)"
    """
    if failed := next((name for name in job.needs if isinstance(needed[name], Failed)), None):
        reason = f"not run, because {job.needs[failed]} failed ({failed})"
        return Failed(reason, reason)
    mark = marks / quote(job.name, safe="")
    died = tuple(map(int, mark.read_text().split())) if mark.exists() else ()
    if len(died) >= LIMIT:
        return Failed(f"its process died, {len(died)} times in a row", last_line(job.log), died)
    mark.write_text(" ".join(map(str, [*died, os.getpid()])))
    try:
        report_progress(0.0)
        return Done(job.task(report_progress))
    except (Exception, SystemExit) as error:
        return Failed(describe(error), traceback.format_exc())
    finally:
        with suppress(FileNotFoundError):
            mark.unlink()


def last_line(path: Path | None) -> str:
    """Return the last line of a log that is not empty, shortened; no text without one."""
    if path is None or not path.is_file():
        return ""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - 4096))
        lines = log.read().decode(errors="replace").splitlines()
    return shortened(next((line.strip() for line in reversed(lines) if line.strip()), ""))
