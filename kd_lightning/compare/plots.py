"""Learning curves: a panel a group, a line a variant, a band for its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kd_lightning.compare.plan import Group, Plan, Variant
from kd_lightning.compare.summary import Results

# Okabe and Ito's, which colour-blind readers can tell apart
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# Accuracies to mark, the roundest first; one that is too near another is left out
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
LEAST_ERROR = 0.05  # %, for a logarithm has no 0
LABEL_HEIGHT = TICK_DISTANCE = 0.065  # of a panel's height


class Line(NamedTuple):
    """A variant's validation errors, in %."""

    variant: Variant
    steps: list[int]
    mean: Any
    deviation: Any


def draw_curves(plan: Plan, results: Results, path: Path) -> bool:
    """Validation accuracy by training step, as a PNG: the mean over seeds with ± one standard deviation.

    The scale is logarithmic in the errors, so that 98 and 99 % lie as far apart as 80 and 90 %.

    Returns:
        Whether there was anything to draw.
    """
    panels = [(group, lines) for group in plan.groups if (lines := _lines(group, results))]
    if not panels:
        return False
    titles = list(dict.fromkeys(variant.title for variant in plan.variants))
    figure = Figure(figsize=(5.6 * len(panels), 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (group, lines) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        colours = {line.variant: COLOURS[titles.index(line.variant.title) % len(COLOURS)] for line in lines}
        _draw_panel(axes, group.title, lines, [colours[line.variant] for line in lines])
    figure.suptitle(f"{plan.title}: validation accuracy, mean over seeds ± one standard deviation", fontsize=11)
    figure.savefig(path)
    return True


def _lines(group: Group, results: Results) -> list[Line]:
    lines: list[Line] = []
    for variant in group.variants:
        curves = [results[run]["curve"] for run in variant.runs if run in results]
        if not curves or not curves[0]:
            continue
        errors = np.array([[100 - 100 * point["accuracy"] for point in curve] for curve in curves])
        deviation = errors.std(axis=0, ddof=1) if len(errors) > 1 else np.zeros(errors.shape[1])
        lines.append(Line(variant, [point["step"] for point in curves[0]], errors.mean(axis=0), deviation))
    return lines


def _draw_panel(axes: Axes, title: str, lines: Sequence[Line], colours: Sequence[str]) -> None:
    axes.set_yscale("log")
    for line, colour in zip(lines, colours, strict=True):
        low, high = (np.maximum(line.mean + sign * line.deviation, LEAST_ERROR) for sign in (-1, 1))
        axes.fill_between(line.steps, low, high, color=colour, alpha=0.13, linewidth=0)
        mean = np.maximum(line.mean, LEAST_ERROR)
        axes.plot(line.steps, mean, color=colour, linewidth=1.8, marker="o", markersize=3.5)
    axes.set_ylim(*reversed(axes.get_ylim()))
    worst, best = axes.get_ylim()
    ticks: list[float] = []
    for tick in [tick for tick in TICKS if best <= 100 - tick <= worst]:
        if all(abs(log((100 - tick) / (100 - other))) > TICK_DISTANCE * log(worst / best) for other in ticks):
            ticks.append(tick)
    axes.set_yticks([100 - tick for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("training step")
    axes.set_ylabel("validation accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    _label(axes, lines, colours)


def _label(axes: Axes, lines: Sequence[Line], colours: Sequence[str]) -> None:
    """Each line's name where it ends, moved up where two would overlap."""
    place = axes.transAxes.inverted()
    ends = [(line.steps[-1], max(float(line.mean[-1]), LEAST_ERROR)) for line in lines]
    heights = [float(place.transform(axes.transData.transform(end))[1]) for end in ends]
    last = -1.0
    for i in sorted(range(len(lines)), key=heights.__getitem__):
        last = max(heights[i], last + LABEL_HEIGHT)
        axes.annotate(
            lines[i].variant.title,
            xy=ends[i],
            xytext=(1.03, last),
            textcoords="axes fraction",
            color=colours[i],
            fontsize=8.5,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colours[i], "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3},
            annotation_clip=False,
        )
