"""Means of the training losses over an epoch, for the callbacks and schedulers that monitor them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from kd_lightning.core.attached import detach
from kd_lightning.core.distributed import all_reduce_sum, is_distributed, rank
from kd_lightning.core.lightning_internals import save_interval, saves_by_time
from kd_lightning.core.terms import Terms

_STATE = "training_means"


class TrainingMeans(Callback):
    r"""Give monitors ``train/loss`` and each ``train/<term>`` as means over the batches of the epoch so far.

    With :math:`\ell_{b}` the loss of batch :math:`b`, at batch :math:`B` of an epoch the value is

    .. math:: \frac{1}{B} \sum_{b=1}^{B} \ell_{b}

    It is in ``trainer.callback_metrics`` at the end of every epoch, at every validation and wherever a
    `ModelCheckpoint` or ``ReduceLROnPlateau`` reads it between batches, whatever ``log_every_n_steps`` is. Each batch
    counts once, on each process; a term of weight 0 counts where it is computed: at the steps that are logged and at
    the epoch's last. Loggers get the values of single steps, as before.

    Sums stay on the device, and no step waits for them. They are in the checkpoint, so that a mean after a resume is
    that of the undisturbed run; in a checkpoint that an interrupted run of several processes writes, they are those of
    rank 0, because no process may wait for another one then.

    A `Learner` and `Distillation` attach it for the length of a fit.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}
        """For each set of names that a step has computed together: the sum of each, and the number of steps."""
        self._names: set[str] = set()
        """Names that the epoch has values of."""
        self._one = torch.ones(())
        self._loaded: dict[tuple[str, ...], Tensor] = {}
        self._intervals: list[int] = []
        self.is_read_every_step = False
        """A callback or scheduler may read a mean after any step, without a rule that tells after which."""

    def add(self, terms: Terms, losses: Mapping[str, Tensor], total: Tensor | None = None) -> None:
        """Add the losses of a step; launches kernels only.

        Args:
            terms: The terms, of which those of weight 0 may have been skipped.
            losses: The loss of each term, by the term's name.
            total: Their weighted sum, for ``train/loss``.
        """
        modules: Any = terms._modules  # pyright: ignore[reportPrivateUsage]  # one call in all: this is every step
        skips, values = terms.skip_unweighted, {}
        for name, loss in losses.items():
            if not skips or modules[name].weight:
                values[name] = loss.detach()
        if total is not None:
            values["loss"] = total.detach()
        key = tuple(values)
        if key in self._sums:
            self._sums[key].add_(torch.stack([*values.values(), self._one]))
            self._names.update(key)
        elif key:
            self.add_values(values)

    def add_values(self, values: Mapping[str, Tensor]) -> None:
        """Add other values of a step, scalars by their names after ``train/``."""
        key = tuple(values)
        if key not in self._sums:
            device = self._one.device
            self._sums[key] = torch.zeros(len(key) + 1, dtype=_dtype(device), device=device)
        self._names.update(key)
        self._sums[key].add_(torch.stack([*(value.detach() for value in values.values()), self._one]))

    def means(self) -> dict[str, Tensor]:
        """Compute the means by their logged names, over all processes; collective."""
        names = sorted(self._names)
        if not names:
            return {}
        sums = all_reduce_sum(torch.stack([self._sum_of(name) for name in names]))
        return {f"train/{name}": mean for name, mean in zip(names, (sums[:, 0] / sums[:, 1]).float(), strict=True)}

    @property
    def names(self) -> set[str]:
        """The logged names of the values that the epoch has."""
        return {f"train/{name}" for name in self._names}

    # ---- Lightning hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the fit before."""
        self._sums, self._names, self._loaded = {}, set(), {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out after which steps the means are read, and take up those of a resumed epoch."""
        checkpoints = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
        self._intervals = [interval for each in checkpoints if (interval := save_interval(each)) > 0]
        self.is_read_every_step = any(saves_by_time(each) for each in checkpoints) or any(
            config.reduce_on_plateau and config.interval == "step" for config in trainer.lr_scheduler_configs
        )
        for key, sums in self._loaded.items():
            self._names.update(key)
            self._sums[key] = sums.to(pl_module.device, _dtype(pl_module.device))
        self._loaded, self._one = {}, torch.ones((), device=pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start again with the epoch; ``on_train_epoch_start`` is not called after some resumes."""
        if batch_idx == 0:
            for sums in self._sums.values():
                sums.zero_()  # in place, as a CUDA graph may have recorded it
            self._names.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Publish the means where a checkpoint or a scheduler reads them after this batch."""
        step = trainer.global_step
        if self.is_read_every_step or any(step % interval == 0 for interval in self._intervals):
            # under another hook than the values of single steps, which stay valid until the epoch's end
            pl_module.log_dict(self.means(), logger=False, on_step=True, on_epoch=False, batch_size=1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish the means for what acts at the end of the validation."""
        if not trainer.sanity_checking:
            self._publish(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish the means of the epoch."""
        self._publish(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the sums of all processes; those of rank 0 while an exception is handled."""
        is_shared = is_distributed() and not trainer.interrupted
        saved: list[Any] = []
        for key, sums in self._sums.items():
            if not self._names.isdisjoint(key):
                total = all_reduce_sum(sums.clone()) if is_shared else sums.clone()
                saved.append({"names": list(key), "sums": total.cpu()})
        checkpoint[_STATE] = {"is_shared": is_shared, "groups": saved}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Load the sums of a resumed epoch."""
        state = checkpoint.get(_STATE, {"is_shared": False, "groups": []})
        self._loaded = {}
        for group in state["groups"]:
            sums: Tensor = group["sums"]
            self._loaded[tuple(group["names"])] = torch.zeros_like(sums) if state["is_shared"] and rank() else sums

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the trainer to its former state."""
        detach(trainer, self)

    # ---- inside

    def _sum_of(self, name: str) -> Tensor:
        """The sum of a name's values, and their number."""
        groups = [sums[[key.index(name), -1]] for key, sums in self._sums.items() if name in key]
        return torch.stack(groups).sum(0)

    def _publish(self, trainer: Trainer) -> None:
        trainer.callback_metrics.update(self.means())


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # which has no other
