"""All runs of a comparison in TensorBoard, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from re import escape
from shlex import quote
from typing import Any
from urllib.parse import urlencode

from kd_lightning.compare.measure.measures import measure_key, measure_of
from kd_lightning.compare.messages import ReportProgress
from kd_lightning.compare.plan.variants import Plan

FOLDER = "_compare"


def layout(metrics: Iterable[str], monitors: Iterable[str]) -> dict[str, Any]:
    """Describe the charts of the custom-scalars page: each has one tag of all runs.

    The weighted sum of the losses is not among them, because its scale follows weights and temperatures.

    Args:
        metrics: Names of metrics, whose validation values get a chart.
        monitors: Names of the monitored metrics, whose test values get a chart.
    """
    charts = {f"validation {_name(metric)}": f"val/{metric}" for metric in metrics}
    charts |= {"task loss": "train/task", "distillation loss": "train/kd"}
    charts |= {f"test {_name(metric)}": f"test/{metric}" for metric in monitors}
    # a tag is a regular expression here
    return {"Comparison": {title: ["Multiline", [f"^{escape(tag)}$"]] for title, tag in charts.items()}}


def _name(metric: str) -> str:
    return measure_of(measure_key(metric)).name


@dataclass(frozen=True)
class Layout:
    """A task that writes the layout of the custom-scalars page, unless it is there.

    Args:
        root: Directory of the comparison.
        metrics: The names of the metrics of all variants.
        monitors: The names of the monitored metrics of all variants.
    """

    root: str
    metrics: tuple[str, ...] = ("acc", "nll")
    monitors: tuple[str, ...] = ("acc",)

    @classmethod
    def of_metrics(cls, root: Path, learners: list[tuple[tuple[str, ...], str]]) -> Layout:
        """Build the task from each learner's metrics and monitored metric; without learners, for class labels."""
        if not learners:
            return cls(str(root))
        metrics = dict.fromkeys(name for names, _ in learners for name in names)
        return cls(str(root), tuple(metrics), tuple(dict.fromkeys(monitor for _, monitor in learners)))

    def __call__(self, report_progress: ReportProgress) -> None:
        """Write the layout of the dashboard."""
        from torch.utils.tensorboard.writer import SummaryWriter  # it loads torch, which only the workers need

        if not (Path(self.root) / FOLDER).exists():
            with SummaryWriter(f"{self.root}/{FOLDER}") as writer:
                writer.add_custom_scalars(layout(self.metrics, self.monitors))


def how_to_open(plan: Plan, root: Path) -> list[str]:
    """Return the command that starts TensorBoard, and a link per group, without smoothing, which hides short runs."""
    links = {
        group.title: urlencode({"smoothing": "0", "runFilter": f"^{group.name}/", "tagFilter": "^(val|test)/"})
        for group in plan.groups
    }
    return [
        f"tensorboard --logdir {quote(str(root))} --host 127.0.0.1 --port 6006 --load_fast=false",
        *(f"http://127.0.0.1:6006/?{query}#timeseries  ({title})" for title, query in links.items()),
    ]
