"""A run that was interrupted and resumed ends with the very same bits; test_every_scheme resumes from every step."""

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
def truth(tmp_path_factory):
    """The weights after an uninterrupted run."""
    learner = toys.offline()
    toys.trainer(tmp_path_factory.mktemp("whole")).fit(learner, toys.data())
    return toys.weights(learner)


@pytest.mark.parametrize("steps", [(1, 3), (4, 5), (6, 7), (3, 4)])
def test_resume_after_two_interruptions_is_bit_exact(steps, truth, tmp_path):
    saved = interrupted(tmp_path, toys.offline(), steps[0])
    saved = interrupted(tmp_path, toys.offline(), steps[1], ckpt_path=saved)
    learner = toys.offline()
    toys.trainer(tmp_path).fit(learner, toys.data(), ckpt_path=saved)
    assert toys.same(toys.weights(learner), truth)


def test_what_is_tested_here_would_fail_without_exact_resume(truth, tmp_path):
    """Dropout is on: another seeding of the steps gives other weights."""
    learner = toys.offline()
    run = toys.trainer(tmp_path)
    run.callbacks = [callback for callback in run.callbacks if type(callback).__name__ != "ExactResume"]
    run.fit(learner, toys.data())
    assert not toys.same(toys.weights(learner), truth)
