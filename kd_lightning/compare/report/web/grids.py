"""Tables of the page: measures with intervals, confusion matrices, settings that differ, networks."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kd_lightning.compare.measure.measures import Measure
from kd_lightning.compare.plan.artifacts import CONFIG
from kd_lightning.compare.plan.variants import Group, Run, Variant
from kd_lightning.compare.report.outcomes import Outcomes, tested_measures
from kd_lightning.compare.report.settings import differing_settings
from kd_lightning.compare.report.summary import Row
from kd_lightning.compare.report.web.class_figures import TestedRuns, of_variant

MOST_CLASSES, MOST_MATRICES, MOST_CONFUSIONS = 12, 6, 12
SIGNS = {"better": "▲", "worse": "▼", "undecided": "○"}


@dataclass(frozen=True)
class Grid:
    """A table: the first cell of each row is its head."""

    caption: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: for each label the predictions in %, and their shade in [0, 1]; or its largest entries."""

    title: str
    cells: list[list[tuple[str, float, bool]]]
    """The text, the shade, and True on the diagonal; empty where there are too many classes."""
    largest: list[str]


def differences(rows: Sequence[Row], outcomes: Outcomes) -> Grid:
    """Build the table of the tested measures: each with its spread, its difference to the baseline and the interval."""
    tested = tested_measures(rows[0].measures)
    baselines = {row.variant.baseline for row in rows if row.variant.baseline}
    header = ["", *(["against"] if len(baselines) > 1 else []), "outcome", "gap, %"]
    header += [name for each in tested for name in (each.heading, f"{each.name} difference")]
    lines: list[list[str]] = []
    for row in rows:
        outcome = outcomes.get((row.variant, row.measures.monitor.key))
        missing = len(row.variant.seeds) - row.seeds
        cells = [row.variant.title + (f" ({row.seeds} of {len(row.variant.seeds)} seeds)" if missing else "")]
        if len(baselines) > 1:
            cells.append(row.variant.baseline.title if row.variant.baseline else "-")
        cells.append(f"{outcome.word}{_p_value(outcome.p_value)}" if outcome else "-")
        cells.append("-" if math.isnan(row.gap_closed) else f"{row.gap_closed:.0f}")
        lines.append(
            cells + [text for each in tested for text in (_spread(row, each), _difference(row, each, outcomes))]
        )
    signs = ", ".join(f"{sign} {word}" for word, sign in SIGNS.items())
    against = f" to {baselines.pop().title}" if len(baselines) == 1 else ""
    caption = (
        f"Test data, mean ± standard deviation over seeds; paired differences{against} with 95 % intervals: {signs}"
    )
    return Grid(caption, header, lines)


def further_measures(rows: Sequence[Row]) -> Grid:
    """Build the table of all measures that have no difference in the first one."""
    tested = tested_measures(rows[0].measures)
    others = [measure for measure in rows[0].measures.shown if measure not in tested]
    others = [measure for measure in others if any(not math.isnan(row.spreads[measure.key].mean) for row in rows)]
    lines = [[row.variant.title, *(_spread(row, measure) for measure in others)] for row in rows]
    return Grid(
        "Further measures, mean ± standard deviation over seeds", ["", *(each.heading for each in others)], lines
    )


def _spread(row: Row, measure: Measure) -> str:
    value = row.spreads[measure.key]
    if math.isnan(value.mean):
        return "-"
    return measure.text(value.mean) + ("" if math.isnan(value.deviation) else f" ± {measure.text(value.deviation)}")


def _difference(row: Row, measure: Measure, outcomes: Outcomes) -> str:
    found = row.differences[measure.key]
    if not found.pairs or math.isnan(found.mean):
        return "-"
    if math.isnan(found.low):
        return f"{measure.signed(found.mean)} (no interval)"
    sign = SIGNS[outcomes[row.variant, measure.key].word]
    return f"{sign} {measure.signed(found.mean)}\n[{measure.signed(found.low)}, {measure.signed(found.high)}]"


def _p_value(value: float) -> str:
    return "" if math.isnan(value) else "\np < 0.001" if value < 0.001 else f"\np = {value:.3f}"


def confusions(group: Group, tested: TestedRuns) -> list[Matrix]:
    """Build the confusion matrices of a group's first variants, over all seeds."""
    variants = [variant for variant in group.variants if of_variant(variant, tested)][:MOST_MATRICES]
    return [each for variant in variants if (each := _matrix(variant, tested)) is not None]


def _matrix(variant: Variant, tested: TestedRuns) -> Matrix | None:
    counts = [run.confusion for run in of_variant(variant, tested)]
    if len({each.shape for each in counts}) > 1:
        return None
    total = np.sum(counts, axis=0)
    shares = 100 * total / np.maximum(total.sum(axis=1, keepdims=True), 1)
    wrong = shares - np.diag(shares.diagonal())
    if len(total) > MOST_CLASSES:
        order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
        pairs = [divmod(int(i), len(total)) for i in order]
        largest = [f"{label} as {guess}: {wrong[label, guess]:.1f} %" for label, guess in pairs if wrong[label, guess]]
        return Matrix(variant.title, [], largest)
    darkest = max(float(wrong.max()), 1e-9)
    cells = [
        [
            (_share(shares[i, j]), round(float(wrong[i, j]) / darkest, 3), i == j)
            for j in range(len(total))
        ]
        for i in range(len(total))
    ]  # fmt: skip
    return Matrix(variant.title, cells, [])


def _share(value: float) -> str:
    """Write a share in %, short enough for a cell.

    Example:
        >>> _share(0.0), _share(0.04), _share(1.26), _share(97.4)
        ('', '·', '1.3', '97')
    """
    return "" if value == 0 else "·" if value < 0.05 else f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def settings_grid(variants: Sequence[Variant]) -> Grid | None:
    """Build the table of the settings in which variants differ: a row for each setting, a column for each variant."""
    settings = differing_settings(variants)
    keys = [key for key in dict.fromkeys(key for each in settings for key in each) if key not in ("group", "variant")]
    rows: list[list[str]] = []
    for key in keys:
        values = [_setting(each.get(key)) for each in settings]
        if len(set(values)) > 1:
            rows.append([key, *values])
    if not rows:
        return None
    return Grid(
        "Variants in columns; “-”: the variant has no such setting",
        ["setting", *(each.title for each in variants)],
        rows,
    )


def _setting(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def commands(command: str, root: Path, trained: Sequence[Run]) -> dict[str, str]:
    """Return commands by what they do."""
    found = {"The comparison; finished runs are not repeated": command}
    found["This page, without training"] = f"{command} --report-only"
    if trained:
        places = [str(root / trained[0].name / CONFIG), "--trainer.default_root_dir", "runs/again"]
        found["One run, such as the first"] = shlex.join(["kd-lightning", "fit", "--config", *places])
    return found
