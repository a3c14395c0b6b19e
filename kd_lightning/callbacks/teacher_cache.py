"""A frozen teacher that is asked once about each training image."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from kd_lightning.learner import Batch
from kd_lightning.networks import is_frozen
from kd_lightning.schemes import OfflineDistiller
from kd_lightning.steps import epoch
from kd_lightning.taps import Activations


class TeacherCache(Callback):
    """Looks up what the teacher shows by the index of the sample, after one pass over the training rows.

    The pass is made when training starts, by every rank for itself, under the trainer's precision; the logits, and
    every layer that a term addresses, stay in memory on the module's device and are in no checkpoint: 40 bytes an image
    for ten logits, 18 kB for a map of 128 x 6 x 6. In the first batch of each epoch they are compared with what the
    teacher shows itself, which finds rows that are shifted and inputs that change behind the data module.

    It asks of the data module: ``train_rows()``, batches of every training row once and without augmentation, and
    ``training_is_random``, whether its training inputs differ from those.

    Raises:
        ValueError: When training starts: what the teacher shows is not fixed by the index.
        RuntimeError: At the first batch of an epoch: the look-up is not what the teacher says.
    """

    def __init__(self) -> None:
        self._seen: Activations = {}
        self._row_of = torch.empty(0)
        self._compared_in: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks the teacher about every row, and takes its place."""
        rows = _rows(trainer)
        learner = _servable(pl_module)
        self._compared_in = None
        self._row_of, self._seen = _ask(trainer, learner, rows)
        vars(learner)["watch_teacher"] = self._look_up

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Compares with the teacher, once an epoch; the first batch that is seen of one may be any after a resume."""
        if epoch(trainer) == self._compared_in:
            return
        self._compared_in = epoch(trainer)
        learner = cast("OfflineDistiller", pl_module)
        split = learner.split_batch(batch)
        cached = self._look_up(split)
        for layer, live in _live(trainer, learner, split).items():
            # Half of the digits: batches of another size round differently, another row or image does so much more.
            allowed = torch.finfo(live.dtype).eps ** 0.5 * live.abs().max().item()
            difference = (live - cached[layer]).abs().max().item()
            if not difference <= allowed:  # a row that the pass did not see is NaN
                raise RuntimeError(
                    f"cached teacher {layer} are off by {difference:.3g} (at most {allowed:.3g} is rounding) in epoch "
                    f"{epoch(trainer)}: rows are shifted, or training inputs are random; train without TeacherCache"
                )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the teacher its place back."""
        vars(pl_module).pop("watch_teacher", None)
        self._seen, self._row_of = {}, torch.empty(0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives it back when the fit fails, too."""
        self.teardown(trainer, pl_module, "fit")

    def _look_up(self, batch: Batch) -> Activations:
        rows = self._row_of[_index(batch)]
        return {layer: table[rows] for layer, table in self._seen.items()}


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
    if parameters := set(module.layers("teacher")) & {name for name, _ in module.teacher.named_parameters()}:
        raise ValueError(f"terms look at the teacher's {', '.join(parameters)}, which no row has: drop TeacherCache")
    if any(isinstance(layer, _BatchNorm) and layer.running_mean is None for layer in module.teacher.modules()):
        raise ValueError("the teacher's BatchNorm looks at the whole batch, which differs: train without TeacherCache")
    if not is_frozen(module.teacher):
        raise ValueError("the teacher is not frozen, and what it said would not hold: train without TeacherCache")
    return module


def _ask(trainer: Trainer, learner: OfflineDistiller, rows: Any) -> tuple[Tensor, Activations]:
    """The row of each index in what the teacher shows by layer; the last row is NaN, for indices that there are not."""
    indices: list[Tensor] = []
    seen: dict[str, list[Tensor]] = {}
    for batch in rows:
        split = learner.split_batch(_as_in_training(trainer, learner, batch))
        indices.append(_index(split))
        for layer, values in _live(trainer, learner, split).items():
            seen.setdefault(layer, []).append(values)
    index = torch.cat(indices)
    row_of = index.new_full((int(index.max()) + 1,), len(index))
    row_of[index] = torch.arange(len(index), device=index.device)
    nothing = {layer: parts[0].new_full((1, *parts[0].shape[1:]), math.nan) for layer, parts in seen.items()}
    return row_of, {layer: torch.cat([*parts, nothing[layer]]) for layer, parts in seen.items()}


def _index(batch: Batch) -> Tensor:
    if "index" not in batch.labels:
        raise ValueError(f"batches have {', '.join(batch.labels) or 'no labels'} and no index to look up: add one")
    return batch.labels["index"]


def _as_in_training(trainer: Trainer, learner: OfflineDistiller, batch: Any) -> Any:
    """What Lightning's training loop does to a batch before a step."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = learner._on_before_batch_transfer(batch)  # pyright: ignore[reportPrivateUsage]
    return trainer.strategy.batch_to_device(batch)


def _live(trainer: Trainer, learner: OfflineDistiller, batch: Batch) -> Activations:
    with trainer.precision_plugin.train_step_context():
        return type(learner).watch_teacher(learner, batch)  # the class's: the instance's is the look-up
