"""A teacher, asked about every training row."""

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
from kd_lightning.speed.teacher_cache.file import Kind
from kd_lightning.speed.teacher_cache.training_rows import Inputs, Walk, index_of, merged

Put = Callable[[str, int, Tensor], None]
"""Keeps what was shown at a layer of rows, from the given one on."""


class Asking:
    """What a scheme's teacher shows of the rows of a walk.

    Args:
        walk: Over the rows.
        learner: The scheme, `require_cacheable`.
        halves: Computes in bfloat16, and rounds to it what is then kept as float32.
    """

    def __init__(self, walk: Walk, learner: FrozenTeacher, halves: bool) -> None:
        self.walk = walk
        self.learner = learner
        self.halves = halves
        self.kinds: dict[str, Kind] = {}
        self._asked = self._ask()
        self._first: list[tuple[int, Activations]] = []

    def live(self, batch: Batch) -> Activations:
        """What the teacher shows of a batch as it does in a training step."""
        half = torch.autocast(self.learner.device.type, torch.bfloat16) if self.halves else nullcontext()
        with self.walk.trainer.precision_plugin.train_step_context(), half:
            shown = self.learner.run_teacher(batch)
        if not self.halves:
            return shown
        return {layer: values.float() if values.is_floating_point() else values for layer, values in shown.items()}

    def begin(self) -> dict[str, Kind]:
        """Asks about the first rows: what tables it takes for all, with a place that is of no row."""
        start, answers = next(self._asked)
        self._first = [(start, answers)]
        size = self.walk.num_rows * (self.walk.views or 1) + 1
        self.kinds = {layer: Kind(values.dtype, (size, *values.shape[1:])) for layer, values in answers.items()}
        return self.kinds

    def finish(self, put: Put) -> Inputs:
        """Asks about the others, and hands all answers over; what the rows looked like."""
        for start, answers in chain(self._first, self._asked):
            for layer, values in answers.items():
                if (shape := tuple(values.shape[1:])) != (first := self.kinds[layer].shape[1:]):
                    raise UsageError(
                        f"the teacher's {layer} is {first} for some rows and {shape} for others: bring all inputs to "
                        "one size, or train without TeacherCache"
                    )
                put(layer, start, values)
        self._first = []
        return self.walk.inputs()

    def depends_on(self) -> dict[str, Any]:
        """What the answers depend on besides what the teacher is shown: plain values."""
        learner = self.learner
        return {
            "teacher": weights_hash(learner.teacher),
            "network": sha256(repr(learner.teacher).encode()).hexdigest(),  # a stride is no weight
            "run by": type(learner).run_teacher.__qualname__,
            "layers": sorted(learner.terms.layers("teacher")),
            "precision": [self.walk.trainer.precision, self.halves, torch.get_float32_matmul_precision()],
            "device": learner.device.type,
            "views": self.walk.views,
            "torch": torch.__version__,  # another release may round otherwise
        }

    def _ask(self) -> Generator[tuple[int, Activations]]:
        for start, batch in self.walk:
            own, answers = len(index_of(batch)), self.live(batch)
            for layer, values in answers.items():
                if values.shape[:1] != (own,):
                    raise UsageError(
                        f"the teacher's {layer} is {tuple(values.shape)} for {own} rows, and has none for each: "
                        "address another layer, or train without TeacherCache"
                    )
            yield start, {layer: merged(values) for layer, values in answers.items()}


def require_cacheable(module: LightningModule) -> FrozenTeacher:
    """A scheme whose teacher's answers are fixed by its input.

    Raises:
        UsageError: They are not, or it has no teacher whose place could be taken.
    """
    if not isinstance(module, FrozenTeacher) or not module.teacher_sees_data:
        raise UsageError(
            f"{type(module).__name__} has no frozen teacher whose inputs are rows of the data: drop TeacherCache"
        )
    if parameters := set(module.terms.layers("teacher")) & {name for name, _ in module.teacher.named_parameters()}:
        raise UsageError(f"terms look at the teacher's {', '.join(parameters)}, which no row has: drop TeacherCache")
    if any(isinstance(layer, BatchNorm) and layer.running_mean is None for layer in module.teacher.modules()):
        raise UsageError("the teacher's BatchNorm looks at the whole batch, which differs: train without TeacherCache")
    if not is_frozen(module.teacher):
        raise UsageError("the teacher is not frozen, and what it said would not hold: train without TeacherCache")
    return module
