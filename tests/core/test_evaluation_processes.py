"""Metrics of two processes, with uneven shares, named loaders and every kind of label, are those of one process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import Classifier, OfflineDistiller, Term
from kd_lightning.core.metrics import multilabel_metrics, regression_metrics
from kd_lightning.losses import FeatureMSELoss, TaskLoss
from tests import toys
from tests.ranks import run_two, two_processes

pytestmark = two_processes

ROWS, CLASSES = 11, 3


class Bias(nn.Module):
    """Its inputs plus a learned bias."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([[[0.1]], [[-0.2]], [[0.3]]]))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.bias if x.dim() == 4 else self.bias.flatten())


def cases() -> dict[str, tuple[Any, Tensor, Tensor]]:
    """A learner for each kind of label, its inputs and labels."""
    generator = torch.Generator().manual_seed(0)
    rows, pixels = (torch.randn(ROWS, CLASSES, *shape, generator=generator) for shape in ((), (2, 5)))
    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    mask = torch.randint(CLASSES, (ROWS, 2, 5), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < 0.4] = 255
    ignoring = {"task": Term(TaskLoss(), teacher=None, ignore_index=255)}
    real = OfflineDistiller(Bias(), Bias(), {"kd": Term(FeatureMSELoss())}, metrics=regression_metrics())
    return {
        "classes": (Classifier(Bias()), rows, labels),
        "soft": (Classifier(Bias()), rows, rows.flip(0).softmax(dim=1)),
        "pixels": (Classifier(Bias(), ignoring), pixels, mask),
        "multilabel": (
            Classifier(Bias(), metrics=multilabel_metrics()),
            rows,
            functional.one_hot(labels, CLASSES).float(),
        ),
        "values": (real, rows, rows.flip(0)),
    }


def measure(folder: Path, rank: int | None) -> dict[str, dict[str, float]]:
    """The metrics of every case, of one process, or of this rank of two: rank 0 has far fewer rows than rank 1."""
    measured: dict[str, dict[str, float]] = {}
    for name, (learner, x, y) in cases().items():
        shares = {"left": (x[:5], y[:5], 1), "right": (x[5:], y[5:], 2)}
        loaders: dict[str, toys.Loader] = {}
        for loader, (inputs, labels, first) in shares.items():
            mine = slice(None) if rank is None else (slice(None, first), slice(first, None))[rank]
            loaders[loader] = toys.Loader([(inputs[mine], labels[mine])])
        changes: dict[str, Any] = {} if rank is None else {"strategy": "ddp", "devices": 2}
        trainer = toys.trainer(folder, use_distributed_sampler=False, **changes)
        measured[name] = {}
        for found in trainer.validate(learner, loaders, verbose=False):
            measured[name] |= found
    return measured


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    run_two("tests.core.test_evaluation_processes", out)
    return [torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", cases())
def test_two_processes_have_the_metrics_of_one(name, of_ranks, tmp_path):
    one = measure(tmp_path, None)[name]
    assert len(one) == 6  # two metrics, over all rows and on each loader
    for measured in of_ranks:
        assert measured[name] == pytest.approx(one, rel=1e-6)


if __name__ == "__main__":
    rank, out = int(os.environ["LOCAL_RANK"]), Path(sys.argv[1])
    torch.save(measure(out / str(rank), rank), out / f"rank-{rank}.pt")
