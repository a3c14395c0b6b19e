"""No step waits for the device: the operators that would copy a value to the host are counted, on a CPU as well.

On a GPU (`make test-gpu`) CUDA itself is asked, too.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kd_lightning import Classifier, OfflineDistiller, Term
from kd_lightning.callbacks import FastLoop, Linear, TeacherCache, TemperatureSchedule
from kd_lightning.core import finite_check
from kd_lightning.core.progress import should_log
from kd_lightning.losses import HintLoss, KDLoss, RKDLoss, TaskLoss
from kd_lightning.networks import ConvNet, freeze
from tests import toys

WAITING = {
    "aten::_local_scalar_dense",  # item, float, bool, tolist
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",  # and a mask as an index
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
}


class Counting(TorchDispatchMode):
    """Counts the operators whose result, or its shape, the host must know before it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if (name := func._schema.name) in WAITING:
            self.found[name] += 1
        result = func(*args, **kwargs or {})
        if name == "aten::_to_copy" and isinstance(result, Tensor) and result.device != args[0].device:
            self.found[name] += 1
        return result


class Steps(Callback):
    """Counts from the end of one step to the end of the next, by whether a log is due; it is written after the end."""

    def __init__(self) -> None:
        self.counting = Counting()
        self.found: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        self.steps = 0
        self._due = True

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self._due:
            self._keep()
        self._due = should_log(trainer) or batch_idx == 0
        if pl_module.device.type == "cuda":  # which sees the backward pass too: it has a thread of its own there
            torch.cuda.set_sync_debug_mode("default" if self._due else "error")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        self._keep()
        self.steps += 1

    def _keep(self):
        self.found[self._due] += self.counting.found
        self.counting.found.clear()


class OnDevice(Callback):
    """Lets a cache look rows up as it does where a wait costs something."""

    def __init__(self, cache: TeacherCache) -> None:
        self.cache = cache

    def on_train_start(self, trainer, pl_module):
        assert self.cache._table is not None
        self.cache._table.defers_checks = True


def adam(parameters):
    return torch.optim.Adam(parameters, fused=True)


def distiller(**terms: Term) -> OfflineDistiller:
    task = {"task": Term(TaskLoss(), weight=0.5, teacher=None), "kd": Term(KDLoss(temperature=3.0), weight=0.5)}
    return OfflineDistiller(ConvNet(4), freeze(ConvNet(8)), task | terms, optimizer=adam)


def features() -> dict[str, Term]:
    return {
        "hint": Term(HintLoss(4, 8), student="conv.3", teacher="conv.3"),
        "rkd": Term(RKDLoss(), student="conv.5", teacher="conv.5"),
    }


def counted(folder, learner, *callbacks, **changes) -> Steps:
    steps = Steps()
    arguments = {"max_epochs": 2, "logger": CSVLogger(folder), "log_every_n_steps": 4} | changes
    trainer = toys.trainer(folder, FastLoop(), *callbacks, steps, **arguments)
    with steps.counting:
        trainer.fit(learner, toys.data(train_size=192, augmentation=None))
    assert steps.steps == 2 * 12
    assert steps.counting.calls > 1000
    return steps


CASES = {
    "alone": lambda cache: (Classifier(ConvNet(4), optimizer=adam), []),
    "live teacher": lambda cache: (distiller(), []),
    "cached teacher": lambda cache: (distiller(), [cache, OnDevice(cache)]),
    "cached features": lambda cache: (distiller(**features()), [cache, OnDevice(cache)]),
    "temperature": lambda cache: (distiller(), [TemperatureSchedule(Linear(8.0, 1.0, duration=20))]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("changes", [{}, {"gradient_clip_val": 0.1}], ids=["plain", "clipped"])
def test_no_step_waits_for_the_device(name, changes, tmp_path, monkeypatch):
    monkeypatch.setattr(finite_check, "answers_at_once", lambda device: False)  # as on a device
    learner, callbacks = CASES[name](TeacherCache())
    steps = counted(tmp_path, learner, *callbacks, **changes)
    assert not steps.found[False]
    assert steps.found[True]["aten::_local_scalar_dense"]  # what is logged is looked at


class Looks(nn.Module):
    """A loss that waits."""

    def forward(self, student, teacher, target=None):
        loss = student.square().mean()
        return loss if loss > -1 else -loss


@pytest.mark.skipif(toys.ACCELERATOR == "gpu", reason="there it is CUDA's error in the midst of the run")
def test_a_loss_that_waits_is_found(tmp_path):
    steps = counted(tmp_path, distiller(looks=Term(Looks(), teacher=None)))
    assert steps.found[False]["aten::_local_scalar_dense"] >= 2 * 8
