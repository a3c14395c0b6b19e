"""Norms of one process's gradients before DistributedDataParallel averages them with those of other processes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class LocalGradients:
    """Notes the norm of each gradient of this process, which tells in which process a value became non-finite.

    Args:
        module: The module to train, on its device; parameters that are frozen now are not noted.
    """

    def __init__(self, module: nn.Module) -> None:
        self.norms: list[Tensor] = []
        """Norms since the last optimizer step, in the order of the backward pass."""
        self._handles: list[Any] = [
            parameter.register_hook(self._note) for parameter in module.parameters() if parameter.requires_grad
        ]

    def _note(self, gradient: Tensor) -> None:
        self.norms.append(gradient.detach().float().norm())

    def take(self) -> list[Tensor]:
        """Return the norms, and begin again."""
        norms, self.norms = self.norms, []
        return norms

    def remove(self) -> None:
        """Note no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
