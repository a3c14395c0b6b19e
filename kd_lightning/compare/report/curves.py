"""The curves of a variant: what its runs logged, as mean over seeds with a band of one standard deviation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple, cast

from kd_lightning.core.metrics_file import read_metrics


class Point(NamedTuple):
    """A step of a curve."""

    step: int
    mean: float
    low: float
    """One sample standard deviation below the mean; the mean where there is one seed."""
    high: float


def mean_curves(run_dirs: Iterable[Path]) -> dict[str, list[Point]]:
    """Average the curves that runs logged, by tag.

    A curve has the steps that all seeds with this tag logged, or all of them where they have none in common.

    Args:
        run_dirs: The directories of the finished runs of a variant.
    """
    seeds = [logged_curves(run_dir) for run_dir in run_dirs]
    tags = sorted({tag for curves in seeds for tag in curves})
    return {tag: _mean([curves[tag] for curves in seeds if tag in curves]) for tag in tags}


def _mean(curves: Sequence[dict[int, float]]) -> list[Point]:
    """Average curves of values by step.

    Example:
        >>> _mean([{10: 1.0, 20: 2.0}, {10: 3.0}])
        [Point(step=10, mean=2.0, low=0.5857864376269049, high=3.414213562373095)]
    """
    steps = set.intersection(*map(set, curves)) or set.union(*map(set, curves))
    points: list[Point] = []
    for step in sorted(steps):
        values = [curve[step] for curve in curves if step in curve]
        mean, deviation = fmean(values), stdev(values) if len(values) > 1 else 0.0
        points.append(Point(step, mean, mean - deviation, mean + deviation))
    return points


def logged_curves(run_dir: Path) -> dict[str, dict[int, float]]:
    """Read the values that a run logged, by tag and step, from ``metrics.csv`` or from its event files."""
    tables = sorted(run_dir.rglob("metrics.csv"), key=lambda path: (path.parent == run_dir, path.stat().st_mtime))
    try:
        return _from_table(tables[-1]) if tables else _from_events(run_dir)
    except ValueError:  # a damaged table
        return _from_events(run_dir)


def _from_table(path: Path) -> dict[str, dict[int, float]]:
    columns, rows = read_metrics(path)
    curves: dict[str, dict[int, float]] = {}
    for tag in columns:
        values = {int(row["step"]): float(row[tag]) for row in rows if row[tag] and row["step"].isdigit()}
        if tag not in ("step", "epoch") and values:
            curves[tag] = values
    return curves


def _from_events(run_dir: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # needed where no table is

    curves: dict[str, dict[int, float]] = {}
    for folder in sorted({path.parent for path in run_dir.rglob("events.out.tfevents*")}):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        for tag in cast("list[str]", events.Tags()["scalars"]):
            if tag != "epoch":
                curves.setdefault(tag, {}).update({point.step: point.value for point in events.Scalars(tag)})
    return curves
