from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.networks import GCNConvolution, GraphNetwork, ModalityEnsemble, SAGEConvolution
from tests.losses.case import other_implementation

EDGES = torch.tensor([[0, 1, 2, 0, 3, 1], [1, 0, 0, 2, 0, 2]])
"""Edges between five nodes; the last one has none."""


def nodes() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def product(weight: Tensor, x: Tensor) -> list[float]:
    return [sum(w * v for w, v in zip(row, x.tolist(), strict=True)) for row in weight.tolist()]


def test_gcn_is_that_of_naive_loops():
    convolution, x = GCNConvolution(4, 3).double(), nodes()
    edges = [*EDGES.T.tolist(), *([i, i] for i in range(5))]
    degree = [sum(target == i for _, target in edges) for i in range(5)]
    expected = []
    for i in range(5):
        shown = [(j, product(convolution.linear.weight, x[j])) for j, target in edges if target == i]
        sums = [sum(w[c] / (degree[i] * degree[j]) ** 0.5 for j, w in shown) for c in range(3)]
        expected.append([s + b for s, b in zip(sums, convolution.linear.bias.tolist(), strict=True)])
    torch.testing.assert_close(convolution(x, EDGES), torch.tensor(expected, dtype=torch.float64))


def test_sage_is_that_of_naive_loops():
    convolution, x = SAGEConvolution(4, 3).double(), nodes()
    expected = []
    for i in range(5):
        near = [x[j] for j, target in EDGES.T.tolist() if target == i]
        mean = sum(near) / len(near) if near else torch.zeros(4)
        own, other = product(convolution.own.weight, x[i]), product(convolution.neighbours.weight, mean)
        expected.append([a + b + c for a, b, c in zip(own, other, convolution.own.bias.tolist(), strict=True)])
    torch.testing.assert_close(convolution(x, EDGES), torch.tensor(expected, dtype=torch.float64))


def test_both_are_those_of_torch_geometric():
    theirs = other_implementation("torch_geometric.nn")
    gcn, sage = GCNConvolution(4, 3), SAGEConvolution(4, 3)
    other_gcn, other_sage = theirs.GCNConv(4, 3), theirs.SAGEConv(4, 3)
    other_gcn.load_state_dict({"lin.weight": gcn.linear.weight, "bias": gcn.linear.bias})
    other_sage.load_state_dict(
        {"lin_r.weight": sage.own.weight, "lin_l.bias": sage.own.bias, "lin_l.weight": sage.neighbours.weight}
    )
    x = nodes().float()
    torch.testing.assert_close(gcn(x, EDGES), other_gcn(x, EDGES))
    torch.testing.assert_close(sage(x, EDGES), other_sage(x, EDGES))


@pytest.mark.parametrize("convolution", ["gcn", "sage"])
def test_a_node_depends_on_as_many_steps_as_there_are_convolutions(convolution: str):
    torch.manual_seed(0)
    line = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    network = GraphNetwork(4, [8, 8], convolution=convolution).eval()
    x = nodes().float().requires_grad_()
    network(x, line, nodes=torch.tensor([4])).sum().backward()
    assert x.grad.abs().sum(dim=1).bool().tolist() == [False, True, True, True, True]
    assert torch.equal(network(x, line)[4:], network(x, line, torch.tensor([4])))


def test_invalid_networks_are_refused():
    with pytest.raises(ValueError, match="hidden is empty"):
        GraphNetwork(4, [])
    with pytest.raises(ValueError, match="convolution='gat' is unknown: use one of gcn, sage"):
        GraphNetwork(4, convolution="gat")


def test_each_member_of_an_ensemble_of_modalities_gets_its_own_input():
    torch.manual_seed(0)
    a, b = nn.Linear(3, 2), nn.Linear(5, 2)
    ensemble = ModalityEnsemble({"a": a, "b": b})
    x, y = torch.randn(4, 3), torch.randn(4, 5)
    assert torch.equal(ensemble(b=y, a=x), torch.stack((a(x), b(y)), dim=1))
    with pytest.raises(
        ValueError, match=r"the input 'b' is missing among a: add it to the scheme's modalities.teacher"
    ):
        ensemble(a=x)
    with pytest.raises(ValueError, match=r"members.a \(Linear\) has logits \(4, 2\) and members.b \(Linear\) \(4, 3\)"):
        ModalityEnsemble({"a": a, "b": nn.Linear(5, 3)})(a=x, b=y)
    with pytest.raises(ValueError, match="members is empty"):
        ModalityEnsemble({})
