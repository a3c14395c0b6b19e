"""One method a file, exported by its folder; the package exports what its folders do."""

from __future__ import annotations

import re
import statistics
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

from kd_lightning import losses
from kd_lightning.core.loss import DistillationLoss

ROOT = Path(losses.__file__).parent
FAMILIES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "common")
FILES = [path for family in FAMILIES for path in sorted((ROOT / family).glob("[!_]*.py"))]


def module(path: Path) -> ModuleType:
    return import_module(f"kd_lightning.losses.{path.parent.name}.{path.stem}")


def test_the_package_exports_what_its_folders_export():
    folders = [import_module(f"kd_lightning.losses.{family}") for family in FAMILIES]
    exported = {name: getattr(folder, name) for folder in folders for name in folder.__all__}
    assert {name: getattr(losses, name) for name in losses.__all__} == exported
    assert len(exported) == sum(len(folder.__all__) for folder in folders) > 100


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_file_holds_one_loss_which_its_folder_exports(path):
    own = {
        name: value
        for name, value in vars(module(path)).items()
        if getattr(value, "__module__", "") == module(path).__name__
    }
    (loss,) = [name for name, value in own.items() if isinstance(value, type) and name.endswith("Loss")]
    assert issubclass(own[loss], nn.Module)
    folder = import_module(f"kd_lightning.losses.{path.parent.name}")
    functions = [name for name in own if name.endswith("_loss") and not name.startswith("_")]
    assert {loss, *functions} <= set(folder.__all__)


def test_loss_files_are_short():
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in FILES]
    assert 40 <= statistics.median(lines) <= 120
    assert max(lines) <= 300


def test_no_loss_imports_a_network():
    imports = [
        f"{path.name}: {line}"
        for path in sorted(ROOT.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if "import" in line and "kd_lightning.networks" in line
    ]
    assert not imports


def test_traits_of_losses_are_read_in_one_place():
    traits = "|".join(DistillationLoss.__annotations__)
    reads = [
        str(path.relative_to(ROOT.parent))
        for path in sorted(ROOT.parent.rglob("*.py"))
        for _ in re.findall(rf'(?:getattr|hasattr)\((?!metric)[^)]*"(?:{traits})"', path.read_text(encoding="utf-8"))
    ]
    # term.py reads compares_samples of a module that may be any nn.Module, without a call of `loss_trait` in each step
    assert set(reads) <= {"core/term.py"}
    assert len(reads) <= 1
