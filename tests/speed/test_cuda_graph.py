"""Which steps are recorded; what a replay does is to be seen on a GPU, in `test_gpu.py`."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from kd_lightning import OfflineDistiller
from kd_lightning.callbacks import (
    Constant,
    EMATeacher,
    FastLoop,
    TeacherCache,
    TeacherFreezing,
    TemperatureSchedule,
)
from kd_lightning.cli.engine import build
from kd_lightning.speed.fast_loop.cuda_graph import CUDAGraphStep, _without_repeats
from tests import toys

ON_A_CPU = "the run is not on one GPU"
"""What is said last: nothing else was in the way."""


def fused(parameters):
    return torch.optim.Adam(parameters, fused=True)


def falling(parameters):
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def unrecorded(folder, *callbacks, optimizer=fused, **changes):
    learner = OfflineDistiller(toys.network(seed=1), toys.network(seed=2), toys.terms())
    loop = FastLoop(cuda_graph=True)
    learner.configure_optimizers = lambda: optimizer(learner.parameters())
    trainer = toys.trainer(folder, *callbacks, loop, **{"max_epochs": 1} | changes)
    trainer.fit(learner, toys.data(augmentation=None))
    return loop.unrecorded


class Looks(Callback):
    def on_after_backward(self, trainer, pl_module):
        pass


class Hooked(Callback):
    def on_train_start(self, trainer, pl_module):
        trainer.optimizers[0].register_step_post_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("callbacks", "changes", "reason"),
    [
        ([], {}, ON_A_CPU),
        ([TeacherFreezing(), TeacherCache()], {"precision": "bf16-mixed"}, ON_A_CPU),
        ([], {"gradient_clip_val": 1.0}, ON_A_CPU),
        ([], {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)}, ON_A_CPU),
        ([], {"optimizer": torch.optim.Adam}, "Adam counts its steps on the CPU: set the optimizer's `fused: true`"),
        ([], {"optimizer": falling}, "a scheduler changes the learning rate at each step"),
        ([], {"accumulate_grad_batches": 2}, "gradients are accumulated"),
        ([TemperatureSchedule(Constant(2.0))], {}, "TemperatureSchedule changes the training step"),
        ([EMATeacher()], {}, "EMATeacher changes the training step"),
        ([Looks()], {}, "Looks.on_after_backward is called in the midst of a step"),
        ([Hooked()], {}, "the optimizer has hooks"),
        ([], {"fast_dev_run": True}, "fast_dev_run logs every step"),
    ],
)
def test_what_cannot_be_recorded_is_said(callbacks, changes, reason, tmp_path):
    assert unrecorded(tmp_path, *callbacks, **changes) == reason


def test_a_frozen_teacher_that_is_to_learn_later_is_in_the_way(tmp_path):
    reason = unrecorded(tmp_path, TeacherFreezing("student", freeze_at=1))
    assert reason == "TeacherFreezing.on_after_backward is called in the midst of a step"


def test_nothing_is_said_unless_it_is_asked_for(tmp_path):
    loop = FastLoop()
    toys.trainer(tmp_path, loop, max_epochs=1).fit(toys.classifier(), toys.data())
    assert loop.unrecorded is None


def test_the_shipped_part_has_nothing_in_the_way_but_the_cpu(workplace):
    given = ["--config=configs/mnist/distilled.yaml", "--config=configs/parts/cuda_graph.yaml"]
    short = [
        "--trainer.accelerator=cpu",
        "--trainer.limit_train_batches=3",
        "--trainer.limit_val_batches=1",
        "--data.init_args.train_size=640",
    ]
    own = [
        "--trainer.max_epochs=1",
        "--trainer.enable_checkpointing=false",
        "--trainer.callbacks+=TeacherCache",
        "--trainer.default_root_dir=run",
    ]
    run = build([*given, *short, *own])
    run.run()
    loops = [callback for callback in run.trainer.callbacks if isinstance(callback, FastLoop)]
    assert [loop.unrecorded for loop in loops] == [ON_A_CPU]


def test_what_is_repeated_in_memory_is_copied_once():
    x = torch.arange(6.0).view(2, 1, 3).expand(-1, 4, -1)
    assert _without_repeats(x).shape == (2, 1, 3)
    assert torch.equal(_without_repeats(x).clone().expand_as(x), x)
    assert _without_repeats(x.contiguous()).shape == x.shape


@pytest.mark.parametrize("batch", [{"x": torch.zeros(1)}, torch.zeros(1), (torch.zeros(1), None), (torch.zeros(1),)])
def test_other_batches_are_left_alone_and_it_says_why(batch):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    graph = CUDAGraphStep()
    for _ in range(9):
        assert graph.replay(batch, optimizer, lambda _: pytest.fail("recorded")) is None
    assert graph.failure == f"a batch is a {type(batch).__name__}, not a tuple of tensors on the GPU"
