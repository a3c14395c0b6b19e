"""Writes the renamed classes and arguments into CHANGELOG.md, from kd_lightning/core/renamed.py: `make pages`.

python -m benchmarks.renames
"""

from __future__ import annotations

from pathlib import Path

from kd_lightning.core.renamed import ARGUMENTS, CLASSES, COMPARE_KEYS

PAGE = Path(__file__).parents[1] / "CHANGELOG.md"
BEGIN, END = "<!-- renames: begin -->\n", "<!-- renames: end -->"


def code(text: str) -> str:
    """Mark a bare name as code; a sentence has its own marks."""
    return f"`{text}`" if text.isidentifier() else text


def table() -> str:
    """Make the table: classes and functions, then arguments by the class that has them, then keys of compare files."""
    rows = [f"| {code(old)} | {code(new)} |" for old, new in CLASSES.items()]
    rows += [f"| `{owner}({old}=)` | `{owner}({new}=)` |" for (owner, old), new in sorted(ARGUMENTS.items())]
    rows += [f"| `{old}:` in a compare file | `{new}:` |" for old, new in COMPARE_KEYS.items()]
    return "\n".join(["| before | now |", "|---|---|", *rows]) + "\n"


def page() -> str:
    """Return CHANGELOG.md with the present table between its markers."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
