"""Writes what the teacher was worth into README.md, from the finished runs of `make compare`.

python -m benchmarks.worth [--table runs/compare/mnist/table.md]
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- worth: begin -->\n", "<!-- worth: end -->"
COLUMNS = ("alone", "both terms", "soft targets")


def block(table: str) -> str:
    """Make a row for each group of the report's Markdown, and add its answer."""
    lines = ["| training images | student alone | labels and soft targets | soft targets only |", "|---|---|---|---|"]
    for section in table.split("\n## ")[1:]:
        title, *rest = section.splitlines()
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in rest if line.startswith("|")]
        if not rows or "accuracy, %" not in rows[0]:
            continue
        found = {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}
        cells = [_cell(found[name]) for name in COLUMNS]
        lines.append(f"| {title.replace(' training images', '')} | {' | '.join(cells)} |")
    (answer,) = re.findall(r"^\*\*(.*)\*\*$", table, re.MULTILINE)
    return "\n".join([*lines, "", *_sentences(answer)]) + "\n"


def _cell(row: dict[str, str]) -> str:
    difference = "" if row["difference"] == "-" else f" ({row['difference']})"
    return row["accuracy, %"] + difference


def _sentences(answer: str) -> list[str]:
    """The answer, a line for each group, without the figures that the table has."""
    answer = re.sub(r" \([^()]* points [^()]*\)", "", answer)
    first, *others = answer.removesuffix(".").split("; ")
    return [f"{first};", *(f"{other};" for other in others[:-1]), f"{others[-1]}."] if others else [f"{first}."]


def page(table: str) -> str:
    """Return README.md with the block between its markers."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}{block(table)}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=Path("runs/compare/mnist/table.md"))
    PAGE.write_text(page(parser.parse_args().table.read_text(encoding="utf-8")), encoding="utf-8")
