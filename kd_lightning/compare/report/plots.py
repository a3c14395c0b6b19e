"""Learning curves: a panel per group, a line per variant, and a band for its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kd_lightning.compare.measure.measures import Measure
from kd_lightning.compare.plan.artifacts import Results
from kd_lightning.compare.plan.variants import Group, Plan, Variant
from kd_lightning.compare.report.summary import Measures
from kd_lightning.core.files import atomic_write

# The colours of Okabe and Ito, which colour-blind readers can distinguish
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# Accuracies for the axis, the roundest first; one too near to another is omitted
TICKS = (
    0,
    50,
    90,
    99,
    99.9,
    80,
    95,
    98,
    99.5,
    70,
    60,
    97,
    85,
    93,
    96,
    98.5,
    99.7,
    30,
    10,
    20,
    40,
    75,
    65,
    94,
    92,
    97.5,
)
LEAST_ERROR = 0.05  # %, because the logarithm of 0 is not finite
LABEL_HEIGHT = TICK_DISTANCE = 0.065  # of a panel's height


class Line(NamedTuple):
    """The curve of a variant: validation errors in %, or the unchanged values of another measure."""

    variant: Variant
    steps: list[int]
    mean: Any
    deviation: Any


def draw_curves(plan: Plan, results: Results, measures: Mapping[Group, Measures], path: Path) -> bool:
    """Draw the monitored measure on the validation data by training step, as a PNG: mean over seeds ± one deviation.

    The scale of accuracies is logarithmic in the errors, so that 98 and 99 % lie as far apart as 80 and 90 %.

    Args:
        plan: The plan of the comparison.
        results: The results of the finished runs.
        measures: The measures of each group.
        path: The file to write.

    Returns:
        True if there was a curve to draw.
    """
    panels = [(group, lines) for group in plan.groups if (lines := lines_of(group, results, measures[group].monitor))]
    if not panels:
        return False
    titles = list(dict.fromkeys(variant.title for variant in plan.variants))
    figure = Figure(figsize=(5.6 * len(panels), 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (group, lines) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        colours = {line.variant: COLOURS[titles.index(line.variant.title) % len(COLOURS)] for line in lines}
        _draw_panel(axes, group.title, measures[group].monitor, lines, [colours[line.variant] for line in lines])
    names = dict.fromkeys(measures[group].monitor.name for group, _ in panels)
    figure.suptitle(
        f"{plan.title}: validation {' and '.join(names)}, mean over seeds ± one standard deviation", fontsize=11
    )
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png")
    return True


def lines_of(group: Group, results: Results, monitor: Measure) -> list[Line]:
    """Average the validation curves of each variant over its seeds, at the steps that all of them have."""
    lines: list[Line] = []
    for variant in group.variants:
        curves = [results[run]["curve"] for run in variant.runs if run in results]
        curves = [[point for point in curve if monitor.key in point] for curve in curves]
        common = set[int].intersection(*({int(point["step"]) for point in curve} for curve in curves or [[]]))
        curves = [[point for point in curve if point["step"] in common] for curve in curves]
        if not common:
            continue
        values = np.array([[monitor.scale * point[monitor.key] for point in curve] for curve in curves])
        drawn = 100 - values if monitor.is_percentage else values
        deviation = drawn.std(axis=0, ddof=1) if len(drawn) > 1 else np.zeros(drawn.shape[1])
        lines.append(Line(variant, [point["step"] for point in curves[0]], drawn.mean(axis=0), deviation))
    return lines


def _draw_panel(axes: Axes, title: str, monitor: Measure, lines: Sequence[Line], colours: Sequence[str]) -> None:
    least = LEAST_ERROR if monitor.is_percentage else -np.inf
    if monitor.is_percentage:
        axes.set_yscale("log")
    for line, colour in zip(lines, colours, strict=True):
        low, high = (np.maximum(line.mean + sign * line.deviation, least) for sign in (-1, 1))
        axes.fill_between(line.steps, low, high, color=colour, alpha=0.13, linewidth=0)
        mean = np.maximum(line.mean, least)
        axes.plot(line.steps, mean, color=colour, linewidth=1.8, marker="o", markersize=3.5)
    if monitor.is_percentage:
        mark_accuracies(axes)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("training step")
    axes.set_ylabel(f"validation {monitor.heading}")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    _label(axes, [(line.variant.title, line.steps[-1], max(float(line.mean[-1]), least)) for line in lines], colours)


def mark_accuracies(axes: Axes) -> None:
    """Turn an axis of errors into one of accuracies, with the best at the top."""
    axes.set_ylim(*reversed(axes.get_ylim()))
    worst, best = axes.get_ylim()
    ticks: list[float] = []
    for tick in [tick for tick in TICKS if best <= 100 - tick <= worst]:
        if all(abs(log((100 - tick) / (100 - other))) > TICK_DISTANCE * log(worst / best) for other in ticks):
            ticks.append(tick)
    axes.set_yticks([100 - tick for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _label(axes: Axes, ends: Sequence[tuple[str, int, float]], colours: Sequence[str]) -> None:
    """Write each line's name where the line ends, moved up where two would overlap."""
    place = axes.transAxes.inverted()
    heights = [float(place.transform(axes.transData.transform((x, y)))[1]) for _, x, y in ends]
    last = -1.0
    for i in sorted(range(len(ends)), key=heights.__getitem__):
        last = max(heights[i], last + LABEL_HEIGHT)
        title, *end = ends[i]
        axes.annotate(
            title,
            xy=(end[0], end[1]),
            xytext=(1.03, last),
            textcoords="axes fraction",
            color=colours[i],
            fontsize=8.5,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colours[i], "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3},
            annotation_clip=False,
        )
