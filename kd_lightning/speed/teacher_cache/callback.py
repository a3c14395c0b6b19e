"""A frozen teacher that is asked once about each training image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor

from kd_lightning.core.activations import Activations
from kd_lightning.core.errors import UsageError
from kd_lightning.core.fingerprints import fingerprints, is_marked_immutable
from kd_lightning.core.learner import Batch
from kd_lightning.core.progress import epoch, should_log
from kd_lightning.core.traits import check_teacher_use
from kd_lightning.schemes.frozen_teacher import FrozenTeacher
from kd_lightning.speed.teacher_cache.directory import CacheDirectory
from kd_lightning.speed.teacher_cache.lookup_table import CacheMismatchError, Tables, empty
from kd_lightning.speed.teacher_cache.teacher_pass import Asking, require_cacheable
from kd_lightning.speed.teacher_cache.training_rows import Walk, index_of

MIB = 2**20
TF32_EPS = 2.0**-10
"""What a GPU's convolutions round float32 to, unless it is forbidden."""


class TeacherCache(Callback):
    """Looks up what the teacher shows by the index of the sample, after one pass over the training rows.

    The pass is made when training starts, under the trainer's precision; of several processes each asks about its
    share. The logits, and every layer that a term addresses, stay in memory on the module's device and are in no
    checkpoint: 56 bytes an image for ten logits (40, and 8 each for its fingerprint and its place), 18 kB more for a
    map of 128 x 6 x 6. Under an augmentation with V fixed views of each image, the data's `num_augmented_views`, all
    that and the pass are V times as large; unbounded random augmentation is not supported.

    With a folder the pass is made once. Its file, of as many bytes, serves every later run with the same teacher,
    layers, precision, device and release of torch whose training inputs are the same bit by bit, which a walk over them
    finds out (0.15 s for MNIST, and what it takes to augment it once for each view). Other runs get files of their own,
    so that none is ever stale, and whoever wants the room may delete them. One that is damaged is found, and written
    anew with a warning.

    What the teacher was shown is remembered as a fingerprint of each row, and every batch is compared with these before
    its step, so that an augmentation that hides in a hook is found where it first matters. What cannot have changed is
    compared in the first batch of each epoch alone: the loader's own tensor, which `TrainLoader` marks as immutable
    without an augmentation. In that batch the answers, too, are compared with what the teacher shows itself. On a GPU,
    where no step is to wait, a row that changed is reported at the next step that is logged, and no later than an epoch
    ends or a checkpoint is to be written.

    It asks of the data module what `kd_lightning.speed.teacher_cache.training_rows.Walk` says. In evaluation, whose
    rows are others, the teacher shows them itself.

    Args:
        folder: Where files are kept and looked for, on a disk that all processes share; without it there are none.
        memory_limit_mib: If the answers are larger, a file is mapped and not read into memory, and without a folder
            they are refused.
        precision: What the pass computes in. ``"bf16"`` is autocast to bfloat16 in a run that is in float32. It is not
            exact: what is learned from, and what each epoch compares with, is the teacher as bfloat16 rounds it. Of the
            origin's that is off by up to 0.4 % of the largest logit, 3e-6 nats at temperature 4, and in 2 of 10,000
            images another class. With `ChannelsLast`, on a CPU with AMX, it takes a third of the time.

    Raises:
        UsageError: An argument is out of its range. When training starts: what the teacher shows is not fixed by the
            index, or is larger than the limit and there is no folder.
        OSError: The folder cannot be written to, or is not shared.
        UsageError: In training: a row's input is not the one that the teacher was asked about; or, in the first
            batch of an epoch, the look-up is not what the teacher says.

    Example:
        >>> TeacherCache(folder="runs/cache", memory_limit_mib=4096).folder.name
        'cache'
    """

    needs_fixed_teacher = True

    def __init__(
        self,
        folder: str | Path | None = None,
        memory_limit_mib: float = 1024,
        precision: Literal["trainer", "bf16"] = "trainer",
    ) -> None:
        if not memory_limit_mib > 0:
            raise UsageError(f"memory_limit_mib={memory_limit_mib} is not above 0")
        if precision not in ("trainer", "bf16"):
            raise UsageError(f"precision={precision!r} is neither 'trainer' nor 'bf16'")
        self.folder = None if folder is None else Path(folder).expanduser()
        self.memory_limit_mib = memory_limit_mib
        self.precision = precision
        self._asking: Asking | None = None
        self._tables: Tables | None = None
        self._path: Path | None = None
        self._compared = False
        self._trusts = False  # that rows marked as immutable are those of the teacher's pass

    # ---- what Lightning calls

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a callback that changes the teacher during the fit."""
        if stage == "fit":
            callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
            check_teacher_use(self, callbacks, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks the teacher about every row, or finds the file that says what it would answer, and takes its place."""
        learner = require_cacheable(pl_module)
        if self.precision == "bf16" and trainer.precision == "64-true":
            raise UsageError("precision='bf16' does not reach a teacher in 64-true: leave TeacherCache's at 'trainer'")
        asking = Asking(Walk(trainer, learner), learner, halves=self.precision == "bf16")
        self._compared, self._path = False, None
        self._tables = self._made(asking) if self.folder is None else self._kept(asking, self.folder)
        self._asking = asking
        learner.teacher_source = self._look_up

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Compares with the teacher, once an epoch; the first batch that is seen of one may be any after a resume."""
        asking, tables = self._asking, self._tables
        assert asking is not None
        assert tables is not None
        if tables.waits and should_log(trainer):
            self._settle(trainer)
        if batch_idx and self._compared:
            return
        self._compared, self._trusts = True, False
        learner = cast("FrozenTeacher", pl_module)
        split = learner.split_batch(batch)
        cached = learner.teacher_activations(split)
        for layer, live in asking.live(split).items():
            self._compare(trainer, layer, live, cached[layer])
        self._trusts = is_marked_immutable(split.teacher, index_of(split))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks whether a row has changed."""
        self._settle(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Looks whether a row has changed: what was learned from it is not to be saved."""
        self._settle(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the teacher its place back."""
        if isinstance(pl_module, FrozenTeacher):
            pl_module.teacher_source = None
        self._tables = self._asking = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives it back when the fit fails, too."""
        self.teardown(trainer, pl_module, "fit")

    # ---- in each step

    def _look_up(self, batch: Batch) -> Activations:
        asking, tables = self._asking, self._tables
        assert asking is not None
        assert tables is not None
        walk = asking.walk
        if walk.trainer.state.stage is not RunningStage.TRAINING:
            return asking.learner.run_teacher(batch)
        index = index_of(batch)
        known = self._trusts and is_marked_immutable(batch.teacher, index)
        view = 0 if walk.views is None else walk.data.view_of_batch()
        try:
            return tables.look_up(index, None if known else fingerprints(batch.teacher), view)
        except CacheMismatchError as change:
            raise self._says(change, walk.trainer) from None

    def _settle(self, trainer: Trainer) -> None:
        try:
            if self._tables is not None:
                self._tables.settle()
        except CacheMismatchError as change:
            raise self._says(change, trainer) from None

    def _says(self, change: CacheMismatchError, trainer: Trainer) -> UsageError:
        # one that was found late may be of the epoch before
        where = "" if change.others is None else f" in epoch {epoch(trainer)}"
        if not change.known:
            return UsageError(
                f"training row {change.row}{where} is none that train_rows() gave: give all of them there, or train "
                "without TeacherCache"
            )
        others = f" (and {change.others} more of its batch)" if change.others else ""
        return UsageError(
            f"training row {change.row}{others}{where} is not what the teacher was shown: an augmentation hides in a "
            "hook, or train_rows() is not what is trained on; make it the data's `augmentation`, or train without "
            "TeacherCache"
        )

    def _compare(self, trainer: Trainer, layer: str, live: Tensor, cached: Tensor) -> None:
        if not live.is_floating_point():
            live, cached = live.double(), cached.double()
        # Half of the digits: batches of another size round differently, another row or image does so much more.
        eps = torch.finfo(torch.bfloat16 if self.precision == "bf16" else live.dtype).eps
        if live.is_cuda and live.dtype == torch.float32:
            eps = max(eps, TF32_EPS)
        digits = eps**0.5
        allowed = digits * live.abs().max().item()
        difference = (live - cached).abs().max().item()
        if not difference <= allowed:  # a row that the pass did not see is NaN
            remedy = "train without TeacherCache" if self._path is None else f"delete {self._path}"
            raise UsageError(
                f"cached teacher {layer} are off by {difference:.3g} (at most {allowed:.3g} is rounding) in epoch "
                f"{epoch(trainer)}: rows are shifted, or the teacher computes otherwise than it did; {remedy}"
            )

    # ---- the pass

    def _kept(self, asking: Asking, folder: Path) -> Tables:
        """What a file says; written first, if it is not there."""
        walk, device = asking.walk, asking.learner.device
        files = CacheDirectory(folder, walk.trainer, asking.depends_on(), self.memory_limit_mib * MIB)
        if files.has_some():
            self._path = files.path(key := files.key(walk.look()))
            if (tables := files.find(key, device)) is not None:
                return tables
        with files.writing(walk.num_rows, asking.begin()) as file:
            key = file.finish(asking.finish(file.put))
        self._path = files.path(key)
        if (tables := files.find(key, device)) is None:
            raise OSError(f"{self._path} is not there for all processes: give TeacherCache a folder that they share")
        return tables

    def _made(self, asking: Asking) -> Tables:
        """What the teacher says, in memory."""
        kinds = asking.begin()
        if (size := sum(kind.size for kind in kinds.values()) / MIB) > self.memory_limit_mib:
            raise UsageError(
                f"what the teacher shows of all rows at {', '.join(kinds)} takes {size:.4g} MiB, more than "
                f"memory_limit_mib={self.memory_limit_mib:g}: give TeacherCache a folder to map it from, raise the "
                "limit, or let the terms address fewer or smaller layers"
            )
        shown = {layer: empty(kind, asking.learner.device) for layer, kind in kinds.items()}

        def put(layer: str, row: int, values: Tensor) -> None:
            shown[layer][row : row + len(values)] = values

        return Tables(asking.finish(put), shown)
