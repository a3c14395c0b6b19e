"""What tests of several folders share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import measure, toys
from tests.browser import chromium, open_page  # noqa: F401 (fixtures of all tests)
from tests.shipped import Runs

collect_ignore_glob = ["*conftest.py"]
"""They have no doctests, and as modules they would all have one name."""
torch.set_num_threads(1)  # two threads on a shared core are slower than one, and by much


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer `--measure` and `--max-memory`."""
    measure.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Measure each test; on a GPU, make the same run give the same bits each time."""
    config.pluginmanager.register(measure.Measure(config))
    if toys.ACCELERATOR == "gpu":
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True, warn_only=True)
        for harmless in (
            "\\S+ does not have a deterministic",
            "GPU available but not used",
            "Synchronization debug mode",
        ):
            config.addinivalue_line("filterwarnings", f"ignore:{harmless}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the notebooks slow: each starts a kernel of its own."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Small runs of the shipped configurations, made when they are first needed; the workers share them."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shipped"
    directory.mkdir(exist_ok=True)
    return Runs(directory)


@pytest.fixture(scope="session")
def teacher_checkpoint(runs: Runs) -> Path:
    """A checkpoint of a `Classifier` of `TeacherConvNet`."""
    return runs.run(Path("runs/mnist/teacher"), "mnist/teacher") / "last.ckpt"


@pytest.fixture
def provide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Runs) -> Callable[..., None]:
    """A function that puts the runs which shipped configurations read into the working directory, `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    return runs.provide


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher_checkpoint: Path) -> Path:
    """The working directory, with the run of a teacher in ``runs/mnist/teacher``."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher_checkpoint.parent, "runs/mnist/teacher")
    return tmp_path
