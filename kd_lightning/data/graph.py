"""KNNGraphDataModule: images as the nodes of the graph of their nearest neighbours."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.data.base import SourceDataModule
from kd_lightning.data.checks import check_whole
from kd_lightning.data.loaders import EvaluationLoader, ImageBatch, TrainLoader
from kd_lightning.data.sources.base import LabeledImages, Source
from kd_lightning.data.split import split_rows
from kd_lightning.data.views.base import EvaluationViewLoader, TrainViewLoader


class KNNGraphDataModule(SourceDataModule):
    """Images on the graph of their k nearest neighbours, of which few are labeled.

    Each image is a node, joined to its k nearest by Euclidean distance of the pixels, in both directions.

    A batch is a mapping: ``graph`` is the input of a graph network, the features ``x`` of all nodes, ``edge_index`` and
    the batch's ``nodes``; ``features`` that of any other network, the features of the batch's nodes alone. Beside them
    are ``edge_index`` for a loss, ``target`` and ``index``, the nodes' numbers.

    Args:
        source: The images, such as `Digits` or `MNIST`.
        nodes: The images that are nodes: those of the ``test`` set, or ``all``, training images first.
        batch_size: Nodes a batch, on each process.
        num_labeled: Nodes with a label, spread evenly over the classes.
        val_size: Validation nodes; with 0 there is no validation.
        num_inductive_nodes: Nodes that are not in the graph of training, to test on in the whole graph (inductive).
            With 0, the test is on all nodes that are neither labeled nor validated on (transductive).
        train_nodes: The nodes of training batches: ``labeled``, or ``all`` of the training graph, without any target,
            for a student that learns from a teacher alone.
        k: Number of nearest nodes that each is joined to.
        rewire: Join nodes at random instead, an ablation: the same graph with its nodes permuted.
        seed: Chooses the nodes and their order.
        drop_last: Leave out the rest of a pass after its last full global batch; no effect with `steps_per_epoch`.
        steps_per_epoch: Full batches in an epoch; without it, an epoch is one pass.
        eval_batch_size: At most this many nodes a batch outside training, on each process.

    Raises:
        UsageError: An argument is out of its range, or the source cannot be read.

    Example:
        >>> from kd_lightning.data import Digits
        >>> data = KNNGraphDataModule(Digits(), num_labeled=20, val_size=0, batch_size=20)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["features"].shape, batch["graph"]["x"].shape
        (torch.Size([20, 64]), torch.Size([500, 64]))
    """

    training_is_random = False
    """False: a node's features never change; see `kd_lightning.core.protocols.ProvidesTrainingRows`."""
    example_input_array = None
    """None, because the scheme chooses each network's view."""

    def __init__(
        self,
        source: Source,
        nodes: Literal["test", "all"] = "test",
        batch_size: int = 64,
        num_labeled: int = 20,
        val_size: int = 200,
        num_inductive_nodes: int = 0,
        train_nodes: Literal["labeled", "all"] = "labeled",
        k: int = 10,
        rewire: bool = False,
        seed: int = 0,
        drop_last: bool = True,
        steps_per_epoch: int | None = None,
        eval_batch_size: int = 2000,
    ) -> None:
        hyperparameters = {
            "nodes": nodes,
            "batch_size": batch_size,
            "num_labeled": num_labeled,
            "val_size": val_size,
            "num_inductive_nodes": num_inductive_nodes,
            "train_nodes": train_nodes,
            "k": k,
            "rewire": rewire,
            "seed": seed,
            "drop_last": drop_last,
            "steps_per_epoch": steps_per_epoch,
            "eval_batch_size": eval_batch_size,
        }
        super().__init__(source, eval_batch_size, None, hyperparameters)
        check_whole("batch_size", batch_size, least=1)
        check_whole("num_labeled", num_labeled, least=source.num_classes)
        check_whole("val_size", val_size, least=0)
        check_whole("num_inductive_nodes", num_inductive_nodes, least=0)
        check_whole("k", k, least=1)
        check_whole("seed", seed, least=0)
        check_whole("steps_per_epoch", steps_per_epoch, least=1, optional=True)
        if nodes not in ("test", "all"):
            raise UsageError(f"nodes={nodes!r} is neither 'test' nor 'all'")
        if train_nodes not in ("labeled", "all"):
            raise UsageError(f"train_nodes={train_nodes!r} is neither 'labeled' nor 'all'")
        self.nodes = nodes
        self.batch_size = batch_size
        self.num_labeled = num_labeled
        self.val_size = val_size
        self.num_inductive_nodes = num_inductive_nodes
        self.train_nodes = train_nodes
        self.k = k
        self.rewire = rewire
        self.seed = seed
        self.drop_last = drop_last
        self.steps_per_epoch = steps_per_epoch
        if num_labeled + val_size + num_inductive_nodes >= self.num_rows:
            raise UsageError(
                f"num_labeled={num_labeled}, val_size={val_size} and num_inductive_nodes={num_inductive_nodes} must "
                f"leave some of the {self.num_rows} nodes for the test: lower one of them"
            )

    # ---- the graph

    @cached_property
    def node_set(self) -> LabeledImages:
        """Images and labels of all nodes."""
        if self.nodes == "test":
            return self.test_set
        both = zip(self._checked(self.source.train(), "train"), self.test_set, strict=True)
        return LabeledImages(*(torch.cat(tensors) for tensors in both))

    @property
    def num_rows(self) -> int:
        """Number of nodes, training and test together."""
        return len(self.node_set.labels)

    @cached_property
    def parts(self) -> dict[str, Tensor]:
        """Numbers of the nodes: ``labeled``, ``val``, ``test``, and ``visible``, those of the graph of training."""
        labels = self.node_set.labels
        labeled, val = split_rows(labels, self.num_labeled, self.val_size, self.seed)
        rest = torch.arange(len(labels))
        rest = rest[~torch.isin(rest, torch.cat((labeled, val)))]
        numbers = random.Random(f"{self.seed} unseen")
        order = torch.tensor([numbers.random() for _ in range(len(rest))], dtype=torch.float64).argsort(stable=True)
        inductive = rest[order[: self.num_inductive_nodes]].sort().values
        visible = torch.arange(len(labels))
        visible = visible[~torch.isin(visible, inductive)]
        test = inductive if self.num_inductive_nodes else rest
        return {"labeled": labeled, "val": val, "test": test, "visible": visible}

    @cached_property
    def features(self) -> Tensor:
        """Features of all nodes, float32 (N, pixels) in [0, 1]."""
        return self.node_set.images.flatten(1).div(255)

    @cached_property
    def edges(self) -> Tensor:
        """The whole graph, int64 (2, E)."""
        edges = nearest_neighbor_edges(self.node_set.images, self.k)
        if not self.rewire:
            return edges
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed} shuffled").getrandbits(63))
        return torch.randperm(self.num_rows, generator=generator)[edges]

    @cached_property
    def visible_edges(self) -> Tensor:
        """The edges between nodes of the graph of training."""
        return self.edges[:, torch.isin(self.edges, self.parts["visible"]).all(dim=0)]

    # ---- loaders

    def setup(self, stage: str) -> None:
        """Split the nodes and compute the edges before training starts."""
        self._prepare_validation(stage, self.val_size)
        _ = self.parts, self.visible_edges

    def train_rows(self, rank: int = 0, world_size: int = 1, batch_size: int | None = None) -> EvaluationViewLoader:
        """Batches of every training node once; see `kd_lightning.core.protocols.ProvidesTrainingRows`."""
        size = min(batch_size or self.eval_batch_size, self.eval_batch_size)
        loader = EvaluationLoader(self._resident(self.node_set), self._train_rows, size, None, rank, world_size)
        return EvaluationViewLoader(loader, self._views(self.visible_edges))

    def train_dataloader(self) -> TrainViewLoader:
        """Return a loader of shuffled training nodes; without targets if not all of them are labeled."""
        self._refuse_overfit_batches()
        rank, world_size = self._rank_and_world_size()
        loader = TrainLoader(
            self._resident(self.node_set),
            self._train_rows,
            self.batch_size,
            self.seed,
            steps_per_epoch=self.steps_per_epoch,
            drop_last=self.drop_last,
            rank=rank,
            world_size=world_size,
            completed_batches=self._progress(),
        )
        return TrainViewLoader(loader, self._views(self.visible_edges, with_target=self.train_nodes == "labeled"))

    def val_dataloader(self) -> EvaluationViewLoader | list[Any]:
        """Return a loader of the validation nodes, in the training graph, or an empty list."""
        return self._evaluation_loader("val", self.visible_edges) if self.val_size else []

    def test_dataloader(self) -> EvaluationViewLoader:
        """Return a loader of the test nodes, in the whole graph."""
        return self._evaluation_loader("test", self.edges)

    # ---- inside

    @property
    def _train_rows(self) -> Tensor:
        return self.parts["labeled" if self.train_nodes == "labeled" else "visible"]

    def _evaluation_loader(self, part: str, edges: Tensor) -> EvaluationViewLoader:
        data, ranks = self._resident(self.node_set), self._rank_and_world_size()
        loader = EvaluationLoader(data, self.parts[part], self.eval_batch_size, None, *ranks)
        return EvaluationViewLoader(loader, self._views(edges))

    def _views(self, edges: Tensor, with_target: bool = True) -> Callable[[ImageBatch], dict[str, Any]]:
        def views(batch: ImageBatch) -> dict[str, Any]:
            x, y, index = batch
            edge_index = self._on_device(edges)
            graph = {"x": self._on_device(self.features), "edge_index": edge_index, "nodes": index}
            inputs = {"graph": graph, "features": x.flatten(1), "edge_index": edge_index}
            return inputs | ({"target": y} if with_target else {}) | {"index": index}

        return views


