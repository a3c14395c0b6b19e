from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch

from kd_lightning import UsageError
from kd_lightning.data import DigitGraphDataModule
from kd_lightning.data import graph as module
from kd_lightning.data.graph import nearest_neighbours, read_digits


def data(**changes: Any) -> DigitGraphDataModule:
    return DigitGraphDataModule(**{"labels": 20, "batch_size": 20, "neighbours": 4} | changes)


def test_neighbours_are_those_of_naive_loops():
    images = read_digits().images.flatten(1).tolist()
    edges = {tuple(edge) for edge in nearest_neighbours("sklearn", 4).T.tolist()}
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
    assert torch.equal(seen["target"], read_digits().labels[seen["index"]])
    assert seen["edge_index"] is seen["graph"]["edge_index"]


def test_what_is_trained_validated_and_tested_on_are_three_sets_and_training_shows_no_other_label():
    for unseen in (0, 300):
        given = data(unseen=unseen, learn_from="all", batch_size=50)
        parts = {name: set(rows.tolist()) for name, rows in given.parts.items()}
        assert not parts["labelled"] & (parts["val"] | parts["test"])
        assert not parts["val"] & parts["test"]
        assert len(parts["labelled"]) == 20
        assert len(parts["val"]) == 200
        assert len(parts["test"]) == (unseen or 1797 - 220)
        assert parts["seen"] == set(range(1797)) - (parts["test"] if unseen else set())
        training = list(given.train_dataloader())
        assert all("target" not in batch for batch in training)
        learned = torch.cat([batch["index"] for batch in training]).tolist()
        assert set(learned) <= parts["seen"]
        shown = set(training[0]["edge_index"].flatten().tolist())
        assert shown <= parts["seen"]
        tested = list(given.test_dataloader())
        assert {row for batch in tested for row in batch["index"].tolist()} == parts["test"]
        assert tested[0]["edge_index"].shape == given.edges.shape


def test_a_shuffled_graph_is_the_same_graph_of_other_nodes():
    plain, shuffled = data().edges, data(shuffled=True).edges
    assert not torch.equal(plain, shuffled)
    assert torch.equal(plain[1].bincount().sort().values, shuffled[1].bincount().sort().values)
    assert {tuple(edge) for edge in shuffled.T.tolist()} == {(j, i) for i, j in shuffled.T.tolist()}
    labels = read_digits().labels
    alike = [(labels[edges[0]] == labels[edges[1]]).float().mean().item() for edges in (plain, shuffled)]
    assert alike[0] > 0.95
    assert alike[1] == pytest.approx(0.1, abs=0.03)


def test_the_same_seed_is_the_same_split_and_order():
    one, other = (next(iter(data(seed=3, unseen=50).train_dataloader()))["index"] for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(data(seed=3, unseen=50).parts["test"], data(seed=3, unseen=50).parts["test"])
    assert not torch.equal(data(seed=3, unseen=50).parts["test"], data(seed=4, unseen=50).parts["test"])
    assert data(unseen=50).hparams["unseen"] == 50
    assert "train_size" not in data().hparams


def test_what_does_not_fit_is_refused(monkeypatch):
    for changes, message in (
        ({"digits": "usps"}, "digits='usps' is neither 'sklearn' nor 'mnist'"),
        ({"learn_from": "some"}, "learn_from='some' is neither 'labelled' nor 'all'"),
        ({"labels": 5}, "labels=5 must be at least 10"),
        ({"unseen": 1600}, "must leave some of the 1797 nodes to test on"),
        ({"neighbours": 0}, "and neighbours=0 at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            data(**changes)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    module.read_digits.cache_clear()
    with pytest.raises(UsageError, match=r"needs scikit-learn: pip install 'kd-lightning\[graph\]'"):
        data()
