"""No module of the package imports one above it, and no imports run in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kd_lightning"
FLOORS = [
    ["core"],
    ["losses", "weights"],
    ["networks", "data"],
    ["schemes"],
    ["speed"],
    ["callbacks"],
    ["cli"],
    ["compare.messages", "compare.measure"],
    ["compare.plan"],
    ["compare.run", "compare.report"],
    ["compare.command", "compare"],
    ["__main__"],
]
"""The package's folders and modules, from the ground floor up; each imports from lower floors and from itself."""
FREE = ("kd_lightning", "kd_lightning.__init__")
"""The package itself: it loads its public names when they are asked for."""


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, modules: set[str]) -> Iterator[str]:
    """The modules that a file imports, in functions as well, but not those for the type checker alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            named = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            yield from named or {str(node.module)} & modules
        else:
            yield from imports(node, modules)


def graph(root: Path) -> dict[str, set[str]]:
    files = {module_name(path, root): path for path in sorted(root.rglob("*.py"))}
    return {
        name: set(imports(ast.parse(path.read_text(encoding="utf-8")), set(files))) - {name}
        for name, path in files.items()
    }


def floor_of(module: str) -> int | None:
    """The floor of a module: that of the longest name in FLOORS that it lies in."""
    inside = module.partition(".")[2]
    found = [
        (len(name), floor)
        for floor, names in enumerate(FLOORS)
        for name in names
        if inside == name or inside.startswith(f"{name}.")
    ]
    return max(found)[1] if found else None


def circle(edges: dict[str, set[str]]) -> list[str]:
    """A circle of imports, or nothing."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(edges.get(name, ())):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := visit(name, []))), [])


def upward(edges: dict[str, set[str]]) -> list[str]:
    def floor(module: str) -> int:
        found = floor_of(module)
        assert found is not None, f"{module} is on no floor: add its folder to FLOORS"
        return found

    return [
        f"{name} imports {other}"
        for name, others in sorted(edges.items())
        for other in sorted(others)
        if name not in FREE and other not in FREE and floor(other) > floor(name)
    ]


def test_no_import_runs_upward():
    assert upward(graph(PACKAGE)) == []


def test_no_imports_run_in_a_circle():
    edges = {name: others - set(FREE) for name, others in graph(PACKAGE).items() if name not in FREE}
    assert len(edges) > 200
    assert circle(edges) == []


def test_every_folder_has_a_floor():
    folders = {path.parent.name if path.name == "__init__.py" else path.stem for path in PACKAGE.glob("*.py")}
    folders |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders - {"kd_lightning"} == {name.partition(".")[0] for names in FLOORS for name in names}


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"a": "import p.b", "b": "def f():\n    from p import a"}, ["p.a", "p.b", "p.a"]),
        ({"a": "import p.b", "b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.a"}, []),
        ({"a": "from p.b import x", "b": "x = 1"}, []),
    ],
)
def test_a_circle_is_found_in_functions_too(files, found, tmp_path):
    root = tmp_path / "p"
    root.mkdir()
    for name, text in files.items():
        (root / f"{name}.py").write_text(text)
    assert circle(graph(root)) == found


def test_an_upward_import_is_found():
    assert upward({"kd_lightning.core.batch": {"kd_lightning.schemes"}}) == [
        "kd_lightning.core.batch imports kd_lightning.schemes"
    ]
    assert upward({"kd_lightning.compare.run.training": {"kd_lightning.compare.plan.config"}}) == []
