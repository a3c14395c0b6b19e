"""Reads ``metrics.csv``, the table of a run's logged values."""

from __future__ import annotations

import csv
import io
from pathlib import Path


def read_metrics(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read the columns and the whole rows of a ``metrics.csv``; bytes that are not UTF-8 become question marks.

    Raises:
        ValueError: It is not a table with a column ``step``.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]  # a killed process may leave half a row at the end
    try:
        table = csv.DictReader(io.StringIO(whole.replace("\0", "\ufffd"), newline=""))
        columns = list(table.fieldnames or [])
        rows = [row for row in table if None not in row and None not in row.values()]
    except csv.Error as error:
        raise ValueError(str(error)) from None
    if "step" not in columns:
        raise ValueError("it has no column `step`")
    return columns, rows
