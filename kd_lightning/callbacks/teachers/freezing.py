"""A teacher or another network that is frozen for the whole fit, or for some of its epochs."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from kd_lightning.core.attached import callbacks_of
from kd_lightning.core.distributed import all_gather_with_grad
from kd_lightning.core.errors import UsageError
from kd_lightning.core.freezing import freeze, include_in_state_dict, is_frozen, unfreeze
from kd_lightning.core.hashing import weights_hash
from kd_lightning.core.lookup import find_network
from kd_lightning.core.progress import epoch
from kd_lightning.core.teacher_holder import register_teacher
from kd_lightning.core.traits import check_teacher_use


class TeacherFreezing(Callback):
    """Freeze a network and check by a hash of its weights that it does not change, on any rank and after a resume.

    By default a network is frozen by `kd_lightning.freeze` for the whole fit: the teacher of a scheme, which is frozen
    already, or a submodule of any LightningModule, which is unfrozen after the fit.

    With an epoch the network is trainable and in the state dict from the start, because the optimizer,
    DistributedDataParallel and the form of the checkpoints stay the same during a fit. While it is frozen, it is in
    eval mode and its gradients are dropped after each backward pass, so that the optimizer skips its parameters,
    momentum and weight decay included.

    Args:
        network: The dotted name of the network in the LightningModule. The default, ``teacher``, has no effect on a
            module without a teacher, unless an epoch is given.
        freeze_at: The epoch from whose first batch on the network is frozen; it is trained before.
        unfreeze_at: The epoch from whose first batch on the network is trained; never by default.

    Raises:
        UsageError: The epochs are not in order; at the start of the fit: there is no such network (the nearest names
            are given), or nothing in it can learn.
        UsageError: The network changed while it was frozen, differs between ranks, or is not the one with which the
            resumed run was started.

    Example:
        >>> whole_fit = TeacherFreezing()
        >>> pretrained = TeacherFreezing("backbone.encoder", unfreeze_at=5)
        >>> pretrained.is_frozen_in(4), pretrained.is_frozen_in(5)
        (True, False)
    """

    needs_fixed_teacher = True

    def __init__(self, network: str = "teacher", freeze_at: int = 0, unfreeze_at: int | None = None) -> None:
        if freeze_at < 0 or (unfreeze_at is not None and unfreeze_at <= freeze_at):
            raise UsageError(
                f"freeze_at={freeze_at} and unfreeze_at={unfreeze_at}: they must be epochs >= 0, "
                "and the network is frozen before it is unfrozen"
            )
        self.network = network
        self.freeze_at = freeze_at
        self.unfreeze_at = unfreeze_at
        self._network: nn.Module | None = None
        self._to_unfreeze = False
        self._is_frozen = False
        self._hash: str | None = None

    @property
    def state_key(self) -> str:
        """Key of the state, one for each network, so that several can be frozen."""
        return self._generate_state_key(network=self.network)

    @property
    def teacher_path(self) -> str:
        """The name of the network that must not change; see `kd_lightning.core.traits`."""
        return self.network

    @property
    def idle_when_frozen(self) -> bool:
        """True without epochs: the hooks around a training step then do nothing."""
        return self.is_always_frozen

    @property
    def is_always_frozen(self) -> bool:
        """True if the network is frozen in every epoch."""
        return self.freeze_at == 0 and self.unfreeze_at is None

    def is_frozen_in(self, epoch: int) -> bool:
        """Tell if the network is frozen in an epoch."""
        return self.freeze_at <= epoch and (self.unfreeze_at is None or epoch < self.unfreeze_at)

    def state_dict(self) -> dict[str, Any]:
        """Return the hash of the network's weights while it is frozen, else None."""
        return {"hash": self._hash}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the hash of the network with which the run was started."""
        self._hash = state_dict["hash"]

    # ---- Lightning hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the network, and freeze it or make it trainable before optimizers are built."""
        self._hash, self._is_frozen, self._to_unfreeze = None, False, False
        self._network = self.find(pl_module) if stage == "fit" else None
        if self._network is None:
            return
        callbacks = callbacks_of(trainer)
        check_teacher_use(self, callbacks, pl_module)
        if self.is_always_frozen:
            self._to_unfreeze = not is_frozen(self._network)
            freeze(self._network)
        else:
            register_teacher(pl_module, self._network)
            include_in_state_dict(unfreeze(self._network)).train()
            if not any(parameter.requires_grad for parameter in self._network.parameters()):
                raise UsageError(
                    f"nothing in {self.network!r} can learn when it is not frozen: name the whole network, or set "
                    "requires_grad of its parameters"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the network with the hash of a checkpoint, and store its hash if it is frozen."""
        if self._network is None:
            return
        if self._hash is not None and self._hash != (found := weights_hash(self._network)):
            raise UsageError(
                f"this run was started with another network {self.network!r} (sha256 {self._hash[:12]}) than it is "
                f"resumed with ({found[:12]}): build or load the former, or start a new run"
            )
        if self.is_frozen_in(epoch(trainer)):
            self._store_hash(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Freeze or unfreeze the network, as the current epoch requires."""
        if self._network is None or self.is_always_frozen:
            return
        self._is_frozen = self.is_frozen_in(epoch(trainer))
        if self._is_frozen:
            self._network.eval()
        elif self._hash is not None:
            self._check_unchanged()
            self._hash = None
            self._network.train()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the gradients of a frozen network, before clipping counts them in the norm."""
        if self._network is not None and self._is_frozen:
            for parameter in self._network.parameters():
                parameter.grad = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Store the hash of a network that has been frozen in this epoch."""
        # After the forward pass, in which DistributedDataParallel broadcasts rank 0's buffers to every rank.
        if self._network is not None and self._hash is None and self._is_frozen:
            self._store_hash(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that a frozen network has not changed."""
        if self._hash is not None:
            self._check_unchanged()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Unfreeze a network that this callback has frozen."""
        if self._network is not None and self._to_unfreeze:
            unfreeze(self._network)
        self._network = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Unfreeze the network when the fit fails."""
        self.teardown(trainer, pl_module, "fit")

    # ---- inside

    def find(self, module: nn.Module) -> nn.Module | None:
        """Find the network in a module; None if it is the default and the module has no teacher."""
        if self.network == "teacher" and self.is_always_frozen and not hasattr(module, "teacher"):
            return None
        return find_network(module, self.network, "to freeze")

    def _store_hash(self, pl_module: LightningModule) -> None:
        assert self._network is not None
        self._hash = weights_hash(self._network)
        own = torch.tensor(list(bytes.fromhex(self._hash)), device=pl_module.device)
        if not (all_gather_with_grad(own).view(-1, len(own)) == own).all():
            raise UsageError(
                f"{self.network!r} is not the same network on all ranks: load it from the same file on each"
            )

    def _check_unchanged(self) -> None:
        assert self._network is not None
        assert self._hash is not None
        if (found := weights_hash(self._network)) != self._hash:
            raise UsageError(
                f"{self.network!r} is frozen and its weights have changed (sha256 {self._hash[:12]} before, "
                f"{found[:12]} now): look for code that writes to its parameters or buffers"
            )
