"""Tables with their sentences: for the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kd_lightning.compare.measure.measures import CLASS_MEASURES, SECONDS, Measure, NetworkStats
from kd_lightning.compare.report.summary import Measures, Row

CLASS_LEGEND = (
    "Measured after the last step, on all test images: accuracy, errors (wrong images), negative log-likelihood "
    "(nats), expected calibration error (15 bins), agreement with the teacher and KL(teacher ‖ student) at temperature "
    "1 (nats). Train: accuracy on at most 10,000 of a run's own training images. "
)
OTHER_LEGEND = "Measured after the last step, on all test data: {names}. "
LEGEND = (
    "±: sample standard deviation over seeds. Difference: {unit}paired, each seed against the baseline's run of the "
    "same seed, with Student's 95 % interval{direction}. Better or worse: p is below 0.025 after Holm's correction for "
    "all of the report's differences of one measure; else undecided. Gap: how much of the way from the baseline to the "
    "teacher is gone. "
    "Seconds: of training, on one thread beside the other runs."
)
NETWORK_LEGEND = (
    "Bytes: of the float32 weights as safetensors. FLOPs: for one image, two for each multiply-add. Latency: median of "
    "a forward pass on one thread, while no run was going on."
)
GAP = Measure("gap_closed", "gap", 0)
FIRST_COLUMNS = 6
"""The columns of the first table of a comparison on a terminal: the name, the monitored measure, and one more."""


@dataclass(frozen=True)
class Section:
    """A table with its title, notes and sentences."""

    title: str
    notes: str
    header: list[str]
    cells: list[list[str]]
    sentences: list[str]


def comparison(title: str, notes: str, rows: Sequence[Row], measures: Measures, sentences: list[str]) -> Section:
    """Build the section of a group."""
    monitor, *rest = (measure.heading for measure in measures.shown)
    header = ["", monitor, "difference", "against", "gap, %", *rest]
    return Section(title, notes, header, [_cells(row) for row in rows], sentences)


def legend(groups: Sequence[Measures]) -> str:
    """Explain the columns of all groups' tables."""
    shown = dict.fromkeys(measure for measures in groups for measure in measures.shown)
    others = [measure.heading for measure in shown if measure not in (*CLASS_MEASURES, SECONDS)]
    of_classes = all(measure in shown for measure in CLASS_MEASURES)
    if not of_classes:
        others = [measure.heading for measure in shown if measure != SECONDS]
    first = CLASS_LEGEND if of_classes else ""
    then = OTHER_LEGEND.format(names=", ".join(others)) if others else ""
    monitors = dict.fromkeys((measures.monitor, measures.mode) for measures in groups)
    in_points = all(measure.is_percentage for measure, _ in monitors)
    lower = dict.fromkeys(measure.name for measure, mode in monitors if mode == "min")
    direction = f"; lower is better for {', '.join(lower)}" if lower else ""
    return first + then + LEGEND.format(unit="in points, " if in_points else "", direction=direction)


def networks(stats: Mapping[str, NetworkStats]) -> Section:
    """Build the section of the networks' costs."""
    header = ["", "parameters", "bytes", "FLOPs", "ms for 1 image", "ms for 64"]
    cells = [
        [
            each["name"],
            *(_whole(value) for value in (each["parameters"], each["bytes"], each["flops"])),
            *("-" if value is None else f"{value:.2f}" for value in (each["latency_1_ms"], each["latency_64_ms"])),
        ]
        for each in stats.values()
    ]
    return Section("The networks", "", header, cells, [NETWORK_LEGEND])


def to_terminal(section: Section) -> list[RenderableType]:
    """Render a section for a terminal of 80 columns: a wide table becomes two."""
    halves = slice(1, FIRST_COLUMNS), slice(FIRST_COLUMNS, None)
    tables = [_table(section.header, section.cells, half) for half in halves if section.header[half]]
    return [
        Text(f"\n{section.title}", style="bold"),
        *([Text(section.notes)] if section.notes else []),
        *tables,
        *(Text(f"· {sentence}") for sentence in section.sentences),
    ]


def to_markdown(section: Section) -> str:
    """Render a section as Markdown."""
    lines = [section.header, ["---", *("---:" for _ in section.header[1:])], *section.cells]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    sentences = "\n".join(f"- {sentence}" for sentence in section.sentences)
    return "\n\n".join(part for part in (f"## {section.title}", section.notes, table, sentences) if part)


def to_csv(rows: Sequence[Row]) -> str:
    """Write a line for each variant of every group, with all of its numbers; unknown ones are empty."""
    shown = dict.fromkeys(name for row in rows for name in _spreads(row))
    text = io.StringIO()
    names = [*_about(rows[0]), *shown, *_compared(rows[0])]
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n", restval="")
    writer.writeheader()
    for row in rows:
        record = _about(row) | _spreads(row) | _compared(row)
        unknown = {name for name, value in record.items() if isinstance(value, float) and math.isnan(value)}
        writer.writerow({name: value for name, value in record.items() if name not in unknown})
    return text.getvalue()


def _table(header: list[str], cells: list[list[str]], columns: slice) -> Table:
    """Build a table of the columns of a slice, after the column of the names."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(header[0], overflow="fold")
    for heading in header[columns]:
        table.add_column(heading, justify="right")
    for line in cells:
        table.add_row(line[0], *line[columns])
    return table


def _cells(row: Row) -> list[str]:
    difference, monitor, others = row.difference, row.measures.monitor, row.measures.shown[1:]
    value, missing = row.spreads[monitor.key], len(row.variant.seeds) - row.seeds
    interval = f" [{monitor.signed(difference.low)}, {monitor.signed(difference.high)}]"
    return [
        row.variant.title + (f" ({row.seeds} of {len(row.variant.seeds)} seeds)" if missing else ""),
        monitor.text(value.mean) + ("" if math.isnan(value.deviation) else f" ± {monitor.text(value.deviation)}"),
        _signed(monitor, difference.mean) + ("" if math.isnan(difference.low) else interval),
        row.variant.baseline.title if row.variant.baseline else "-",
        GAP.text(row.gap_closed),
        *(measure.text(row.spreads[measure.key].mean) for measure in others),
    ]


def _signed(measure: Measure, value: float) -> str:
    return "-" if math.isnan(value) else measure.signed(value)


def _whole(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _about(row: Row) -> dict[str, Any]:
    variant = row.variant
    return {
        "group": variant.group,
        "variant": variant.name,
        "title": variant.title,
        "seeds": row.seeds,
        "teacher": variant.teacher.path if variant.teacher else "",
        "baseline": variant.baseline.path if variant.baseline else "",
    }


def _spreads(row: Row) -> dict[str, Any]:
    return {
        f"{measure.key}_{part}": value
        for measure in row.measures.shown
        for part, value in row.spreads[measure.key]._asdict().items()
    }


def _compared(row: Row) -> dict[str, Any]:
    difference = {f"difference_{part}": value for part, value in row.difference._asdict().items()}
    of = {"monitor": row.measures.monitor.key, "mode": row.measures.mode}
    return difference | {"gap_closed": row.gap_closed} | of
