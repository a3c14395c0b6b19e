"""Digits as a graph: each is a node, joined to those that look most like it."""

from __future__ import annotations

import random
from functools import cache, cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.data.idx import LabelledImages
from kd_lightning.data.mnist import PACKAGED, read_published
from kd_lightning.data.split import split_rows
from kd_lightning.data.tensors import Batch, EvaluationLoader
from kd_lightning.data.views import InViews, ViewsDataModule


class DigitGraphDataModule(ViewsDataModule):
    """Real digits on the graph of their nearest neighbours, few of them with a label.

    Nodes are the 1,797 digits of 8 x 8 pixels that scikit-learn ships (Alpaydin, Kaynak: Optical Recognition of
    Handwritten Digits, UCI), or the 10,000 test images of MNIST. Each is joined to its nearest by Euclidean distance,
    in both directions.

    A batch is a mapping: ``graph`` is what a graph network sees, the features ``x`` of all nodes, ``edge_index`` and
    the batch's ``nodes``; ``features`` what any other network sees, the features of the batch's nodes alone. Beside
    them are ``edge_index`` for a loss, ``target`` and ``index``, the nodes' numbers.

    Args:
        digits: ``sklearn`` (needs scikit-learn), or ``mnist``.
        batch_size: Nodes a batch, on each process.
        labels: How many nodes have a label, spread evenly over the classes.
        val_size: Nodes to validate on.
        unseen: Nodes that are not in the graph of training, to test on in the whole graph (inductive). With 0, the test
            is on all nodes that are neither labelled nor validated on (transductive).
        learn_from: The nodes of training batches: ``labelled``, or ``all`` that training sees, which is what a student
            learns from that needs no label. No node's label but that of a labelled one is given then.
        neighbours: How many nearest nodes each is joined to.
        shuffled: Join nodes at random instead: the same graph with its nodes' names exchanged.
        seed: Chooses the nodes and their order.
        drop_last: Leave out what is left of a pass after the last full global batch; of no effect with `epoch_steps`.
        epoch_steps: Full batches in an epoch; without it, an epoch is one pass.
        eval_batch_size: At most this many nodes a batch outside training, on each process.

    Raises:
        UsageError: An argument is out of its range.
        UsageError: scikit-learn is not there.

    Example:
        >>> data = DigitGraphDataModule("mnist", labels=20, batch_size=20)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["features"].shape, batch["graph"]["x"].shape
        (torch.Size([20, 784]), torch.Size([10000, 784]))
    """

    def __init__(
        self,
        digits: Literal["sklearn", "mnist"] = "sklearn",
        batch_size: int = 64,
        labels: int = 20,
        val_size: int = 200,
        unseen: int = 0,
        learn_from: Literal["labelled", "all"] = "labelled",
        neighbours: int = 10,
        shuffled: bool = False,
        seed: int = 0,
        drop_last: bool = True,
        epoch_steps: int | None = None,
        eval_batch_size: int = 2000,
    ) -> None:
        if labels < 10:
            raise UsageError(f"labels={labels} must be at least 10, one of each digit")
        super().__init__(
            batch_size,
            labels,
            val_size,
            seed,
            drop_last=drop_last,
            epoch_steps=epoch_steps,
            eval_batch_size=eval_batch_size,
            channels=1,
        )
        if digits not in ("sklearn", "mnist"):
            raise UsageError(f"digits={digits!r} is neither 'sklearn' nor 'mnist'")
        if learn_from not in ("labelled", "all"):
            raise UsageError(f"learn_from={learn_from!r} is neither 'labelled' nor 'all'")
        available = len(_read(digits).labels)
        if unseen < 0 or neighbours < 1 or labels + val_size + unseen >= available:
            raise UsageError(
                f"labels={labels}, val_size={val_size} and unseen={unseen} must leave some of the {available} nodes to "
                f"test on, unseen be at least 0 and neighbours={neighbours} at least 1"
            )
        self.digits = digits
        self.unseen = unseen
        self.learn_from = learn_from
        self.neighbours = neighbours
        self.shuffled = shuffled
        own = {
            "digits": digits,
            "labels": labels,
            "unseen": unseen,
            "learn_from": learn_from,
            "neighbours": neighbours,
            "shuffled": shuffled,
        }
        for given in ("train_size", "channels", "views"):  # by MNIST's names
            del self.hparams[given]
        self.hparams.update(own)

    @cached_property
    def parts(self) -> dict[str, Tensor]:
        """The numbers of the nodes: ``labelled``, ``val``, ``test`` and ``seen``, those of training's graph."""
        labels = self.train_set.labels
        labelled, val = split_rows(labels, self.train_size, self.val_size, self.seed)
        taken = torch.cat((labelled, val))
        rest = torch.arange(len(labels))
        rest = rest[~torch.isin(rest, taken)]
        numbers = random.Random(f"{self.seed} unseen")
        order = torch.tensor([numbers.random() for _ in range(len(rest))], dtype=torch.float64).argsort(stable=True)
        unseen = rest[order[: self.unseen]].sort().values
        seen = torch.arange(len(labels))
        seen = seen[~torch.isin(seen, unseen)]
        return {"labelled": labelled, "val": val, "test": unseen if self.unseen else rest, "seen": seen}

    @cached_property
    def split(self) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The nodes of training batches, and those to validate on."""
        return self.parts["labelled" if self.learn_from == "labelled" else "seen"], self.parts["val"]

    def test_dataloader(self) -> InViews:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The nodes to test on, in the whole graph."""
        rank, world_size = self._rank_and_world_size()
        loader: EvaluationLoader = self._evaluation_loader(self.train_set, self.parts["test"], rank, world_size)
        return InViews(loader, self._test_views)

    @cached_property
    def features(self) -> Tensor:
        """Of all nodes, float32 (N, pixels) in [0, 1]."""
        return self.train_set.images.flatten(1).div(255)

    @cached_property
    def edges(self) -> Tensor:
        """The whole graph, int64 (2, E)."""
        edges = nearest_neighbours(self.digits, self.neighbours)
        if not self.shuffled:
            return edges
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed} shuffled").getrandbits(63))
        return torch.randperm(self.num_rows, generator=generator)[edges]

    @cached_property
    def seen_edges(self) -> Tensor:
        """Those between nodes that training sees."""
        return self.edges[:, torch.isin(self.edges, self.parts["seen"]).all(dim=0)]

    # ---- inside

    def _read(self, split: str) -> LabelledImages:
        return _read(self.digits)

    def _views_of(self, batch: Batch) -> dict[str, Any]:
        return self._shown(batch, self.seen_edges)

    def _train_views(self, batch: Batch) -> dict[str, Any]:
        shown = self._views_of(batch)
        if self.learn_from == "all":
            del shown["target"]
        return shown

    def _test_views(self, batch: Batch) -> dict[str, Any]:
        return self._shown(batch, self.edges)

    def _shown(self, batch: Batch, edges: Tensor) -> dict[str, Any]:
        x, y, index = batch
        edges = self._beside(edges, batch)
        return {
            "graph": {"x": self._beside(self.features, batch), "edge_index": edges, "nodes": index},
            "features": x.flatten(1),
            "edge_index": edges,
            "target": y,
            "index": index,
        }


