"""Figures of measures: each seed's value, curves over steps, and accuracy beside cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from kd_lightning.compare.measure.measures import Measure, NetworkStats, measure_of
from kd_lightning.compare.plan.artifacts import Results
from kd_lightning.compare.plan.variants import Group, Variant
from kd_lightning.compare.report.plots import LEAST_ERROR, Line, lines_of, mark_accuracies
from kd_lightning.compare.report.summary import Measures, Row
from kd_lightning.compare.report.unlearned import unlearned_seeds
from kd_lightning.compare.report.web.svg import PAPER, TEXT, Picture, Style, new_panel, to_svg

Styles = Mapping[Variant, Style]
MOST_CURVES = 4
"""Measures of a group whose curves are drawn."""
COSTS = {"parameters": "parameters", "flops": "FLOPs for one input", "latency_1_ms": "latency of one input, ms"}


def draw_seeds(group: Group, results: Results, measures: Measures, styles: Styles) -> Picture | None:
    """Draw the monitored measure of each seed as a dot, and name the seeds that did not learn."""
    monitor = measures.monitor
    stored = {
        variant: {run: monitor.value(results[run]) for run in variant.runs if run in results}
        for variant in group.variants
    }
    values = {
        variant: {run: value for run, value in found.items() if value is not None and np.isfinite(value)}
        for variant, found in stored.items()
    }
    values = {variant: found for variant, found in values.items() if found}
    if not values:
        return None
    names = [fill(variant.title, 20) for variant in values]
    figure, axes = new_panel(0.9 + 0.36 * len(values), longest_line(names))
    told: list[str] = []
    for place, (variant, found) in enumerate(values.items()):
        style = styles[variant]
        axes.plot([np.mean(list(found.values()))] * 2, [place - 0.3, place + 0.3], color=style.colour, linewidth=1.6)
        axes.plot(
            list(found.values()), [place] * len(found), style.marker, color=style.colour, markersize=5.5, alpha=0.75
        )
        for bad in unlearned_seeds(variant, results, measures):
            if bad.run in found:
                _name_seed(axes, f"seed {bad.run.seed}", found[bad.run], place)
        listed = ", ".join(f"seed {run.seed}: {monitor.text(value)}" for run, value in found.items())
        told.append(f"{variant.title}: {listed}")
    axes.set_yticks(range(len(values)), names)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlabel(f"test {monitor.heading}")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    svg = to_svg(figure, f"seeds-{group.name}", f"Test {monitor.name} of each seed. {'. '.join(told)}.")
    return Picture(svg, f"Test {monitor.name} of each seed; a line marks the mean.")


def longest_line(names: Sequence[str]) -> int:
    """Count the characters of the longest line of some names."""
    return max(len(line) for name in names for line in name.splitlines() or [""])


def _name_seed(axes: Axes, text: str, x: float, y: float) -> None:
    left, right = axes.get_xlim()
    is_left = x - left < (right - left) / 2
    axes.annotate(
        text,
        (x, y),
        (7 if is_left else -7, 6),
        textcoords="offset points",
        fontsize=9.5,
        ha="left" if is_left else "right",
    )


def draw_curves(group: Group, results: Results, measures: Measures, styles: Styles) -> list[Picture]:
    """Draw the validation curves: mean over seeds, and a band of one standard deviation."""
    points = [point for run, result in results.items() if run.variant in group.variants for point in result["curve"]]
    keys = [measures.monitor.key, *(key for key in dict.fromkeys(key for point in points for key in point))]
    drawn: list[Picture] = []
    for measure in map(measure_of, dict.fromkeys(key for key in keys if key != "step")):
        lines = lines_of(group, results, measure)
        if lines and len(drawn) < MOST_CURVES:
            drawn.append(_curves(group, measure, lines, styles))
    return drawn


def _curves(group: Group, measure: Measure, lines: Sequence[Line], styles: Styles) -> Picture:
    figure, axes = new_panel()
    least = LEAST_ERROR if measure.is_percentage else -np.inf
    if measure.is_percentage:
        axes.set_yscale("log")
    told: list[str] = []
    for line in lines:
        style, mean = styles[line.variant], np.maximum(line.mean, least)
        low, high = (np.maximum(line.mean + sign * line.deviation, least) for sign in (-1, 1))
        axes.fill_between(line.steps, low, high, color=style.colour, alpha=0.15, linewidth=0)
        axes.plot(line.steps, mean, style.dash, marker=style.marker, color=style.colour, linewidth=1.5, markersize=4)
        end = 100 - line.mean[-1] if measure.is_percentage else line.mean[-1]
        told.append(f"{line.variant.title} ends at {measure.text(float(end))}")
    if measure.is_percentage:
        mark_accuracies(axes)
    axes.set_xlabel("training step")
    axes.set_ylabel(f"validation {measure.heading}")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    description = f"Validation {measure.name} by training step: {'; '.join(told)}."
    scale = ", on a logarithmic scale of the errors" if measure.is_percentage else ""
    return Picture(
        to_svg(figure, f"curves-{group.name}-{measure.key}", description), f"Validation {measure.name}{scale}."
    )


def draw_costs(
    group: Group, rows: Sequence[Row], results: Results, stats: Mapping[str, NetworkStats], styles: Styles
) -> list[Picture]:
    """Draw the monitored measure against parameters, FLOPs and latency of the networks."""
    monitor, drawn = rows[0].measures.monitor, list[Picture]()
    for key, name in COSTS.items():
        points: list[tuple[Row, float]] = []
        for row in rows:
            network = next((str(results[run]["network"]) for run in row.variant.runs if run in results), "")
            cost: Any = stats[network].get(key) if network in stats else None
            if cost and np.isfinite(row.spreads[monitor.key].mean):
                points.append((row, float(cost)))
        if points:
            drawn.append(_costs(group, monitor, key, name, points, styles))
    return drawn


def _costs(
    group: Group, monitor: Measure, key: str, name: str, points: Sequence[tuple[Row, float]], styles: Styles
) -> Picture:
    figure, axes = new_panel(height=2.8)
    costs = [cost for _, cost in points]
    for i, (row, cost) in enumerate(points):
        shift = (costs[:i].count(cost) + 0.5) / costs.count(cost) - 0.5  # variants of one network lie side by side
        style, value = styles[row.variant], row.spreads[monitor.key]
        deviation = value.deviation if np.isfinite(value.deviation) else 0.0
        axes.errorbar(
            cost * 1.35**shift, value.mean, deviation, color=style.colour, marker=style.marker, markersize=7,
            markeredgecolor=PAPER, markeredgewidth=0.4, elinewidth=1, capsize=2,
        )  # fmt: skip
    low, high = min(costs), max(costs)
    axes.set_xscale("log")
    axes.set_xlim(low / 2, high * 2)
    axes.set_xlabel(name)
    axes.set_ylabel(f"test {monitor.heading}")
    ticks = sorted(set(costs))
    shown = [tick for i, tick in enumerate(ticks) if i == 0 or tick > 1.3 * ticks[i - 1]]
    axes.set_xticks(shown, [_amount(tick) for tick in shown])
    axes.minorticks_off()
    axes.tick_params(axis="x", colors=TEXT)
    told = "; ".join(
        f"{row.variant.title} {monitor.text(row.spreads[monitor.key].mean)} at {_amount(cost)}" for row, cost in points
    )
    svg = to_svg(figure, f"costs-{group.name}-{key}", f"Test {monitor.name} against {name}: {told}.")
    return Picture(
        svg,
        f"Test {monitor.name} against {name}, mean ± one standard deviation; variants of one network lie side by side.",
    )


def _amount(value: float) -> str:
    """Write a cost with its thousands, millions or billions.

    Example:
        >>> _amount(15562), _amount(1162944), _amount(0.412)
        ('15.6 k', '1.16 M', '0.412')
    """
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
