"""The callback that replaces a frozen teacher's forward passes by a look-up."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor

from kd_lightning.core.activations import Activations
from kd_lightning.core.attached import callbacks_of
from kd_lightning.core.errors import UsageError
from kd_lightning.core.fingerprints import is_marked_immutable, row_fingerprints
from kd_lightning.core.learner import Batch
from kd_lightning.core.progress import epoch, should_log
from kd_lightning.core.traits import check_teacher_use
from kd_lightning.schemes.frozen_teacher import FrozenTeacher
from kd_lightning.speed.teacher_cache.directory import CacheDirectory
from kd_lightning.speed.teacher_cache.lookup_table import CacheMismatchError, LookupTable, empty_table
from kd_lightning.speed.teacher_cache.teacher_pass import TeacherPass, require_cacheable
from kd_lightning.speed.teacher_cache.training_rows import TrainingRows, index_of

MIB = 2**20
TF32_EPS = 2.0**-10
"""Rounding of float32 convolutions on a GPU, where TF32 is not disabled."""


class TeacherCache(Callback):
    """Looks up the teacher's outputs by the index of the sample, after one pass over the training rows.

    **The pass** runs when training starts, under the trainer's precision; each of several processes computes its share.
    The logits, and every layer that a term addresses, stay in memory on the module's device and are in no checkpoint:
    56 bytes an image for ten logits (40, and 8 each for its fingerprint and its position), 18 kB more for a map of
    128 x 6 x 6. Under an augmentation with V fixed views of each image, the data's `num_augmented_views`, the pass and
    its memory are V times as large; unbounded random augmentation is not supported.

    **With a `cache_dir`** the pass runs once. Its file, of the same size, serves every later run with the same teacher,
    layers, precision, device, release of torch and bit-identical training inputs. Checking the inputs takes 0.15 s for
    MNIST, and one augmentation of the training set for each view. Other runs get files of their own, so that no file is
    ever stale; delete them at any time. A corrupt file is detected, and replaced with a warning.

    **Checks.** A fingerprint of each row's input is kept, and every batch is compared with these before its step, so
    that an augmentation in a hook is found in the first batch that it changes. Inputs that cannot have changed are
    compared in the first batch of each epoch alone: the loader's own tensor, which `TrainLoader` marks as immutable
    without an augmentation. In that batch the cached outputs, too, are compared with the teacher's. On a GPU, where a
    step must not wait for the device, a changed row is reported at the next logged step, at the end of the epoch or
    before a checkpoint is written, whichever comes first.

    The data module has to be a `kd_lightning.core.protocols.ProvidesTrainingRows`. Evaluation has other rows: there
    the teacher itself runs.

    Args:
        cache_dir: Directory of the files, on a disk that all processes share; without it no file is written.
        memory_limit_mib: Above this size a file is mapped and not read into memory, and a run without `cache_dir` is
            refused.
        precision: Precision of the pass. ``"bf16"`` is autocast to bfloat16 in a run in float32. It is not exact:
            training, and the comparison in each epoch, use the teacher's outputs in bfloat16. Those of the origin's
            teacher are off by up to 0.4 % of the largest logit, 3e-6 nats at temperature 4, and 2 of 10,000 images get
            another class. With `ChannelsLast`, on a CPU with AMX, the pass takes a third of the time.

    Raises:
        UsageError: An argument is out of its range. When training starts: the teacher's outputs are not a function of
            the index, or exceed the limit without a `cache_dir`.
        OSError: The directory is not writable, or not shared.
        UsageError: In training: a row's input differs from that of the pass; or, in the first batch of an epoch, the
            cached outputs differ from the teacher's.

    Example:
        >>> TeacherCache(cache_dir="runs/cache", memory_limit_mib=4096).cache_dir.name
        'cache'
    """

    needs_fixed_teacher = True

    def __init__(
        self,
        cache_dir: str | Path | None = None,
        memory_limit_mib: float = 1024,
        precision: Literal["trainer", "bf16"] = "trainer",
    ) -> None:
        if not memory_limit_mib > 0:
            raise UsageError(f"memory_limit_mib={memory_limit_mib} must be above 0")
        if precision not in ("trainer", "bf16"):
            raise UsageError(f"precision={precision!r} must be 'trainer' or 'bf16'")
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self.memory_limit_mib = memory_limit_mib
        self.precision = precision
        self._pass: TeacherPass | None = None
        self._table: LookupTable | None = None
        self._path: Path | None = None
        self._compared = False
        self._trusts_marks = False  # rows marked as immutable equal those of the pass

    # ---- Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a callback that changes the teacher during the fit."""
        if stage == "fit":
            callbacks = callbacks_of(trainer)
            check_teacher_use(self, callbacks, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the teacher on every row, or load the file of such a pass, and become the scheme's `teacher_source`."""
        learner = require_cacheable(pl_module)
        if self.precision == "bf16" and trainer.precision == "64-true":
            raise UsageError("precision='bf16' cannot autocast a teacher in 64-true: use TeacherCache's 'trainer'")
        teacher_pass = TeacherPass(TrainingRows(trainer, learner), learner, autocast_bf16=self.precision == "bf16")
        self._compared, self._path = False, None
        if self.cache_dir is None:
            self._table = self._compute_in_memory(teacher_pass)
        else:
            self._table = self._load_or_compute(teacher_pass, self.cache_dir)
        self._pass = teacher_pass
        learner.teacher_source = self._look_up

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Compare cached outputs with the teacher's in the first batch of an epoch, or after a resume."""
        teacher_pass, table = self._pass, self._table
        assert teacher_pass is not None
        assert table is not None
        if table.defers_checks and should_log(trainer):
            self._check_deferred(trainer)
        if batch_idx and self._compared:
            return
        self._compared, self._trusts_marks = True, False
        learner = cast("FrozenTeacher", pl_module)
        split = learner.split_batch(batch)
        cached = learner.teacher_activations(split)
        for layer, computed in teacher_pass.compute(split).items():
            self._compare(trainer, layer, computed, cached[layer])
        self._trusts_marks = is_marked_immutable(split.teacher, index_of(split))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise if a row of the epoch has changed."""
        self._check_deferred(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raise if a row has changed, before weights that learned from it are saved."""
        self._check_deferred(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the scheme run its teacher again, and free the table."""
        if isinstance(pl_module, FrozenTeacher):
            pl_module.teacher_source = None
        self._table = self._pass = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Undo the replacement after a failed fit, too."""
        self.teardown(trainer, pl_module, "fit")

    # ---- in each step

    def _look_up(self, batch: Batch) -> Activations:
        teacher_pass, table = self._pass, self._table
        assert teacher_pass is not None
        assert table is not None
        rows = teacher_pass.rows
        if rows.trainer.state.stage is not RunningStage.TRAINING:
            return teacher_pass.learner.run_teacher(batch)
        index = index_of(batch)
        is_unchanged = self._trusts_marks and is_marked_immutable(batch.teacher, index)
        view = 0 if rows.views is None else rows.data.view_of_batch()
        try:
            return table.look_up(index, None if is_unchanged else row_fingerprints(batch.teacher), view)
        except CacheMismatchError as mismatch:
            raise self._usage_error(mismatch, rows.trainer) from None

    def _check_deferred(self, trainer: Trainer) -> None:
        try:
            if self._table is not None:
                self._table.check_deferred()
        except CacheMismatchError as mismatch:
            raise self._usage_error(mismatch, trainer) from None

    def _usage_error(self, mismatch: CacheMismatchError, trainer: Trainer) -> UsageError:
        # a deferred check may report a row of the epoch before
        where = "" if mismatch.others is None else f" in epoch {epoch(trainer)}"
        if not mismatch.is_cached:
            return UsageError(
                f"training row {mismatch.row}{where} is missing from train_rows(): return every training row there, or "
                "remove TeacherCache"
            )
        others = f" (and {mismatch.others} more of its batch)" if mismatch.others else ""
        return UsageError(
            f"training row {mismatch.row}{others}{where} differs from the cached teacher's input: a hook augments it, "
            "or train_rows() differs from the training data; make it the data's `augmentation`, or remove TeacherCache"
        )

    def _compare(self, trainer: Trainer, layer: str, computed: Tensor, cached: Tensor) -> None:
        if not computed.is_floating_point():
            computed, cached = computed.double(), cached.double()
        # Half of the digits: another batch size changes the rounding, another row or image changes far more.
        eps = torch.finfo(torch.bfloat16 if self.precision == "bf16" else computed.dtype).eps
        if computed.is_cuda and computed.dtype == torch.float32:
            eps = max(eps, TF32_EPS)
        tolerance = eps**0.5
        allowed = tolerance * computed.abs().max().item()
        difference = (computed - cached).abs().max().item()
        if not difference <= allowed:  # NaN, the sentinel row's outputs, fails too
            remedy = "remove TeacherCache" if self._path is None else f"delete {self._path}"
            raise UsageError(
                f"cached teacher {layer} are off by {difference:.3g} (rounding explains at most {allowed:.3g}) in "
                f"epoch {epoch(trainer)}: rows are shifted, or the teacher's code has changed since the pass; {remedy}"
            )

    # ---- the pass

    def _load_or_compute(self, teacher_pass: TeacherPass, cache_dir: Path) -> LookupTable:
        """Load the pass's file; run the pass and write the file first if it is missing."""
        rows, device = teacher_pass.rows, teacher_pass.learner.device
        files = CacheDirectory(cache_dir, rows.trainer, teacher_pass.settings(), self.memory_limit_mib * MIB)
        if files.has_candidates():
            self._path = files.path(key := files.key(rows.collect_fingerprints()))
            if (table := files.load(key, device)) is not None:
                return table
        with files.write(rows.num_rows, teacher_pass.start()) as file:
            key = file.finish(teacher_pass.finish(file.put))
        self._path = files.path(key)
        if (table := files.load(key, device)) is None:
            raise OSError(
                f"{self._path} does not exist for all processes: give TeacherCache a cache_dir that they share"
            )
        return table

    def _compute_in_memory(self, teacher_pass: TeacherPass) -> LookupTable:
        specs = teacher_pass.start()
        if (size := sum(spec.num_bytes for spec in specs.values()) / MIB) > self.memory_limit_mib:
            raise UsageError(
                f"teacher outputs of all rows at {', '.join(specs)} take {size:.4g} MiB, more than "
                f"memory_limit_mib={self.memory_limit_mib:g}: give TeacherCache a cache_dir to map a file from, raise "
                "the limit, or let the terms address fewer or smaller layers"
            )
        outputs = {layer: empty_table(spec, teacher_pass.learner.device) for layer, spec in specs.items()}

        def store(layer: str, row: int, values: Tensor) -> None:
            outputs[layer][row : row + len(values)] = values

        return LookupTable(teacher_pass.finish(store), outputs)