def _read(digits: str) -> LabelledImages:
    return read_digits() if digits == "sklearn" else read_published(PACKAGED, "t10k")


@cache
def read_digits() -> LabelledImages:
    """scikit-learn's digits, their 17 levels of grey spread over a byte."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise UsageError("digits='sklearn' needs scikit-learn: pip install 'kd-lightning[graph]'") from None
    found: Any = load_digits()
    images = torch.from_numpy(found.images).mul(15).to(torch.uint8).unsqueeze(1)
    return LabelledImages(images, torch.from_numpy(found.target).long())


@cache
def nearest_neighbours(digits: str, neighbours: int) -> Tensor:
    """Edges int64 (2, E) between each image and its nearest, in both directions, each once."""
    images = _read(digits).images
    # whole numbers, whose squared distances a double holds exactly: the same graph on every machine
    x = images.flatten(1).double()
    squares = x.square().sum(dim=1)
    near: list[Tensor] = []
    for rows in torch.arange(len(x)).split(1000):
        distances = squares[rows].unsqueeze(1) + squares - 2 * x[rows] @ x.T
        distances[torch.arange(len(rows)), rows] = torch.inf
        near.append(distances.sort(dim=1, stable=True).indices[:, :neighbours])
    source = torch.cat(near).flatten()
    target = torch.arange(len(x)).repeat_interleave(neighbours)
    return torch.cat((torch.stack((source, target)), torch.stack((target, source))), dim=1).unique(dim=1)
