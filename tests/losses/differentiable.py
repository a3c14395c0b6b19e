"""Wrapper for losses that differentiate by the input: builds logits and input from the values of the shared tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ByItsInput(nn.Module):
    """Compare the parameters p of each sample: the logits are tanh(x A) p, with one input x for all samples."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.register_buffer("a", torch.randn(5, 12, generator=torch.Generator().manual_seed(1)))
        self.register_buffer("x", torch.randn(1, 5, generator=torch.Generator().manual_seed(2)))

    @property
    def needs_target(self) -> bool:
        return getattr(self.loss, "needs_target", False)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        return self.loss(self.network(student), self.network(teacher), target)

    def network(self, p: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", enabled=False):  # autocast is tested on the loss, not on this network
            return self.logits_and_input(p)

    def logits_and_input(self, p: Tensor) -> list[Tensor]:
        x = self.x.expand(len(p), -1).to(torch.promote_types(p.dtype, torch.float32)).clone().requires_grad_()
        return [(x @ self.a.to(x.dtype)).tanh() * p, x]
