"""The shared tests name no method: a new one is found in the tree and says by attributes what it promises.

A run that must be made smaller than others of its family has an overlay in `tests/conf`; a loss or scheme that is
called in a way of its own has `CASES` in its own test file.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from kd_lightning import callbacks, losses, networks, schemes
from kd_lightning.core.learner import Learner
from tests.shipped import METHODS

ROOT = Path(__file__).parent
SHARED = sorted(
    {path for path in ROOT.glob("*.py") if not path.name.startswith("test_")}
    | {*ROOT.rglob("test_every_*.py"), *ROOT.rglob("every.py"), *ROOT.rglob("case.py")}
    | {*ROOT.glob("conf/default.yaml"), *ROOT.glob("conf/*/default.yaml")}
    | {ROOT / f"test_{name}.py" for name in ("configs", "distributed", "resume", "generic_tests")}
)
"""The files that an addition must not touch."""

EXAMPLES = {"Classifier", "OfflineDistiller", "KDLoss", "TaskLoss", "ConvNet", "StudentConvNet", "TeacherConvNet"}
"""The base schemes, two losses and the networks of the main job, which shared tests take as their example."""
ANY_RUNS = {"TeacherFreezing", "TemperatureSchedule", "TermWeightSchedule"}
"""The callbacks that any run may have, whatever its method."""


def classes_of_methods() -> set[str]:
    """Names of the schemes, losses and networks of methods."""
    public = {name: vars(package)[name] for package in (losses, schemes, networks) for name in package.__all__}
    kinds = {name for name, kind in public.items() if inspect.isclass(kind)}
    assert len(kinds) > 100
    return kinds - EXAMPLES


def callbacks_of_methods() -> set[str]:
    """Names of the callbacks that a shipped file asks for."""
    used = "".join(method.path.read_text() for method in METHODS.values())
    kinds = {name for name in callbacks.__all__ if f"class_path: {name}" in used}
    assert kinds
    return {name for name in kinds if issubclass(vars(callbacks)[name], Callback)} - ANY_RUNS


def arguments_of_methods() -> set[str]:
    """Arguments that only some schemes take, of two words or more: one word has other meanings as well."""
    common = {*inspect.signature(Learner).parameters, *inspect.signature(schemes.OfflineDistiller).parameters}
    kinds = [kind for kind in vars(schemes).values() if inspect.isclass(kind) and issubclass(kind, Learner)]
    taken = {name for kind in kinds for name in inspect.signature(kind).parameters}
    arguments = {name for name in taken - common if "_" in name}
    assert len(arguments) > 10
    return arguments


@pytest.mark.parametrize("path", SHARED, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_names_no_method(path):
    text = path.read_text(encoding="utf-8").replace("torch.Generator", "")
    words = set(re.findall(r"[A-Za-z_]\w*", text))
    named = words & (classes_of_methods() | callbacks_of_methods() | arguments_of_methods())
    assert not named
    files = set(re.findall(r"[a-z_]+/[a-z_0-9]+", text))
    assert not {name for name in files & METHODS.keys() if not name.startswith("mnist/")}
