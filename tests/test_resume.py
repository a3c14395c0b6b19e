"""A run that was stopped and resumed, at any step, ends with the very same bits."""

from __future__ import annotations

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from tests import toys

# the runs that are resumed here write no checkpoints of their own
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


class StopAt(Callback):
    """Ctrl-C in the middle of a run, before the given number of steps is exceeded."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def interrupted(folder, learner, step, ckpt_path=None):
    checkpoint = ModelCheckpoint(folder, save_on_exception=True, save_top_k=0, save_last=True)
    with pytest.raises(SystemExit):  # which is what Lightning makes of it
        toys.trainer(folder, StopAt(step), checkpoint).fit(learner, toys.data(), ckpt_path=ckpt_path)
    return max(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Each scheme's uninterrupted run: its weights, and a checkpoint after every optimizer step."""
    runs = {}
    for name, build in toys.LEARNERS.items():
        folder = tmp_path_factory.mktemp(name)
        every_step = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        every_epoch = ModelCheckpoint(folder, "epoch-{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        learner = build()
        toys.trainer(folder, every_step, every_epoch).fit(learner, toys.data())
        runs[name] = (toys.weights(learner), sorted(folder.glob("*.ckpt")))
    return runs


@pytest.mark.parametrize("name", toys.LEARNERS)
def test_resume_from_every_checkpoint_is_bit_exact(name, finished, tmp_path):
    truth, checkpoints = finished[name]
    assert len(checkpoints) == 12 + 3  # four steps in each of three epochs, and the epochs' ends
    for checkpoint in checkpoints:
        learner = toys.LEARNERS[name]()
        toys.trainer(tmp_path).fit(learner, toys.data(), ckpt_path=checkpoint)
        assert toys.same(toys.weights(learner), truth), checkpoint.name


@pytest.mark.parametrize("steps", [(1, 3), (4, 5), (6, 7), (3, 4)])
def test_resume_after_two_interruptions_is_bit_exact(steps, finished, tmp_path):
    truth, _ = finished["offline"]
    saved = interrupted(tmp_path, toys.offline(), steps[0])
    saved = interrupted(tmp_path, toys.offline(), steps[1], ckpt_path=saved)
    learner = toys.offline()
    toys.trainer(tmp_path).fit(learner, toys.data(), ckpt_path=saved)
    assert toys.same(toys.weights(learner), truth)


def test_what_is_tested_here_would_fail_without_exact_resume(finished, tmp_path):
    """Dropout is on: another seeding of the steps gives other weights."""
    truth, _ = finished["offline"]
    learner = toys.offline()
    run = toys.trainer(tmp_path)
    run.callbacks = [callback for callback in run.callbacks if type(callback).__name__ != "ExactResume"]
    run.fit(learner, toys.data())
    assert not toys.same(toys.weights(learner), truth)
