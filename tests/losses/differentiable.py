"""Losses that differentiate by the input, for a harness that hands over values: small networks are put before them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ByItsInput(nn.Module):
    """It compares a sample's parameters p; its logits are tanh(x A) p, of an input x that is the same for all."""

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
        with torch.autocast("cpu", enabled=False):  # which is the networks' own affair
            return self.answer(p)

    def answer(self, p: Tensor) -> list[Tensor]:
        x = self.x.expand(len(p), -1).to(torch.promote_types(p.dtype, torch.float32)).clone().requires_grad_()
        return [(x @ self.a.to(x.dtype)).tanh() * p, x]
