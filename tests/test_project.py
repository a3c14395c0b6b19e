"""What the project says of itself is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from kd_lightning import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9.-]+==[^ ]+", line) for line in lines), "names and versions only"
    return {name: Version(version) for name, version in (line.split("==") for line in lines)}


def test_the_lock_holds_what_pyproject_asks_for():
    lock = locked()
    for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(lock[wanted.name.lower()]), f"{wanted} against {lock[wanted.name.lower()]}"


def test_every_page_names_this_version():
    assert PROJECT["version"] == __version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"].partition(" AND ")[0], "of the code; a list would mean a choice"
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", __version__]


@pytest.mark.parametrize("name", ["torch", "torchvision", "lightning", "jsonargparse"])
def test_the_page_of_supported_versions_has_the_bounds_of_pyproject(name):
    (row,) = re.findall(rf"^\| {name} \| (.*?) \|", (ROOT / "docs/stability.md").read_text(), re.MULTILINE)
    (wanted,) = [found for found in map(Requirement, PROJECT["dependencies"]) if found.name == name]
    bounds = {part.operator: part.version for part in wanted.specifier}
    below = f"up to {bounds['<']}, not included" if "<" in bounds else "and newer"
    assert row == f"{bounds['>=']} {below}"


def test_ci_runs_on_every_python_that_is_supported():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    job = workflow["jobs"]["checks"]
    assert {"run": ".ci/run"} in job["steps"]
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert job["strategy"]["matrix"]["python"] == named
    assert Requirement(f"python{PROJECT['requires-python']}").specifier == Requirement(f"python>={named[0]}").specifier
    (row,) = re.findall(r"^\| Python \| (.*?) \|", (ROOT / "docs/stability.md").read_text(), re.MULTILINE)
    assert row.split(", ") == named


def unsafe(call: ast.Call) -> bool:
    """True for a call that reads a file in a way that could run code."""
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    return (
        (name == "torch.load" and given.get("weights_only") != "True")
        or given.get("weights_only") == "False"
        or given.get("allow_pickle") == "True"
        or name in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load")
        or name.endswith(".load_from_checkpoint")
    )


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=True)", False),
        ("Learner.load_from_checkpoint(path, weights_only=True)", True),
        ("np.load(path, allow_pickle=True)", True),
        ("np.load(path)", False),
    ],
)
def test_unsafe_reading_is_found(code, found):
    (statement,) = ast.parse(code).body
    assert isinstance(statement, ast.Expr)
    assert unsafe(statement.value) == found


def test_every_file_is_read_as_data():  # as SECURITY.md says
    calls = [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node)
        for path in sorted((ROOT / "kd_lightning").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    assert len(calls) > 1000
    found = {place.partition(":")[0] for place, call in calls if unsafe(call)}
    assert found == {"kd_lightning/compare/run/dask_engine.py"}  # a job, which dask would unpickle as well


def test_no_function_has_the_name_of_its_module():  # or importing one would hide the other
    found = {
        str(path.relative_to(ROOT / "kd_lightning"))
        for path in sorted((ROOT / "kd_lightning").rglob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == path.stem
    }
    assert not found


PACKAGES = [path.parent for path in sorted((ROOT / "kd_lightning").rglob("__init__.py"))]


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_no_export_hides_a_submodule(folder):
    package = import_module(".".join(folder.relative_to(ROOT).parts))
    submodules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    values = {name for name, value in vars(package).items() if not isinstance(value, ModuleType)}
    assert not submodules & (values | set(getattr(package, "__all__", ())))


def test_importing_the_package_waits_for_nothing_heavy():
    loaded = _python(
        "import sys, kd_lightning; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    ).split()
    assert not {"torch", "lightning", "torchvision", "matplotlib", "scipy", "jsonargparse", "tensorboard"} & set(loaded)


def test_the_public_names_load_where_jsonargparse_is_missing_and_neither_torchvision_nor_matplotlib():
    lightning = "import sys; sys.modules['jsonargparse'] = None; import lightning.pytorch; before = {*sys.modules}"
    ours = "import kd_lightning as k, kd_lightning.callbacks, kd_lightning.data; [getattr(k, n) for n in dir(k)]"
    loaded = set(_python(f"{lightning}; {ours}; print(*{{*sys.modules}} - before)").split())
    assert "kd_lightning.callbacks.distillation" in loaded
    assert not {"torchvision", "matplotlib", "scipy", "pandas"} & loaded


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout


@pytest.mark.xdist_group("kept together")
def test_a_group_of_tests_stays_with_one_worker(request):
    """pytest-xdist tells its scheduler so in the test's name; from pytest 9.2 on, version 3.8 fails to, in silence."""
    grouped = getattr(request.config.option, "loadgroup", False)
    assert request.node.nodeid.endswith("@kept together") == grouped
