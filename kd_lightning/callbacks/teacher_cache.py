"""A frozen teacher that is asked once about each training image."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kd_lightning.learner import Batch
from kd_lightning.networks import is_frozen
from kd_lightning.schemes import OfflineDistiller
from kd_lightning.steps import epoch
from kd_lightning.taps import Activations


class TeacherCache(Callback):
    """Looks the teacher's logits up by the index of the sample, after one pass over the training rows.

    The pass is made when training starts, by every rank for itself, under the trainer's precision; the logits stay in
    memory on the module's device and are in no checkpoint. In the first batch of each epoch they are compared with
    what the teacher says itself, which shows rows that are shifted and inputs that change behind the data module.

    It asks of the data module: ``train_rows()``, batches of every training row once and without augmentation, and
    ``training_is_random``, whether its training inputs differ from those.

    Raises:
        ValueError: When training starts: something other than fixed logits by index would be needed.
        RuntimeError: At the first batch of an epoch: the look-up is not what the teacher says.
    """

    def __init__(self) -> None:
        self._logits = torch.empty(0)
        self._compared_in: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks the teacher about every row, and takes its place."""
        rows = _rows(trainer)
        learner = _servable(pl_module)
        self._compared_in = None
        self._logits = _ask(trainer, learner, rows)
        vars(learner)["watch_teacher"] = self._look_up

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Compares with the teacher, once an epoch; the first batch that is seen of one may be any after a resume."""
        if epoch(trainer) == self._compared_in:
            return
        self._compared_in = epoch(trainer)
        learner = cast("OfflineDistiller", pl_module)
        split = learner.split_batch(batch)
        live, cached = _live(trainer, learner, split), self._look_up(split)["logits"]
        # Half of the digits: batches of another size round differently, another row or image does so much more.
        allowed = torch.finfo(live.dtype).eps ** 0.5 * live.abs().max().item()
        difference = (live - cached).abs().max().item()
        if not difference <= allowed:  # a row that the pass did not see is NaN
            raise RuntimeError(
                f"cached teacher logits are off by {difference:.3g} (at most {allowed:.3g} is rounding) in epoch "
                f"{epoch(trainer)}: rows are shifted, or training inputs are random; train without TeacherCache"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the teacher its place back."""
        vars(pl_module).pop("watch_teacher", None)
        self._logits = torch.empty(0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives it back when the fit fails, too."""
        self.teardown(trainer, pl_module, "fit")

    def _look_up(self, batch: Batch) -> Activations:
        return {"logits": self._logits[_index(batch)]}


def _rows(trainer: Trainer) -> Any:
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "train_rows"):
        raise ValueError(
            f"{type(data).__name__} has no train_rows() to walk over: give the trainer a data module of "
            "kd_lightning.data, or train without TeacherCache"
        )
    if data.training_is_random:
        raise ValueError(
            "training inputs are random, and what the teacher said about one does not hold for the next: "
            "set the data's augmentation to null, or train without TeacherCache"
        )
    return data.train_rows()


def _servable(module: LightningModule) -> OfflineDistiller:
    if not isinstance(module, OfflineDistiller):
        raise ValueError(f"{type(module).__name__} has no watch_teacher to stand in for: train without TeacherCache")
    if other := [layer for layer in module.layers("teacher") if layer != "logits"]:
        raise ValueError(f"terms look at the teacher's {', '.join(other)}, not only at its logits: drop TeacherCache")
    if not is_frozen(module.teacher):
        raise ValueError("the teacher is not frozen, and what it said would not hold: train without TeacherCache")
    return module


def _ask(trainer: Trainer, learner: OfflineDistiller, rows: Any) -> Tensor:
    """The teacher's logits, (largest index + 1, C), or (..., K, C) of an ensemble; NaN where there is no row."""
    indices: list[Tensor] = []
    logits: list[Tensor] = []
    for batch in rows:
        split = learner.split_batch(_as_in_training(trainer, learner, batch))
        indices.append(_index(split))
        logits.append(_live(trainer, learner, split))
    index = torch.cat(indices)
    values = torch.cat(logits)
    table = values.new_full((int(index.max()) + 1, *values.shape[1:]), float("nan"))
    table[index] = values
    return table


def _index(batch: Batch) -> Tensor:
    if "index" not in batch.labels:
        raise ValueError(f"batches have {', '.join(batch.labels) or 'no labels'} and no index to look up: add one")
    return batch.labels["index"]


def _as_in_training(trainer: Trainer, learner: OfflineDistiller, batch: Any) -> Any:
    """What Lightning's training loop does to a batch before a step."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = learner._on_before_batch_transfer(batch)  # pyright: ignore[reportPrivateUsage]
    return trainer.strategy.batch_to_device(batch)


def _live(trainer: Trainer, learner: OfflineDistiller, batch: Batch) -> Tensor:
    with trainer.precision_plugin.train_step_context():
        return type(learner).watch_teacher(learner, batch)["logits"]  # the class's: the instance's is the look-up
