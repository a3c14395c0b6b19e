"""The tables of docs/reliability.md: faults by kind and by family, and the losses."""

from __future__ import annotations

from itertools import starmap
from pathlib import Path

from benchmarks.faults.trial import Verdict
from benchmarks.origin.report import place, table

COLUMNS = ("lost", "unreadable", "strays", "unequal", "allowed", "other")


def write_report(document: Path, verdicts: list[Verdict]) -> None:
    """Write the tables between ``<!-- figures: faults -->`` and ``<!-- end -->``."""
    document.write_text(place(document.read_text(), "faults", lines(verdicts)))


def lines(verdicts: list[Verdict]) -> list[str]:
    """Make two tables, by kind and by family: the faults, and those with a problem of each sort."""
    found: list[str] = []
    for name in ("kind", "family"):
        groups: dict[str, list[Verdict]] = {}
        for verdict in verdicts:
            groups.setdefault(getattr(verdict, name), []).append(verdict)
        found += [*table([name, "faults", *COLUMNS], starmap(_row, (groups | {"all": verdicts}).items())), ""]
    return found[:-1]


def _row(name: str, verdicts: list[Verdict]) -> list[str]:
    problems = [sum(bool(getattr(verdict, column)) for verdict in verdicts) for column in COLUMNS]
    return [name, str(len(verdicts)), *map(str, problems)]
