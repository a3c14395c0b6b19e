"""After an error or an interrupt anywhere the run resumes from a whole step, and ends as an undisturbed one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.nn import functional

from kd_lightning import Term, UsageError
from kd_lightning.callbacks import Distillation, FastLoop, FaultTolerance
from kd_lightning.data.loaders import TrainLoader
from kd_lightning.data.noise import NoiseLoader
from kd_lightning.losses import KDLoss
from tests import toys
from tests.run_rows import Result, fit, rows, same
from tests.schemes.adversarial.test_adversarial_distiller import learner as adversarial
from tests.schemes.data_free import test_data_free as data_free
from tests.schemes.online.test_mutual import mutual

pytestmark = pytest.mark.filterwarnings("ignore:.*(exists and is not empty|manual optimization|val_dataloader)")


class Users(LightningModule):
    """A module of somebody else, which `Distillation` distils in."""

    def __init__(self) -> None:
        super().__init__()
        self.network = toys.network(seed=1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/nll", functional.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


def zskt() -> LightningModule:
    return data_free.learner(data_free.of_both(), classes=10, student_steps=3)


def distillation() -> list[Callback]:
    return [Distillation("network", toys.network(16, seed=2), {"kd": Term(KDLoss(3.0), weight=0.5)})]


class Run:
    """A run: the module, further callbacks, the data and the trainer's arguments."""

    def __init__(self, module: Callable[[], LightningModule], callbacks: Any = list, **more: Any) -> None:
        self.module, self.callbacks, self.more = module, callbacks, more

    def fit(self, folder: Any, *callbacks: Callback, **more: Any) -> Result:
        return fit(folder, self.module(), *self.callbacks(), *callbacks, **self.more | more)


RUNS = {
    "offline": Run(toys.offline),
    "lightning's loop": Run(toys.offline, lambda: [FastLoop(enabled=False)]),
    "accumulated": Run(toys.offline, accumulate_grad_batches=2),
    "mutual": Run(mutual),
    "several moves a batch": Run(zskt, data=lambda: data_free.numbers()),
    "adversarial": Run(adversarial),
    "drop-in": Run(Users, distillation),
}


class At(Callback):
    """Does something once in training: at the given call of `point` in the batch of this number, from 0."""

    def __init__(self, point: str, batch: int, action: Callable[[], object], call: int = 1) -> None:
        self.point, self.batch, self.action, self.left = point, batch, action, call

    def reach(self, *_: Any) -> None:
        if self.trainer.training and self.trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1 == self.batch:
            self.left -= 1
            if self.left == 0:
                self.action()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.trainer = trainer
        if self.point == "forward":
            network = next(each for each in pl_module.modules() if isinstance(each, nn.BatchNorm1d))
            network.register_forward_hook(self.reach)
        for optimizer in trainer.optimizers:
            if self.point == "before step":
                optimizer.register_step_pre_hook(self.reach)
            if self.point == "after step":
                optimizer.register_step_post_hook(self.reach)

    def on_train_batch_start(self, *_: Any) -> None:
        if self.point == "batch start":
            self.reach()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.point == "batch end":
            self.reach()


def raise_error() -> None:
    raise RuntimeError("injected")


