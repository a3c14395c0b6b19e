"""The table of errors in docs/reliability.md has every error of the package, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASES = ("Error", "Exception")


def error_classes() -> set[str]:
    """The classes of the package that are errors, by their bases' names."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "kd_lightning").rglob("*.py")]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {node.name for node in classes if any(ast.unparse(base).endswith(BASES) for base in node.bases)}


def test_the_table_of_errors_has_every_error_and_no_other():
    section = (
        (ROOT / "docs/reliability.md").read_text(encoding="utf-8").partition("## Errors\n")[2].partition("\n## ")[0]
    )
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", section, re.MULTILINE)
    assert {name for name, _, _ in rows} == error_classes()
    assert len(rows) == len(error_classes())


def test_a_new_error_would_be_found():
    assert {"UsageError", "WriteError", "YamlFaultError", "RunStopped"} <= error_classes()
