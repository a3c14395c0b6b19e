from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from kd_lightning.networks import BranchedEnsemble, GatingNetwork, branch


def test_the_weights_are_those_of_the_formula_written_out():
    torch.manual_seed(0)
    gate, x = GatingNetwork(features=6, branches=3).double(), torch.randn(5, 6, 4, 2, dtype=torch.float64)
    pooled = torch.stack([torch.stack([x[n, c].sum() / 8 for c in range(6)]) for n in range(5)])
    scores = pooled @ gate.linear.weight.T + gate.linear.bias
    centred = scores - scores.mean(dim=0)
    scores = centred / ((centred**2).mean(dim=0) + 1e-5).sqrt()
    weights = scores.clamp(min=0).exp()
    weights = weights / weights.sum(dim=1, keepdim=True)
    assert torch.allclose(gate(x), weights, rtol=0, atol=1e-12)
    assert torch.allclose(gate(pooled), weights, rtol=0, atol=1e-12)
    assert weights.std(dim=0).min() > 0.01

    for wrong in (torch.randn(5, 7), torch.randn(5, 6, 3), torch.randn(5, 4, 6, 6)):
        with pytest.raises(
            ValueError, match=r"gate_features=6, but the last shared layer gives \(5, .*: set gate_features to"
        ):
            gate(wrong)


@pytest.mark.parametrize("positions", [(), (3, 2)])
def test_the_logits_are_the_weighted_sum_of_the_branches_and_shared_layers_run_once(positions):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))
    if positions:  # logits of pixels
        network = nn.Sequential(nn.Conv2d(8, 6, 1), nn.Tanh(), nn.Conv2d(6, 4, 1))
    branches = [branch(network, ["0", "1"]) for _ in range(2)]
    ensemble = BranchedEnsemble(network, "1", branches, GatingNetwork(6, 3)).double().eval()
    runs: list[int] = []
    network[0].register_forward_hook(lambda *_: runs.append(1))
    x = torch.randn(5, 8, *positions, dtype=torch.float64)
    logits, together = ensemble.all_logits(x)
    assert len(runs) == 1
    assert torch.equal(ensemble(x), together)

    features = torch.tanh(network[0](x))
    each = [upper[2](features) for upper in (network, *branches)]
    weights = ensemble.gate(features)
    naive = torch.stack([sum(weights[n, k] * each[k][n] for k in range(3)) for n in range(5)])
    assert torch.allclose(together, naive, rtol=0, atol=1e-12)
    assert all(torch.allclose(one, other, rtol=0, atol=1e-12) for one, other in zip(logits, each, strict=True))
    assert functional.mse_loss(each[1], each[2]) > 1e-3
