"""A pass of a teacher over all training rows."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import nullcontext
from hashlib import sha256
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from kd_lightning.core.activations import Activations
from kd_lightning.core.errors import UsageError
from kd_lightning.core.freezing import is_frozen
from kd_lightning.core.hashing import weights_hash
from kd_lightning.core.learner import Batch
from kd_lightning.core.torch_internals import BatchNorm
from kd_lightning.schemes.frozen_teacher import FrozenTeacher
from kd_lightning.speed.teacher_cache.file import TensorSpec
from kd_lightning.speed.teacher_cache.training_rows import RowFingerprints, TrainingRows, all_gather_rows, index_of

FORMAT = 2
"""Version of the file's layout; a change makes older files unused."""
StoreRows = Callable[[str, int, Tensor], None]
"""Stores the outputs at a layer, beginning with the given row number."""


class TeacherPass:
    """Computes a scheme's teacher outputs for all training rows.

    Args:
        rows: The training rows.
        learner: The scheme, checked by `require_cacheable`.
        autocast_bf16: Compute in bfloat16; outputs are then rounded to it and stored as float32.
    """

    def __init__(self, rows: TrainingRows, learner: FrozenTeacher, autocast_bf16: bool) -> None:
        self.rows = rows
        self.learner = learner
        self.autocast_bf16 = autocast_bf16
        self.specs: dict[str, TensorSpec] = {}
        self._outputs = self._run()
        self._first: list[tuple[int, Activations]] = []

    def compute(self, batch: Batch) -> Activations:
        """Run the teacher on a batch as in a training step."""
        autocast = torch.autocast(self.learner.device.type, torch.bfloat16) if self.autocast_bf16 else nullcontext()
        with self.rows.trainer.precision_plugin.train_step_context(), autocast:
            outputs = self.learner.run_teacher(batch)
        if not self.autocast_bf16:
            return outputs
        return {layer: values.float() if values.is_floating_point() else values for layer, values in outputs.items()}

    def start(self) -> dict[str, TensorSpec]:
        """Run the teacher on the first batch, and return the tables that all rows and the sentinel row need."""
        start, outputs = next(self._outputs)
        self._first = [(start, outputs)]
        size = self.rows.num_rows * (self.rows.views or 1) + 1
        self.specs = {layer: TensorSpec(values.dtype, (size, *values.shape[1:])) for layer, values in outputs.items()}
        return self.specs

    def finish(self, store: StoreRows) -> RowFingerprints:
        """Run the teacher on the other batches, store all outputs, and return the rows' fingerprints."""
        for start, outputs in chain(self._first, self._outputs):
            for layer, values in outputs.items():
                if (shape := tuple(values.shape[1:])) != (first := self.specs[layer].shape[1:]):
                    raise UsageError(
                        f"the teacher's {layer} is {first} for some rows and {shape} for others: bring all inputs to "
                        "one size, or remove TeacherCache"
                    )
                store(layer, start, values)
        self._first = []
        return self.rows.take_fingerprints()

    def settings(self) -> dict[str, Any]:
        """List the plain values that the outputs depend on, the inputs apart."""
        learner = self.learner
        return {
            "format": FORMAT,
            "teacher": weights_hash(learner.teacher),
            "network": sha256(repr(learner.teacher).encode()).hexdigest(),  # weights do not tell a stride
            "run by": type(learner).run_teacher.__qualname__,
            "layers": sorted(learner.terms.layers("teacher")),
            "precision": [self.rows.trainer.precision, self.autocast_bf16, torch.get_float32_matmul_precision()],
            "device": learner.device.type,
            "views": self.rows.views,
            "torch": torch.__version__,  # another release may round differently
        }

    def _run(self) -> Generator[tuple[int, Activations]]:
        for start, batch in self.rows:
            num_rows, outputs = len(index_of(batch)), self.compute(batch)
            for layer, values in outputs.items():
                if values.shape[:1] != (num_rows,):
                    raise UsageError(
                        f"the teacher's {layer} is {tuple(values.shape)} for {num_rows} rows, not one entry a row: "
                        "address another layer, or remove TeacherCache"
                    )
            yield start, {layer: all_gather_rows(values) for layer, values in outputs.items()}


def require_cacheable(module: LightningModule) -> FrozenTeacher:
    """Return a scheme if its teacher's outputs are functions of each row's input.

    Raises:
        UsageError: They are not, or the scheme has no frozen teacher.
    """
    if not isinstance(module, FrozenTeacher) or not module.teacher_sees_data:
        raise UsageError(
            f"{type(module).__name__} has no frozen teacher whose inputs are rows of the data: remove TeacherCache"
        )
    if parameters := set(module.terms.layers("teacher")) & {name for name, _ in module.teacher.named_parameters()}:
        raise UsageError(
            f"TeacherCache cannot cache terms on teacher parameters ({', '.join(sorted(parameters))}): remove these "
            "terms or TeacherCache"
        )
    if any(isinstance(layer, BatchNorm) and layer.running_mean is None for layer in module.teacher.modules()):
        raise UsageError(
            "the teacher's BatchNorm has no running statistics and normalizes by each batch's own: set its "
            "track_running_stats, or remove TeacherCache"
        )
    if not is_frozen(module.teacher):
        raise UsageError("the teacher is not frozen, so that cached outputs would be stale: remove TeacherCache")
    return module
