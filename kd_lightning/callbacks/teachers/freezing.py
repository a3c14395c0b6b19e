"""A teacher that stays what it was, or that starts or stops learning at an epoch."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from kd_lightning.core.distributed import all_gather_with_grad
from kd_lightning.core.errors import UsageError
from kd_lightning.core.freezing import freeze, include_in_state_dict, is_frozen, unfreeze
from kd_lightning.core.hashing import weights_hash
from kd_lightning.core.lookup import find_network
from kd_lightning.core.progress import epoch
from kd_lightning.core.teacher_holder import register_teacher
from kd_lightning.core.traits import check_teacher_use


class TeacherFreezing(Callback):
    """Holds a network as it is, and proves it: its digest is the same before and after, on all ranks, and at a resume.

    By default a network is fixed by `kd_lightning.freeze` for the whole fit: a scheme's teacher, which that already
    holds, or a submodule of anyone's LightningModule, which can learn again when the fit ends.

    With an epoch the network is trainable state from the start, as one optimizer, one DistributedDataParallel and one
    kind of checkpoint last the whole fit. While it is to stay as it is, it is in eval and its gradients are dropped as
    soon as they are there, so that an optimizer passes it by, momentum and weight decay included.

    Args:
        network: The dotted name of the network in the LightningModule. One that has no ``teacher`` is left alone.
        freeze_at: The epoch from whose first batch on the network stays as it is; it is trained before.
        unfreeze_at: The epoch from whose first batch on the network is trained; never if not given.

    Raises:
        UsageError: The epochs are not in order; at the start of the fit: there is no such network (the nearest names
            are given), or nothing in it could learn.
        UsageError: The network changed while it was to stay, differs among the ranks, or is not the one with which
            the resumed run was started.

    Example:
        >>> whole_fit = TeacherFreezing()
        >>> pretrained = TeacherFreezing("backbone.encoder", unfreeze_at=5)
        >>> pretrained.stays_in(4), pretrained.stays_in(5)
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
        self._held: nn.Module | None = None
        self._to_unfreeze = False
        self._stays = False
        self._digest: str | None = None

    @property
    def state_key(self) -> str:
        """One state a network, so that several can be held."""
        return self._generate_state_key(network=self.network)

    @property
    def teacher_path(self) -> str:
        """The name of the network that is not to change; see `kd_lightning.core.traits`."""
        return self.network

    @property
    def idle_when_frozen(self) -> bool:
        """True without epochs: the hooks around a training step then find nothing to do."""
        return self.always_stays

    @property
    def always_stays(self) -> bool:
        """Whether the network is to stay as it is in every epoch."""
        return self.freeze_at == 0 and self.unfreeze_at is None

    def stays_in(self, epoch: int) -> bool:
        """Whether the network is to stay as it is in an epoch."""
        return self.freeze_at <= epoch and (self.unfreeze_at is None or epoch < self.unfreeze_at)

    def state_dict(self) -> dict[str, Any]:
        """The digest of the network while it is to stay as it is, or None."""
        return {"digest": self._digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Expects the network with which the run was started."""
        self._digest = state_dict["digest"]

    # ---- what Lightning calls

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the network, and fixes it or makes it learn before optimizers are built."""
        self._digest, self._stays, self._to_unfreeze = None, False, False
        self._held = self.find(pl_module) if stage == "fit" else None
        if self._held is None:
            return
        callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        check_teacher_use(self, callbacks, pl_module)
        if self.always_stays:
            self._to_unfreeze = not is_frozen(self._held)
            freeze(self._held)
        else:
            register_teacher(pl_module, self._held)
            include_in_state_dict(unfreeze(self._held)).train()
            if not any(parameter.requires_grad for parameter in self._held.parameters()):
                raise UsageError(
                    f"nothing in {self.network!r} could learn when it is not frozen: "
                    "name the whole network, or require gradients of its parameters"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the network with the checkpoint's, and remembers what it is."""
        if self._held is None:
            return
        if self._digest is not None and self._digest != (found := weights_hash(self._held)):
            raise UsageError(
                f"this run was started with another network {self.network!r} (sha256 {self._digest[:12]}) than it is "
                f"resumed with ({found[:12]}): build or load the one of then, or start a new run"
            )
        if self.stays_in(epoch(trainer)):
            self._remember(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Moves the network between learning and staying, in whatever epoch this is."""
        if self._held is None or self.always_stays:
            return
        self._stays = self.stays_in(epoch(trainer))
        if self._stays:
            self._held.eval()
        elif self._digest is not None:
            self._prove()
            self._digest = None
            self._held.train()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drops gradients: before clipping, which would count them."""
        if self._held is not None and self._stays:
            for parameter in self._held.parameters():
                parameter.grad = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remembers what a network is that has just stopped learning."""
        # After the forward pass, which under DistributedDataParallel brings every rank's buffers to rank 0's.
        if self._held is not None and self._digest is None and self._stays:
            self._remember(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Proves that the network stayed what it was."""
        if self._digest is not None:
            self._prove()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of a network that was fixed here."""
        if self._held is not None and self._to_unfreeze:
            unfreeze(self._held)
        self._held = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lets go of it when the fit fails, too."""
        self.teardown(trainer, pl_module, "fit")

    # ---- inside

    def find(self, module: nn.Module) -> nn.Module | None:
        """Return the network in a module; None where there is no teacher to hold."""
        if self.network == "teacher" and self.always_stays and not hasattr(module, "teacher"):
            return None
        return find_network(module, self.network, "to freeze")

    def _remember(self, pl_module: LightningModule) -> None:
        assert self._held is not None
        self._digest = weights_hash(self._held)
        own = torch.tensor(list(bytes.fromhex(self._digest)), device=pl_module.device)
        if not (all_gather_with_grad(own).view(-1, len(own)) == own).all():
            raise UsageError(f"{self.network!r} is not the same network on all ranks: load it from one file on each")

    def _prove(self) -> None:
        assert self._held is not None
        assert self._digest is not None
        if (found := weights_hash(self._held)) != self._digest:
            raise UsageError(
                f"{self.network!r} was to stay as it is and has changed (sha256 {self._digest[:12]} before, "
                f"{found[:12]} now): look for code that writes to its parameters or buffers"
            )
