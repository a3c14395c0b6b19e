from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning import UsageError
from kd_lightning.core.protocols import ProvidesAugmentedRows, ProvidesTrainingRows
from kd_lightning.data import MNIST, Digits, KNNGraphDataModule
from kd_lightning.data.graph import nearest_neighbor_edges
from tests.data.shapes import Shapes


def data(**changes: Any) -> KNNGraphDataModule:
    given = {"source": Digits(), "nodes": "all", "num_labeled": 20, "batch_size": 20, "k": 4}
    return KNNGraphDataModule(**given | changes)


def digits() -> Tensor:
    return torch.cat((Digits().train().images, Digits().test().images))


def labels() -> Tensor:
    return torch.cat((Digits().train().labels, Digits().test().labels))


def test_neighbours_are_those_of_naive_loops():
    images = digits().flatten(1).tolist()
    edges = {tuple(edge) for edge in nearest_neighbor_edges(digits(), 4).T.tolist()}
    assert edges == {(j, i) for i, j in edges}
    assert not [edge for edge in edges if edge[0] == edge[1]]
    near: dict[int, list[int]] = {}
    for i in (0, 77, 1796):
        order = sorted((j for j in range(1797) if j != i), key=lambda j: math.dist(images[i], images[j]))
        near[i] = order[:4]
    for i, four in near.items():
        own = {j for j, k in edges if k == i}
        assert set(four) <= own
        for j in own - set(four):  # whose own neighbour i is
            closer = sum(math.dist(images[j], images[k]) < math.dist(images[j], images[i]) for k in range(1797)) - 1
            assert closer < 4


def test_a_batch_has_a_view_for_each_kind_of_network():
    seen = next(iter(data().train_dataloader()))
    assert seen["features"].shape == (20, 64)
    assert torch.equal(seen["graph"]["x"][seen["index"]], seen["features"])
    assert torch.equal(seen["graph"]["nodes"], seen["index"])
    assert seen["target"].bincount().tolist() == [2] * 10
    assert torch.equal(seen["target"], labels()[seen["index"]])
    assert seen["edge_index"] is seen["graph"]["edge_index"]


def test_training_validation_and_test_nodes_are_disjoint_and_training_has_no_other_label():
    for inductive in (0, 300):
        given = data(num_inductive_nodes=inductive, train_nodes="all", batch_size=50)
        parts = {name: set(rows.tolist()) for name, rows in given.parts.items()}
        assert not parts["labeled"] & (parts["val"] | parts["test"])
        assert not parts["val"] & parts["test"]
        assert len(parts["labeled"]) == 20
        assert len(parts["val"]) == 200
        assert len(parts["test"]) == (inductive or 1797 - 220)
        assert parts["visible"] == set(range(1797)) - (parts["test"] if inductive else set())
        training = list(given.train_dataloader())
        assert all("target" not in batch for batch in training)
        learned = torch.cat([batch["index"] for batch in training]).tolist()
        assert set(learned) <= parts["visible"]
        shown = set(training[0]["edge_index"].flatten().tolist())
        assert shown <= parts["visible"]
        tested = list(given.test_dataloader())
        assert {row for batch in tested for row in batch["index"].tolist()} == parts["test"]
        assert tested[0]["edge_index"].shape == given.edges.shape


def test_a_rewired_graph_is_the_same_graph_of_other_nodes():
    plain, rewired = data().edges, data(rewire=True).edges
    assert not torch.equal(plain, rewired)
    assert torch.equal(plain[1].bincount().sort().values, rewired[1].bincount().sort().values)
    assert {tuple(edge) for edge in rewired.T.tolist()} == {(j, i) for i, j in rewired.T.tolist()}
    known = labels()
    alike = [(known[edges[0]] == known[edges[1]]).float().mean().item() for edges in (plain, rewired)]
    assert alike[0] > 0.95
    assert alike[1] == pytest.approx(0.1, abs=0.03)


def test_the_same_seed_is_the_same_split_and_order():
    one, other = (next(iter(data(seed=3, num_inductive_nodes=50).train_dataloader()))["index"] for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(
        data(seed=3, num_inductive_nodes=50).parts["test"], data(seed=3, num_inductive_nodes=50).parts["test"]
    )
    assert not torch.equal(
        data(seed=3, num_inductive_nodes=50).parts["test"], data(seed=4, num_inductive_nodes=50).parts["test"]
    )
    assert data(num_inductive_nodes=50).hparams["num_inductive_nodes"] == 50
    assert "train_size" not in data().hparams


def test_nodes_are_the_images_of_the_test_set_or_all_of_any_source():
    for nodes, count in (("test", 30), ("all", 230)):
        given = data(source=(source := Shapes()), nodes=nodes, num_labeled=8, val_size=8, batch_size=4)
        assert given.num_rows == len(given.features) == count
        assert set(source.reads) == ({"test"} if nodes == "test" else {"test", "train"})
        assert next(iter(given.test_dataloader()))["features"].shape == (count - 16, 60)
    assert torch.equal(KNNGraphDataModule(MNIST()).node_set.images, MNIST().test().images)


def test_every_node_of_training_batches_can_be_visited_once_with_its_target():
    for train_nodes, count in (("labeled", 20), ("all", 1797)):
        given = data(train_nodes=train_nodes)
        assert isinstance(given, ProvidesTrainingRows)
        assert not isinstance(given, ProvidesAugmentedRows)
        batches = [batch for rank in range(2) for batch in given.train_rows(rank, 2, batch_size=500)]
        index = torch.cat([batch["index"] for batch in batches])
        assert sorted(index.tolist()) == given.parts["labeled" if train_nodes == "labeled" else "visible"].tolist()
        assert len(index) == count
        assert torch.equal(torch.cat([batch["target"] for batch in batches]), labels()[index])


def test_training_resumes_at_any_batch():
    loader = data(num_labeled=60).train_dataloader()
    truth = [batch["index"] for _ in range(3) for batch in loader]
    assert len(loader) == 3
    for start in range(7):
        resumed = data(num_labeled=60).train_dataloader()
        resumed.load_state_dict({"position": start})
        assert all(map(torch.equal, [batch["index"] for batch in resumed], truth[start : start + 3]))


def test_without_validation_nodes_a_fit_has_no_validation():
    given = data(val_size=0)
    assert given.val_dataloader() == []
    with pytest.raises(UsageError, match="val_size=0 leaves no validation images"):
        given.setup("validate")


def test_arguments_that_do_not_fit_are_refused():
    for changes, message in (
        ({"nodes": "train"}, "nodes='train' is neither 'test' nor 'all'"),
        ({"train_nodes": "some"}, "train_nodes='some' is neither 'labeled' nor 'all'"),
        ({"num_labeled": 5}, "num_labeled=5 is not a whole number of at least 10"),
        ({"num_inductive_nodes": 1600}, "must leave some of the 1797 nodes for the test"),
        ({"num_inductive_nodes": -1}, "num_inductive_nodes=-1 is not a whole number of at least 0"),
        ({"k": 0}, "k=0 is not a whole number of at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            data(**changes)