def interrupt() -> None:
    raise KeyboardInterrupt


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def batches_in(checkpoint: Any) -> int:
    """The number of batches that a checkpoint counts."""
    loops = torch.load(checkpoint, weights_only=True)["loops"]["fit_loop"]
    counted = loops["epoch_loop.batch_progress"]["total"]
    assert counted["ready"] == counted["completed"]
    return counted["completed"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Each undisturbed run, made when it is asked for."""
    made: dict[str, Result] = {}

    def run(name: str) -> Result:
        if name not in made:
            made[name] = RUNS[name].fit(tmp_path_factory.mktemp("whole"))
        return made[name]

    return run


@pytest.fixture(autouse=True)
def handlers() -> Generator[None]:
    """A shell starts what is in its background deaf to Ctrl-C; Lightning ignores a second one."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


IN_A_STEP = [
    ("offline", "forward", 1, raise_error),
    pytest.param("offline", "before step", 1, raise_error, marks=pytest.mark.slow),
    ("offline", "after step", 1, interrupt),
    ("offline", "batch end", 1, raise_error),
    ("lightning's loop", "after step", 1, raise_error),
    pytest.param("lightning's loop", "batch start", 1, interrupt, marks=pytest.mark.slow),
    pytest.param("accumulated", "batch start", 1, raise_error, marks=pytest.mark.slow),
    ("mutual", "after step", 1, raise_error),
    ("several moves a batch", "after step", 3, interrupt),
    ("adversarial", "before step", 2, raise_error),
    ("drop-in", "after step", 1, interrupt),
]


@pytest.mark.parametrize(("name", "point", "call", "action"), IN_A_STEP)
def test_a_step_that_is_interrupted_is_not_saved(name, point, call, action, whole, tmp_path):
    with pytest.raises((RuntimeError, SystemExit)):
        RUNS[name].fit(tmp_path, At(point, 5, action, call))
    last = tmp_path / "last.ckpt"
    assert batches_in(last) == 4
    assert same(RUNS[name].fit(tmp_path, ckpt_path=last), whole(name))


def test_an_error_before_the_first_checkpoint_leaves_none(tmp_path):
    with pytest.raises(RuntimeError, match="injected"):
        RUNS["offline"].fit(tmp_path, At("after step", 2, raise_error))
    assert not list(tmp_path.glob("*.ckpt"))


LOADERS = [("offline", TrainLoader), ("accumulated", TrainLoader), ("several moves a batch", NoiseLoader)]


@pytest.mark.parametrize(("name", "loader"), LOADERS)
def test_an_error_between_two_steps_is_saved(name, loader, whole, tmp_path, monkeypatch):
    def batch(self: Any, position: int) -> Any:
        return raise_error() if position == 6 else build(self, position)

    build = loader._batch
    monkeypatch.setattr(loader, "_batch", batch)
    with pytest.raises(RuntimeError, match="injected"):
        RUNS[name].fit(tmp_path)
    monkeypatch.undo()
    last = tmp_path / "last.ckpt"
    assert batches_in(last) == 6
    assert same(RUNS[name].fit(tmp_path, ckpt_path=last), whole(name))


SIGNALS = [
    ("offline", "forward", signal.SIGINT),
    ("lightning's loop", "after step", signal.SIGINT),
    ("accumulated", "batch start", signal.SIGINT),
    ("accumulated", "batch end", signal.SIGTERM),
    ("several moves a batch", "after step", signal.SIGINT),
    ("drop-in", "before step", signal.SIGINT),
]


@pytest.mark.parametrize(("name", "point", "number"), SIGNALS)
def test_a_signal_stops_after_the_step(name, point, number, whole, tmp_path):
    batch = 4 if name == "accumulated" else 5  # the first of two, or a last one
    before = signal.getsignal(number)
    tolerance = FaultTolerance(handles_sigint=True)
    with pytest.raises(SystemExit):
        RUNS[name].fit(tmp_path, tolerance, At(point, batch, send(number)))
    assert tolerance.received_signal == number
    assert signal.getsignal(number) is before
    last = tmp_path / "last.ckpt"
    assert batches_in(last) == 6
    assert same(RUNS[name].fit(tmp_path, ckpt_path=last), whole(name))


def test_a_second_ctrl_c_stops_at_once_and_saves_nothing(tmp_path):
    def twice() -> None:
        send(signal.SIGINT)()
        assert reached  # the first one has only asked
        send(signal.SIGINT)()

    reached = [True]
    with pytest.raises(SystemExit) as end:
        RUNS["offline"].fit(tmp_path, FaultTolerance(handles_sigint=True), At("after step", 1, twice))
    assert isinstance(end.value.__context__, KeyboardInterrupt)
    assert not list(tmp_path.glob("*.ckpt"))
    assert len(rows(tmp_path)) == 1  # of the step before


def test_the_handlers_of_a_program_stay(tmp_path):
    """Without `handles_sigint` Ctrl-C reaches the program's own handler; SIGTERM does in any case."""
    received = []
    signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    with pytest.raises(SystemExit):
        RUNS["offline"].fit(tmp_path, At("forward", 1, send(signal.SIGINT)), At("forward", 2, send(signal.SIGTERM)))
    assert received == [signal.SIGINT, signal.SIGTERM]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), float("inf")])
def test_a_time_out_that_is_none_is_refused(seconds):
    with pytest.raises(UsageError, match=r"step_timeout=.* must be a number of seconds"):
        FaultTolerance(step_timeout=seconds)
