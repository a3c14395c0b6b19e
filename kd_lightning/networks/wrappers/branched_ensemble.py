"""Branches on shared lower layers as one network, with a gating network that weights their logits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.core.activations import tap
from kd_lightning.core.errors import UsageError
from kd_lightning.core.network_call import run


class GatingNetwork(nn.Module):
    """Compute each branch's weight for each sample, as in ONE: softmax(ReLU(BatchNorm(W pool(F)))).

    Xu Lan, Xiatian Zhu, Shaogang Gong: Knowledge Distillation by On-the-Fly Native Ensemble. NeurIPS 2018
    (arXiv:1806.04606).

    Args:
        features: Channels of the last shared layer.
        branches: Number of branches.

    Shapes:
        Input (N, features) or (N, features, H, W), which is averaged over H and W; output (N, branches), rows of sum 1.

    Raises:
        UsageError: At a call: the input has another shape.

    Example:
        >>> GatingNetwork(features=8, branches=2)(torch.zeros(3, 8, 5, 5))[0]
        tensor([0.5000, 0.5000], grad_fn=<SelectBackward0>)
    """

    def __init__(self, features: int, branches: int) -> None:
        super().__init__()
        self.features = features
        self.linear = nn.Linear(features, branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, features: Tensor) -> Tensor:
        """Return the weights, (N, branches)."""
        if features.dim() not in (2, 4) or features.shape[1] != self.features:
            raise UsageError(
                f"gate_features={self.features}, but the last shared layer gives {tuple(features.shape)}: set "
                "gate_features to its channels; its output must be (N, C) or (N, C, H, W)"
            )
        pooled = features.mean(dim=(2, 3)) if features.dim() == 4 else features
        return self.norm(self.linear(pooled)).relu().softmax(dim=1)


class BranchedEnsemble(nn.Module):
    """Combine a network, further branches of it and a gating network into one: z = sum_i g_i z_i.

    Args:
        network: The first branch, with the layers that all branches share.
        layer: Dotted name of the last shared layer.
        branches: The other branches, as `branch` makes them.
        gate: Computes the weights (N, branches) of all branches, `network` first, from the output of `layer`.

    Example:
        >>> from kd_lightning.networks import branch
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> ensemble = BranchedEnsemble(network, "1", [branch(network, ["0", "1"])], GatingNetwork(8, 2))
        >>> ensemble(torch.zeros(5, 4)).shape
        torch.Size([5, 3])
    """

    def __init__(self, network: nn.Module, layer: str, branches: Iterable[nn.Module], gate: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.layer = layer
        self.branches = nn.ModuleList(branches)
        self.gate = gate

    def forward(self, inputs: Any) -> Tensor:
        """Return the ensemble's logits."""
        return self.all_logits(inputs)[1]

    def all_logits(self, inputs: Any) -> tuple[list[Tensor], Tensor]:
        """Return the logits of each branch, and those of the ensemble."""
        activations = tap(self.network, inputs, [self.layer, "logits"])
        features = activations[self.layer]
        logits = [activations["logits"], *(run(upper_layers, features) for upper_layers in self.branches)]
        # n = batch, k = branches
        return logits, torch.einsum("nk,nk...->n...", self.gate(features), torch.stack(logits, dim=1))
