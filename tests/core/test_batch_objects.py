"""Batches that are objects: dataclasses, named tuples, mappings of other libraries, and graphs."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning import OfflineDistiller, Term
from kd_lightning.callbacks import Distillation
from kd_lightning.core.batch import split_batch
from kd_lightning.losses import KDLoss, TaskLoss
from tests import toys

X, Y, MASK = (
    torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),
    torch.arange(4) % 3,
    torch.tensor([1, 1, 0, 1]),
)


@dataclass
class Sample:
    image: Tensor
    label: Tensor
    counts: Tensor | None = None


class LabelFirst(NamedTuple):
    label: Tensor
    image: Tensor


class Four(NamedTuple):
    image: Tensor
    counts: Tensor
    labels: Tensor
    name: list[str]


class XY(NamedTuple):
    first: Tensor
    second: Tensor


class Encoding(UserDict):
    """As those of tokenizers."""


class Graph:
    """As a batch of graphs: itself the network's input, its label an attribute, and an iterator of something else."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self):
        return iter([("x", self.x), ("y", self.y)])

    def to(self, device: Any) -> Graph:
        return Graph(self.x.to(device), self.y.to(device))


class OnGraphs(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(8, 3)

    def forward(self, graph: Graph) -> Tensor:
        return self.layer(graph.x)


def plain(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(8, 3)


class Named(nn.Module):
    """Takes its inputs by name."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.layer = plain(seed)

    def forward(self, image: Tensor, name: Any = None) -> Tensor:
        return self.layer(image)


BATCHES: dict[str, tuple[Any, Any, str, str | None]] = {
    "dataclass": (plain, Sample(X, Y), "target", None),
    "dataclass with a mask": (plain, Sample(X, Y, MASK), "label", "counts"),
    "named tuple, label first": (plain, LabelFirst(Y, X), "target", None),
    "named tuple of four": (Named, Four(X, MASK, Y, list("abcd")), "target", "counts"),
    "named tuple by position": (plain, XY(X, Y), "target", None),
    "user dict": (plain, Encoding(image=X, labels=Y), "labels", None),
    "graph": (OnGraphs, Graph(X, Y), "y", None),
}


class Host(LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 0 * self.network(batch if isinstance(batch, Graph) else X).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_of_any_form_trains_and_is_evaluated(name: str, tmp_path):
    build, batch, target, mask = BATCHES[name]
    student, teacher = build(1), build(2)
    terms = {
        "task": Term(TaskLoss(), teacher=None, target=target, mask=mask),
        "kd": Term(KDLoss(2.0), target=target, mask=mask),
    }
    learner = OfflineDistiller(student, teacher, terms)
    found = {key: value.item() for key, value in learner.compute_losses(batch).items()}
    kept = MASK.bool() if mask else torch.ones(4).bool()
    z = next(module for module in student.modules() if isinstance(module, nn.Linear))(X)
    assert found["task"] == pytest.approx(F.cross_entropy(z[kept], Y[kept]).item())

    trainer = toys.trainer(tmp_path, max_steps=1)
    trainer.callbacks.append(Distillation("network", teacher, terms))
    trainer.fit(Host(student), toys.Loader([batch]))
    assert {key: trainer.callback_metrics[f"train/{key}"].item() for key in terms} == pytest.approx(found)

    (measured,) = toys.trainer(tmp_path).validate(learner, toys.Loader([batch]), verbose=False)
    assert measured["val/nll"] == pytest.approx(F.cross_entropy(z, Y).item())


def test_labels_and_inputs_of_an_object_are_addressed_by_name():
    graph = Graph(X, Y)
    split = split_batch(graph, ["y", "input.x", "missing"])
    assert split.student is graph
    assert list(split.labels) == ["y", "input.x"]
    assert split.labels["input.x"] is X


def test_an_object_without_labels_is_an_unlabelled_batch():
    class Bare:
        x = X

    bare = Bare()
    assert split_batch(bare) == (bare, bare, {})