@lru_cache(maxsize=4)
def nearest_neighbor_edges(images: Tensor, k: int) -> Tensor:
    """Join each image to its k nearest by Euclidean distance of the pixels, in both directions.

    Args:
        images: uint8 (N, C, H, W); a second call with the same tensor computes nothing.
        k: Number of nearest images.

    Returns:
        Edges int64 (2, E), each once, in ascending order.

    Example:
        >>> nearest_neighbor_edges(torch.tensor([0, 10, 200], dtype=torch.uint8).view(3, 1, 1, 1), k=1).tolist()
        [[0, 1, 1, 2], [1, 0, 2, 1]]
    """
    # integers, whose squared distances are exact in double precision: the same graph on every machine
    x = images.flatten(1).double()
    squares = x.square().sum(dim=1)
    near: list[Tensor] = []
    for rows in torch.arange(len(x)).split(1000):
        distances = squares[rows].unsqueeze(1) + squares - 2 * x[rows] @ x.T
        distances[torch.arange(len(rows)), rows] = torch.inf
        near.append(distances.sort(dim=1, stable=True).indices[:, :k])
    source = torch.cat(near).flatten()
    target = torch.arange(len(x)).repeat_interleave(k)
    return torch.cat((torch.stack((source, target)), torch.stack((target, source))), dim=1).unique(dim=1)
