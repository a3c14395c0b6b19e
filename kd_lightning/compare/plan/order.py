"""The order of runs: teachers before their students, and the longest chain first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kd_lightning.compare.plan.variants import Run


def longest_chain_first(runs: Sequence[Run], seconds: Mapping[Run, float]) -> list[Run]:
    """Sort runs by the seconds that the longest chain from each one takes; a run stands behind those that it needs."""
    return sorted(runs, key=lambda run: critical_path(run, runs, seconds), reverse=True)


def critical_path(run: Run, runs: Sequence[Run], seconds: Mapping[Run, float]) -> float:
    """Add up the seconds of a run and of the longest chain of runs that need it."""
    students = [other for other in runs if run in other.needs]
    return seconds[run] + max((critical_path(student, runs, seconds) for student in students), default=0.0)
