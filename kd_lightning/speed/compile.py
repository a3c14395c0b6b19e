"""Compilation of networks for the length of a fit."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from kd_lightning.core.lookup import find_network
from kd_lightning.core.torch_internals import undo_compile


class TorchCompile(Callback):
    """Compile networks in place with ``torch.compile`` while a fit lasts; names, weights and checkpoints stay.

    The first step includes the compilation, seconds to minutes. The gain depends on the machine: on a CPU the origin's
    student gains nothing over `ChannelsLast` and a fused optimizer.

    Args:
        networks: Dotted names of the networks in the module.
        mode: The ``mode`` of ``torch.compile``.
        backend: The ``backend`` of ``torch.compile``; the default needs a C++ compiler on a CPU.

    Raises:
        UsageError: At the start of a fit: the module has no such network.

    Example:
        >>> callback = TorchCompile(["student"], mode="max-autotune-no-cudagraphs")
    """

    def __init__(
        self, networks: Sequence[str] = ("student",), mode: str | None = None, backend: str = "inductor"
    ) -> None:
        self.networks = list(networks)
        self.mode = mode
        self.backend = backend
        self._compiled: list[nn.Module] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Mark the networks for compilation at their first call."""
        if stage != "fit":
            return
        for name in self.networks:
            network = find_network(pl_module, name, "to compile")
            network.compile(mode=self.mode, backend=self.backend, dynamic=False)
            self._compiled.append(network)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Undo the compilation of these networks."""
        for network in self._compiled:
            undo_compile(network)
        self._compiled.clear()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Undo the compilation after a failed fit, too."""
        self.teardown(trainer, pl_module, "fit")
