"""Tables and what they say: for the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kd_lightning.compare.summary import MEASURES, Row

Facts = dict[str, dict[str, Any]]
"""What is known of each network, by its key: see `kd_lightning.compare.costs`."""

LEGEND = (
    "Measured after the last step, on all test images: accuracy, errors (wrong images), negative log-likelihood "
    "(nats), expected calibration error (15 bins), agreement with the teacher and KL(teacher ‖ student) at temperature "
    "1 (nats). Train: accuracy on at most 10,000 of a run's own training images. ±: sample standard deviation over "
    "seeds. Difference: in points, paired, each seed against the baseline's run of the same seed, with Student's 95 % "
    "interval. Gap: how much of the way from the baseline to the teacher is gone. Seconds: of training, on one thread "
    "beside the other runs."
)
NETWORK_LEGEND = (
    "Bytes: of the float32 weights as safetensors. FLOPs: for one image, two for each multiply-add. Latency: median of "
    "a forward pass on one thread, while no run was going on."
)
FIRST_COLUMNS = 6
"""Of a comparison: what it is worth; the others, why."""


@dataclass(frozen=True)
class Section:
    """A table under its title, with the sentences that belong to it."""

    title: str
    notes: str
    header: list[str]
    cells: list[list[str]]
    sentences: list[str]


def comparison(title: str, notes: str, rows: Sequence[Row], sentences: list[str]) -> Section:
    """The section of a group."""
    accuracy, errors, *rest = (measure.heading for measure in MEASURES)
    header = ["", accuracy, "difference", "against", "gap, %", errors, *rest]
    return Section(title, notes, header, [_cells(row) for row in rows], sentences)


def networks(facts: Facts) -> Section:
    """The section that says what the networks cost."""
    header = ["", "parameters", "bytes", "FLOPs", "ms for 1 image", "ms for 64"]
    cells = [
        [
            fact["name"],
            *(f"{fact[key]:,}" for key in ("parameters", "bytes", "flops")),
            *(f"{fact[key]:.2f}" for key in ("latency_1_ms", "latency_64_ms")),
        ]
        for fact in facts.values()
    ]
    return Section("The networks", "", header, cells, [NETWORK_LEGEND])


def to_terminal(section: Section) -> list[RenderableType]:
    """What rich prints of a section; wide tables in two, so that 80 columns are enough."""
    halves = slice(1, FIRST_COLUMNS), slice(FIRST_COLUMNS, None)
    tables = [_table(section.header, section.cells, half) for half in halves if section.header[half]]
    return [
        Text(f"\n{section.title}", style="bold"),
        *([Text(section.notes)] if section.notes else []),
        *tables,
        *(Text(f"· {sentence}") for sentence in section.sentences),
    ]


def to_markdown(section: Section) -> str:
    """A section of a Markdown file."""
    lines = [section.header, ["---", *("---:" for _ in section.header[1:])], *section.cells]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    sentences = "\n".join(f"- {sentence}" for sentence in section.sentences)
    return "\n\n".join(part for part in (f"## {section.title}", section.notes, table, sentences) if part)


def to_csv(rows: Sequence[Row]) -> str:
    """Every variant of every group in a line, with all that is known of it; what is not known is empty."""
    lines = [_record(row) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _table(header: list[str], cells: list[list[str]], columns: slice) -> Table:
    """The columns of a slice, after the one of the names."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(header[0], overflow="fold")
    for heading in header[columns]:
        table.add_column(heading, justify="right")
    for line in cells:
        table.add_row(line[0], *line[columns])
    return table


def _cells(row: Row) -> list[str]:
    difference, accuracy = row.difference, row.spreads["accuracy"]
    unfinished = len(row.variant.seeds) - row.seeds
    interval = "" if math.isnan(difference.low) else f" [{difference.low:+.2f}, {difference.high:+.2f}]"
    errors, *rest = (_number(row.spreads[measure.key].mean, measure.digits) for measure in MEASURES[1:])
    return [
        row.variant.title + (f" ({row.seeds} of {len(row.variant.seeds)} seeds)" if unfinished else ""),
        _number(accuracy.mean, 2) + ("" if math.isnan(accuracy.deviation) else f" ± {accuracy.deviation:.2f}"),
        "-" if math.isnan(difference.mean) else f"{difference.mean:+.2f}{interval}",
        row.variant.baseline.title if row.variant.baseline else "-",
        _number(row.gap_closed, 0),
        errors,
        *rest,
    ]


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0, for -0 is 0


def _record(row: Row) -> dict[str, Any]:
    variant = row.variant
    record: dict[str, Any] = {
        "group": variant.group,
        "variant": variant.name,
        "title": variant.title,
        "seeds": row.seeds,
        "teacher": variant.teacher.path if variant.teacher else "",
        "baseline": variant.baseline.path if variant.baseline else "",
    }
    for measure in MEASURES:
        record |= {f"{measure.key}_{part}": value for part, value in row.spreads[measure.key]._asdict().items()}
    record |= {f"difference_{part}": value for part, value in row.difference._asdict().items()}
    record["gap_closed"] = row.gap_closed
    return {key: "" if isinstance(value, float) and math.isnan(value) else value for key, value in record.items()}
