"""A task that computes for a minute and sends nothing meanwhile."""

from __future__ import annotations

import time

from kd_lightning.compare.messages import ReportProgress


class Busy:
    """A task for a worker."""

    def __call__(self, report_progress: ReportProgress) -> None:
        """Report once, then compute."""
        report_progress(0.5)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            sum(range(10_000))
