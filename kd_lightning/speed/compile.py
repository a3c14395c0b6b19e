"""Networks that are compiled for the length of a fit."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from kd_lightning.core.lookup import find_network
from kd_lightning.core.torch_internals import undo_compile


class TorchCompile(Callback):
    """Compiles networks in place with ``torch.compile`` while a fit lasts; names, weights and checkpoints stay.

    The first step waits for it, for seconds to minutes. What it is worth depends on the machine: on a CPU the origin's
    student gains nothing over `ChannelsLast` and a fused optimizer.

    Args:
        networks: Attributes of the module to compile, with dots.
        mode: What ``torch.compile`` calls its mode.
        backend: Its backend; the default needs a C++ compiler on a CPU.

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
        """Marks the networks: each is compiled when it runs first."""
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
        """Makes them so when the fit fails, too."""
        self.teardown(trainer, pl_module, "fit")
