"""TeacherHolder: a frozen teacher outside every module tree, moved and saved explicitly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kd_lightning.core.arguments import check_is_network
from kd_lightning.core.attached import find_attached
from kd_lightning.core.distributed import is_distributed
from kd_lightning.core.errors import UsageError
from kd_lightning.core.freezing import WEIGHTS_FILE, freeze, is_frozen, unfreeze
from kd_lightning.core.hashing import weights_hash


class TeacherHolder:
    """Holds a frozen teacher for a module that is not to own it.

    What walks a LightningModule (weight averages, pruning, ``update_bn``, optimizers, ``state_dict``) cannot reach a
    network outside its tree. Moves, dtypes, the first broadcast between processes and the proof that nothing changed it
    are the holder's.

    Args:
        network: The teacher; it is frozen.
        name: Its name in messages.

    Raises:
        UsageError: It is no network.

    Example:
        >>> holder = TeacherHolder(nn.Linear(4, 2))
        >>> holder.network.weight.requires_grad, len(holder.remember())
        (False, 64)
    """

    def __init__(self, network: nn.Module, name: str = "network 'teacher'") -> None:
        check_is_network(network, name)
        self.network = network
        self.name = name
        self.hash: str | None = None
        self.was_frozen = False
        self.learned: set[nn.Parameter] = set()
        self._holds = False
        self._modes: dict[nn.Module, bool] = {}
        self._original: nn.Module | None = None
        self._device: torch.device | None = None
        self.hold()

    def hold(self) -> nn.Module:
        """Freeze the network, and remember how it was; it may have been changed since `release`."""
        if not self._holds:
            self._holds, self.was_frozen = True, is_frozen(self.network)
            self.learned = {parameter for parameter in self.network.parameters() if parameter.requires_grad}
            self._modes = {module: module.training for module in self.network.modules()}
        return freeze(self.network)

    def prepare(self, device: torch.device, precision: Precision, is_fixed: bool) -> None:
        """Move the network to the device of a fit, and convert it where its weights are to have another type.

        A copy is converted if nothing is to change it, so that the network itself stays exact.
        """
        tensor = next(chain(self.network.parameters(), self.network.buffers()), None)
        self._device = None if tensor is None else tensor.device
        if type(precision).convert_module is not Precision.convert_module:
            if is_fixed:
                self._original, self.network = self.network, copy.deepcopy(self.network)
            self.network = precision.convert_module(self.network)
        self.network.to(device)

    def release(self) -> nn.Module:
        """Return the network as it came: of its type, on its device, able to learn and in its modes unless frozen."""
        if self._original is not None:
            self.network, self._original = self._original, None
        elif self._device is not None:
            self.network.to(self._device)
        self._holds, self._device = False, None
        if not self.was_frozen and is_frozen(self.network):
            unfreeze(self.network)
            for module, training in self._modes.items():
                module.training = training
        return self.network

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Move or convert the network as ``nn.Module.to`` and its like do, by their function of one tensor."""
        self.network._apply(function)  # pyright: ignore[reportPrivateUsage]
        tensor = next(chain(self.network.parameters(), self.network.buffers()), None)
        if tensor is not None:
            for module in self.network.modules():
                if isinstance(module, LightningModule) and module.device != tensor.device:
                    module.to(tensor.device)  # which tells it where it is

    def broadcast(self) -> None:
        """Send rank 0's weights to all ranks, as DistributedDataParallel does; shards stay with their ranks."""
        if not is_distributed():
            return
        for tensor in chain(self.network.parameters(), self.network.buffers()):
            if not isinstance(tensor, DTensor):
                dist.broadcast(tensor.data, src=0)

    def remember(self, expected: str | None = None) -> str:
        """Keep the hash of the weights, which `prove` compares with.

        Args:
            expected: The hash of the teacher with which a resumed run was started.

        Raises:
            UsageError: It is another one.
        """
        found = weights_hash(self.network)
        if expected not in (None, found):
            raise UsageError(
                f"this run was started with another {self.name} (sha256 {str(expected)[:12]}) than it is "
                f"resumed with ({found[:12]}): build or load the one of then, or start a new run"
            )
        self.hash = found
        return found

    def prove(self) -> None:
        """Check that the weights are those that `remember` saw.

        Raises:
            UsageError: Something has changed them.
        """
        if self.hash is not None and (found := weights_hash(self.network)) != self.hash:
            raise UsageError(
                f"the {self.name} is frozen and its weights have changed (sha256 {self.hash[:12]} before, {found[:12]} "
                "now): look for code that writes to its parameters or buffers"
            )

    def describe(self) -> str:
        """Describe the teacher in one line: class, size, that it is frozen, and its file if it was loaded."""
        count = sum(parameter.numel() for parameter in self.network.parameters())
        size = sum(parameter.numel() * parameter.element_size() for parameter in self.network.parameters())
        about = f"{type(self.network).__name__}, {count:,} parameters ({size / 1024:,.0f} KiB)"
        file = vars(self.network).get(WEIGHTS_FILE)
        return f"{self.name}: {about}, frozen, outside the module" + (f", loaded from {file}" if file else "")

    def announce(self, trainer: Trainer) -> None:
        """Log the description once, where the trainer prints a summary of its module."""
        if find_attached(trainer, ModelSummary) is not None:
            rank_zero_info(self.describe())


def register_teacher(module: nn.Module, network: nn.Module) -> None:
    """Register a teacher as a submodule of the module that holds it outside its tree; no other module needs it."""
    register = getattr(module, "register_teacher", None)
    if register is not None and getattr(module, "teacher", None) is network:
        register()


def load_held(
    holder: TeacherHolder, state: dict[str, Any], prefix: str, missing: list[str], unexpected: list[str]
) -> None:
    """Load a held teacher from a state dict that has a complete set of its keys, and take them out of it.

    A state dict without any of them leaves it unchanged; an incomplete set is added to the missing and unexpected keys.
    """
    given = {key.removeprefix(prefix): state.pop(key) for key in [key for key in state if key.startswith(prefix)]}
    if not given:
        return
    own = holder.network.state_dict()
    missing += [prefix + key for key in own if key not in given]
    unexpected += [prefix + key for key in given if key not in own]
    if own.keys() == given.keys():
        with torch.no_grad():
            holder.network.load_state_dict(given)
