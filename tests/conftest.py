"""What tests of several folders share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kd_lightning.networks import (
    Captioner,
    ConvNet,
    GraphNetwork,
    GRUClassifier,
    LabelEncoder,
    LeNet5,
    Paraphrased,
    Paraphraser,
    RelationNetwork,
)
from tests import toys

torch.set_num_threads(1)  # two threads on a shared core are slower than one, and by much


def pytest_configure(config: pytest.Config) -> None:
    """On a GPU the same run is to give the same bits each time."""
    if toys.ACCELERATOR == "gpu":
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True, warn_only=True)
        for harmless in (
            "\\S+ does not have a deterministic",
            "GPU available but not used",
            "Synchronization debug mode",
        ):
            config.addinivalue_line("filterwarnings", f"ignore:{harmless}")


TEACHERS: dict[str, Callable[[], nn.Module]] = {
    "mnist/teacher": lambda: ConvNet(128),
    "mnist/teacher-1": lambda: ConvNet(128),
    "mnist/teacher_batch_norm": lambda: ConvNet(128, batch_norm=True),
    "teachers/takd_assistant": lambda: ConvNet(64),
    "adversarial/kdgan_teacher": lambda: ConvNet(128),
    "data_free/few_teacher": lambda: ConvNet(128),
    "data_free/metadata_teacher": lambda: ConvNet(128),
    "data_free/lenet_teacher": lambda: LeNet5(),
    "graph/teacher": lambda: GraphNetwork(64, [128], convolution="gcn"),
    "graph/teacher_mnist": lambda: GraphNetwork(784, [128], convolution="gcn"),
    "graph/reader": lambda: GRUClassifier(),
    "cross_modal/words_teacher": lambda: GRUClassifier(in_features=27),
    "cross_modal/frames_teacher": lambda: ConvNet(128),
    "cross_modal/answers_teacher": lambda: RelationNetwork(LabelEncoder(), words=17),
    "cross_modal/captions_teacher": lambda: Captioner(LabelEncoder()),
    "cross_modal/edges_features": lambda: ConvNet(32),
    "feature/paraphraser": lambda: Paraphrased(ConvNet(128), "conv.5", Paraphraser(128)),
}
"""The runs whose checkpoints the shipped configurations learn from, and their networks."""


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with checkpoints like those of a `Classifier` of `ConvNet`: their weights are random."""
    runs = tmp_path_factory.mktemp("teachers") / "runs"
    for seed, (name, build) in enumerate(TEACHERS.items()):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            state = build().state_dict()
        (runs / name).mkdir(parents=True)
        torch.save({"state_dict": {f"student.{key}": value for key, value in state.items()}}, runs / name / "last.ckpt")
    sizes = {"conv.1": 128 * 169, "conv.3": 128 * 36, "conv.5": 128 * 25, "pool": 512, "logits": 10}
    statistics = {
        f"{layer}.{kind}": torch.ones(10, size) for layer, size in sizes.items() for kind in ("mean", "deviation")
    }
    for layer, waves in (("conv.5", 320), ("pool", 51)):
        shapes = {
            "basis": (sizes[layer], waves),
            "offset": (sizes[layer],),
            "mean": (10, waves),
            "factor": (10, waves, waves),
        }
        statistics |= {f"{layer}.spectral.{kind}": torch.ones(shape) for kind, shape in shapes.items()}
    save_file(statistics, runs / "data_free/metadata_teacher/statistics.safetensors")
    return runs


@pytest.fixture(scope="session")
def teacher_checkpoint(teachers: Path) -> Path:
    """A checkpoint like that of a `Classifier` of `TeacherConvNet`."""
    return teachers / "mnist/teacher/last.ckpt"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teachers: Path) -> Path:
    """The working folder, with trained teachers where the shipped configurations look for them."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teachers, tmp_path / "runs")
    return tmp_path
