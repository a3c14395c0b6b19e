"""Writes the keys of compare files into docs/compare.md, from kd_lightning/compare/plan/schema.py: `make pages`.

python -m benchmarks.compare_keys
"""

from __future__ import annotations

from pathlib import Path

from kd_lightning.compare.plan.schema import LEVELS

PAGE = Path(__file__).parents[1] / "docs/compare.md"
BEGIN, END = "<!-- keys: begin -->\n", "<!-- keys: end -->"


def tables() -> str:
    """Make a table for each level of a compare file; required keys are bold."""
    lines: list[str] = []
    for level, keys in LEVELS.items():
        lines += [f"| in {level} | is | meaning |", "|---|---|---|"]
        lines += [
            f"| {f'**`{name}`**' if key.required else f'`{name}`'} | {key.kind} | {key.meaning} |"
            for name, key in keys.items()
        ]
        lines.append("")
    return "\n".join([*lines, "Bold keys are required.\n"])


def page() -> str:
    """Return docs/compare.md with the present tables between its markers."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}{tables()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
