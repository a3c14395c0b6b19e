"""A new loss is four files: everything else finds it in the tree, which is tried in a copy of the project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOSS = '''"""Half the squared distance of logits."""

from __future__ import annotations

from torch import Tensor

from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_logits, upcast


def halved_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the squared distance of logits (N, C), averaged over both.

    Example:
        >>> import torch
        >>> halved_loss(torch.zeros(2, 3), torch.ones(2, 3))
        tensor(0.5000)
    """
    check_logits(student, teacher)
    return (upcast(student) - upcast(teacher)).square().mean() / 2


class HalvedLoss(DistillationLoss):
    """`halved_loss` as a module."""

    takes_rows = True

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the loss; labels are not used."""
        return halved_loss(student, teacher)
'''
EXPORT = "from kd_lightning.losses.response.halved import HalvedLoss as HalvedLoss, halved_loss as halved_loss\n"
TEST = """import torch

from kd_lightning.losses import HalvedLoss
from tests.losses.plain import Plain


def plain_halved(m, s, t, y):
    return torch.nn.functional.mse_loss(s, t) / 2


PLAIN = {"HalvedLoss": Plain(plain_halved)}


def test_value():
    assert HalvedLoss()(torch.zeros(2, 3), torch.ones(2, 3)).item() == 0.5
"""
LOOK = """
from pathlib import Path

import kd_lightning
from benchmarks import losses, methods
from kd_lightning.compare.plan.plan_file import read_plan

here = Path.cwd()
assert Path(kd_lightning.__file__).is_relative_to(here), kd_lightning.__file__
assert Path(losses.__file__).is_relative_to(here), losses.__file__
entries = [entry for entry in losses.ENTRIES if entry.name == "HalvedLoss"]
assert [entry.shapes for entry in entries] == ["10", "100"]
assert max(map(losses.disagreement, entries)) < losses.TOLERANCE
row = "| [halved](../configs/response/halved.yaml) | Half the squared distance (Nobody, 2026)"
assert row + " | `OfflineDistiller` | `TaskLoss`, `HalvedLoss` | |" in methods.page()
(zoo,) = [group for group in read_plan(Path("configs/compare/zoo.yaml")).groups if group.name == "zoo"]
(added,) = [variant for variant in zoo.variants if variant.name == "halved"]
assert (added.baseline.name, added.teacher.path, len(added.runs)) == ("alone", "teachers/teacher", 5)
"""


pytestmark = pytest.mark.xdist_group("a new loss")  # whose files are written once


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, with the four files of a new loss."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in ("kd_lightning", "configs", "benchmarks"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("files", "__pycache__"))
    (tree / "tests").mkdir()
    shutil.copytree(ROOT / "tests/losses", tree / "tests/losses", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests/toys.py", tree / "tests")
    shutil.copy(ROOT / "pyproject.toml", tree)
    (tree / "kd_lightning/losses/response/halved.py").write_text(LOSS)
    exports = tree / "kd_lightning/losses/response/__init__.py"
    exports.write_text(exports.read_text().replace("\n__all__ =", f"{EXPORT}\n__all__ ="))
    (tree / "tests/losses/response/test_halved.py").write_text(TEST)
    kd = (ROOT / "configs/response/kd.yaml").read_text().splitlines()
    new = ["# Half the squared distance (Nobody, 2026)", kd[1].replace("/kd.yaml", "/halved.yaml"), *kd[2:]]
    text = "\n".join(new).replace("KDLoss, init_args: {temperature: 4.0}", "HalvedLoss")
    (tree / "configs/response/halved.yaml").write_text(text.replace("runs/response/kd", "runs/response/halved"))
    return tree


def run(tree: Path, *args: str) -> subprocess.CompletedProcess[str]:
    settings = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *args], cwd=tree, env=os.environ | settings, capture_output=True, text=True, check=False
    )


@pytest.mark.slow  # a process that imports all of the benchmarks
def test_benchmark_page_and_comparison_have_it(tree: Path):
    done = run(tree, "-c", LOOK)
    assert not done.returncode, done.stderr


@pytest.mark.slow  # a session of tests in a copy of the tree
def test_the_shared_tests_of_losses_have_it(tree: Path):
    done = run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/losses", "-k", "Halved or test_halved")
    assert not done.returncode, done.stdout
    passed = int(done.stdout.rpartition(" passed")[0].split()[-1])
    assert passed > 20, done.stdout
