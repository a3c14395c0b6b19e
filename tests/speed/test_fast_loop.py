"""The fast loop against Lightning's own: whatever a fit leaves behind must be the same, bit for bit."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from contextlib import nullcontext
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR
from torch.optim.swa_utils import get_ema_avg_fn
from torchmetrics.classification import MulticlassAccuracy

from kd_lightning import OfflineDistiller
from kd_lightning.callbacks import FastLoop, Linear, TeacherCache, TemperatureSchedule
from kd_lightning.cli.run_loggers import TensorBoardEvents
from kd_lightning.speed.fast_loop.epoch import FastEpoch
from kd_lightning.speed.fast_loop.step import FastStep
from tests import toys
from tests.ranks import run_two, two_processes

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before:UserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning"),
]

HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class Recorder(Callback):
    """Every hook around a batch, what it was given and where the counters stood."""

    def __init__(self) -> None:
        self.seen: list[Any] = []


def _record(name: str) -> Any:
    def hook(self: Recorder, trainer: Any, module: Any, *args: Any) -> None:
        loop = trainer.fit_loop.epoch_loop
        counters = (loop.batch_progress.state_dict(), loop.automatic_optimization.optim_progress.state_dict())
        steps = (trainer.global_step, loop._batches_that_stepped, module._current_fx_name)
        self.seen.append((name, plain(args), plain(counters), steps))

    return hook


for hook in HOOKS:
    setattr(Recorder, hook, _record(hook))


def plain(value: Any) -> Any:
    """Something that compares by its bits."""
    if isinstance(value, Tensor):
        flat = value.detach().flatten()
        large = flat.numel() > 64  # as numbers of Python's, batches would take hundreds of MiB
        bits = sha256(flat.cpu().view(torch.uint8).numpy()).hexdigest() if large else flat.tolist()
        return (str(value.dtype), list(value.shape), bits)
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return type(value).__name__ if isinstance(value, torch.optim.Optimizer) else value


class Chatty(LightningModule):
    """Logs in every way at every step, has hooks of its own, and gives a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.network = toys.network(seed=3)
        self.accuracy = MulticlassAccuracy(10)
        self.calls: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.network(batch[0])
        loss = functional.cross_entropy(logits, batch[1])
        self.accuracy(logits, batch[1])
        self.log("acc", self.accuracy, on_step=True, on_epoch=True)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log_dict({"sum": loss, "step": float(self.global_step)}, on_step=False, on_epoch=True, reduce_fx="max")
        return {"loss": loss, "logits": logits.detach()}

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.calls.append("zero")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.calls.append(f"start {batch_idx}")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.calls.append(f"end {sorted(outputs)}")
        self.log("seen", float(batch_idx))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        norms = [p.grad.norm() for p in self.parameters() if p.grad is not None]
        self.log("norm", torch.stack(norms).sum())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/acc", functional.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Skips(toys.Classifier):
    """Ends its epochs early, and has steps without a loss."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 9 else None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx == 5 else super().training_step(batch, batch_idx)


class Stops(Callback):
    """As EarlyStopping would, in the middle of an epoch."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.should_stop = trainer.global_step == 13


class Saves(Callback):
    """A checkpoint of somebody's own, from within a step."""

    def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if trainer.global_step == 7:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "own.ckpt")


def scheduled(scheduler: Any, interval: Any) -> Any:
    def build() -> OfflineDistiller:
        networks = toys.network(seed=1), toys.network(width=16, seed=2)
        return OfflineDistiller(*networks, toys.terms(), lr_scheduler=scheduler, lr_interval=interval)

    return build


def saves_every(steps: int) -> ModelCheckpoint:
    return ModelCheckpoint(every_n_train_steps=steps, save_top_k=-1, filename="{step}", enable_version_counter=False)


class Averaging(WeightAveraging):
    """An exponential moving average from the third step on."""

    def __init__(self) -> None:
        super().__init__(avg_fn=get_ema_avg_fn(0.9))

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx >= 3


BUILD = toys.offline
EVERY_TENTH = {"log_every_n_steps": 10}
FITS: dict[str, tuple[Any, list[Any], dict[str, Any]]] = {
    "plain": (BUILD, [], {}),
    "never logs": (BUILD, [], {"log_every_n_steps": 0}),
    "logs every step": (BUILD, [], {"log_every_n_steps": 1}),
    "logs every seventh": (BUILD, [LearningRateMonitor], {"log_every_n_steps": 7}),
    "clips norms": (BUILD, [], {"gradient_clip_val": 0.1}),
    "clips values": (BUILD, [], {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "accumulates": (BUILD, [LearningRateMonitor], {"accumulate_grad_batches": 3}),
    "schedules each step": (scheduled(lambda o: StepLR(o, 5), "step"), [LearningRateMonitor], {}),
    "schedules each epoch": (scheduled(lambda o: CosineAnnealingLR(o, 3), "epoch"), [LearningRateMonitor], {}),
    "accumulates, schedules, clips": (
        scheduled(lambda o: StepLR(o, 2), "step"),
        [],
        {"accumulate_grad_batches": 4, "gradient_clip_val": 0.1, "log_every_n_steps": 2},
    ),
    "bf16": (BUILD, [], {"precision": "bf16-mixed"}),
    "float64": (BUILD, [], {"precision": "64-true"}),
    "averages weights": (toys.classifier, [Averaging], {}),
    "averages at the end": (toys.classifier, [lambda: StochasticWeightAveraging(1e-2, swa_epoch_start=1)], {}),
    "validates in mid-epoch": (BUILD, [], {"val_check_interval": 5}),
    "validates by fractions": (BUILD, [], {"val_check_interval": 0.25}),
    "validates over epochs": (BUILD, [], {"val_check_interval": 9, "check_val_every_n_epoch": None}),
    "validates now and then": (BUILD, [], {"check_val_every_n_epoch": 2}),
    "checkpoints every four": (BUILD, [lambda: saves_every(4)], {}),
    "checkpoints, accumulating": (BUILD, [lambda: saves_every(2)], {"accumulate_grad_batches": 3}),
    "checkpoints by the clock": (BUILD, [lambda: ModelCheckpoint(train_time_interval=timedelta(0))], {}),
    "a checkpoint of its own": (BUILD, [Saves], {}),
    "max_steps": (BUILD, [], {"max_steps": 19, "max_epochs": -1}),
    "max_steps at an epoch's end": (BUILD, [], {"max_steps": 32, "max_epochs": -1}),
    "few batches": (BUILD, [], {"limit_train_batches": 6}),
    "stops in mid-epoch": (BUILD, [Stops], {}),
    "stops later": (BUILD, [Stops], {"min_epochs": 2}),
    "max_time": (BUILD, [lambda: Timer(timedelta(hours=1))], {}),
    "stops early": (BUILD, [lambda: EarlyStopping("val/nll", patience=0, mode="max")], {"val_check_interval": 4}),
    "a bar": (BUILD, [lambda: RichProgressBar(refresh_rate=3)], {"enable_progress_bar": True}),
    "temperatures": (BUILD, [lambda: TemperatureSchedule(Linear(2.0, 6.0, 30))], {}),
    "looks up": (BUILD, [TeacherCache], {"augmentation": None}),
    "anyone's module": (Chatty, [], {}),
    "anyone's module, accumulating": (Chatty, [], {"accumulate_grad_batches": 3, "log_every_n_steps": 2}),
    "skips": (lambda: Skips(toys.network(seed=1)), [], {}),
    "several threads of batches": (BUILD, [], {"batch_size": 20}),
}


def fit(folder: Path, case: str, fast: bool, ckpt_path: Any = None, **changes: Any) -> dict[str, Any]:
    """What a fit leaves behind."""
    build, callbacks, arguments = FITS[case]
    arguments = EVERY_TENTH | arguments | changes
    of_data = {k: arguments.pop(k) for k in ("augmentation", "batch_size") if k in arguments}
    recorder, module, loop = Recorder(), build(), FastLoop()
    used = [recorder, *(callback() for callback in callbacks), *([loop] if fast else [])]
    if not any(isinstance(callback, ModelCheckpoint) for callback in used):
        used.append(ModelCheckpoint(dirpath=folder / "end", save_last=True))
    for callback in used:
        if isinstance(callback, ModelCheckpoint):
            callback.dirpath = str(folder / "saved")
    loggers = [CSVLogger(folder, name="", version=""), TensorBoardEvents(folder)]
    trainer = toys.trainer(folder, *used, **({"logger": loggers, "enable_checkpointing": True} | arguments))
    torch.manual_seed(0)
    trainer.fit(module, toys.data(train_size=256, val_size=40, **of_data), ckpt_path=ckpt_path)
    if fast:
        assert loop.reason is None
        assert any(name == "on_train_batch_end" for name, *_ in recorder.seen)
    trainer.save_checkpoint(folder / "after.ckpt")
    return {
        "weights": plain(dict(module.state_dict())),
        "optimizer": plain(trainer.optimizers[0].state_dict()),
        "loops": plain(trainer.fit_loop.state_dict()),
        "hooks": recorder.seen,
        "metrics": plain(dict(trainer.callback_metrics)),
        "logged": plain(dict(trainer.logged_metrics)),
        "bar": plain({k: float(v) for k, v in trainer.progress_bar_metrics.items()}),
        "calls": getattr(module, "calls", None),
        "rows": [path.read_text() for path in folder.glob("metrics.csv")],
        "events": events(folder),
        "checkpoints": {path.name: checkpoint(path) for path in sorted(folder.rglob("*.ckpt"))},
    }


def events(folder: Path) -> Any:
    accumulator = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def checkpoint(path: Path) -> Any:
    content = torch.load(path, weights_only=True)
    for state in content["callbacks"].values():  # names of folders and times differ
        for name in (
            "dirpath",
            "best_model_path",
            "last_model_path",
            "kth_best_model_path",
            "best_k_models",
            "time_elapsed",
        ):
            state.pop(name, None)
    return plain(content)


def assert_same(fast: dict[str, Any], own: dict[str, Any]) -> None:
    for name, truth in own.items():
        assert fast[name] == truth, name


@pytest.fixture
def fast_steps(monkeypatch):
    """Counts the steps that are not Lightning's own, so that no case is equal because all are."""
    counted = []
    run = FastStep.run
    monkeypatch.setattr(FastStep, "run", lambda self, *a, **k: (counted.append(1), run(self, *a, **k))[1])
    return counted


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")
@pytest.mark.parametrize("case", FITS)
def test_everything_that_a_fit_leaves_behind_is_the_same(case, tmp_path, fast_steps):
    own = fit(tmp_path / "own", case, fast=False)
    assert not fast_steps
    assert_same(fit(tmp_path / "fast", case, fast=True), own)
    assert len(fast_steps) >= 4


@pytest.mark.parametrize(
    "case", ["plain", "accumulates, schedules, clips", "validates in mid-epoch", "anyone's module"]
)
@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(
    "stop", [pytest.param(4, marks=pytest.mark.slow), 16, pytest.param(21, marks=pytest.mark.slow)]
)
def test_a_run_goes_on_from_any_step_in_every_combination(case, first, second, stop, tmp_path):
    """Lightning's loop in both runs is the truth: anyone's running means of an epoch are in no checkpoint."""
    kept = {}
    for combination, (one, two) in {"own": (False, False), "fast": (first, second)}.items():
        folder = tmp_path / combination
        fit(folder / "first", case, one, max_steps=stop if "accumulates" not in case else -(-stop // 4))
        kept[combination] = fit(folder / "second", case, two, ckpt_path=folder / "first" / "after.ckpt")
    assert_same(kept["fast"], kept["own"])


class TwoOptimizers(LightningModule):
    """By hand, as two players need it."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = toys.network()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(functional.cross_entropy(self.network(batch[0]), batch[1]))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.network(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class OwnStep(toys.Classifier):
    """Has something to say about the optimizer's step."""

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)


def plateau() -> toys.Classifier:
    module = toys.classifier()
    scheduler = {"interval": "step", "monitor": "train/loss", "strict": False}
    module.configure_optimizers = lambda: {
        "optimizer": (optimizer := torch.optim.SGD(module.parameters(), lr=0.1)),
        "lr_scheduler": scheduler | {"scheduler": ReduceLROnPlateau(optimizer)},
    }
    return module


REFUSED = {
    "TwoOptimizers has manual optimization": (TwoOptimizers, {}),
    "OwnStep overrides optimizer_step": (lambda: OwnStep(toys.network()), {}),
    "SimpleProfiler": (toys.classifier, {"profiler": SimpleProfiler()}),
    "fast_dev_run": (toys.classifier, {"fast_dev_run": 2}),
    "follows a metric": (plateau, {}),
}


@pytest.fixture
def told():
    """What Lightning prints by itself: no level of any logger is changed."""
    found = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, keep = logging.getLogger("lightning.pytorch.utilities.rank_zero"), Keep()
    logger.addHandler(keep)
    yield found
    logger.removeHandler(keep)


def of_the_loop(told: list[str]) -> list[str]:
    return [line for line in told if "FastLoop" in line]


@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric:RuntimeWarning")
@pytest.mark.parametrize("reason", REFUSED)
def test_what_it_does_not_support_runs_in_lightnings_loop_and_one_line_tells_why(reason, tmp_path, fast_steps, told):
    build, arguments = REFUSED[reason]
    loop = FastLoop()
    toys.trainer(tmp_path, loop, max_epochs=2, limit_val_batches=0, **arguments).fit(build(), toys.data())
    assert reason in (loop.reason or "")
    assert not fast_steps
    announced = [f"FastLoop: every step runs in Lightning's own loop: {loop.reason}"]
    assert of_the_loop(told) == ([] if reason == "fast_dev_run" else announced)  # a trial run is not to be fast


def test_another_release_of_lightning_runs_in_its_own_loop_and_is_named(tmp_path, fast_steps, told, monkeypatch):
    monkeypatch.setattr("lightning.__version__", "2.99.0")
    loop = FastLoop()
    toys.trainer(tmp_path, loop, max_epochs=2).fit(toys.classifier(), toys.data())
    assert "lightning 2.99.0 is not a tested release (tested: 2.6.6)" in (loop.reason or "")
    assert not fast_steps
    assert of_the_loop(told) == [f"FastLoop: every step runs in Lightning's own loop: {loop.reason}"]


@pytest.mark.parametrize("version", ["2.99.0", "2.6.6"])
def test_nothing_is_told_of_a_loop_that_is_switched_off_or_runs(version, tmp_path, told, monkeypatch):
    monkeypatch.setattr("lightning.__version__", version)
    toys.trainer(tmp_path, FastLoop(enabled=version == "2.6.6"), max_epochs=1).fit(toys.classifier(), toys.data())
    assert not of_the_loop(told)


@pytest.mark.slow
def test_the_command_line_names_another_release(workplace):
    code = (
        "import sys, lightning; lightning.__version__ = '2.99.0'; from kd_lightning.__main__ import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    small = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=0"]
    given = ["fit", "--config=configs/mnist/student.yaml", "--trainer.accelerator=cpu", *small]
    run = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=True)
    line = "FastLoop: every step runs in Lightning's own loop: lightning 2.99.0 is not a tested release (tested: 2.6.6)"
    assert (run.stdout + run.stderr).count(line) == 1


def test_only_the_first_of_several_processes_tells(tmp_path, told, monkeypatch):
    monkeypatch.setattr("lightning.__version__", "2.99.0")
    monkeypatch.setattr("lightning_utilities.core.rank_zero.rank_zero_only.rank", 1)
    toys.trainer(tmp_path, FastLoop(), max_epochs=1).fit(toys.classifier(), toys.data())
    assert not of_the_loop(told)


class Replays:
    """Stands for a recorded step."""

    failure = None

    def __init__(self) -> None:
        self.at: list[int] = []

    def replay(self, batch: Any, optimizer: Any, step: Any) -> None:
        self.at.append(optimizer.param_groups[0]["steps"])


class Counts(Callback):
    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        trainer.optimizers[0].param_groups[0]["steps"] = trainer.current_epoch


def test_no_step_is_replayed_once_a_callback_accumulates_gradients(tmp_path, monkeypatch):
    """The first and the last step of an epoch are Lightning's."""
    graph = Replays()
    monkeypatch.setattr("kd_lightning.speed.fast_loop.callback.why_not_recordable", lambda trainer: None)
    monkeypatch.setattr("kd_lightning.speed.fast_loop.callback.CUDAGraphStep", lambda: graph)
    later = GradientAccumulationScheduler({0: 1, 1: 2})
    toys.trainer(tmp_path, FastLoop(cuda_graph=True), later, Counts(), log_every_n_steps=50).fit(
        toys.classifier(), toys.data()
    )
    assert graph.at == [0, 0]


@pytest.mark.parametrize("fails", [False, True])
def test_the_trainer_gets_its_loop_back(fails, tmp_path):
    class Fails(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            assert type(args[0].fit_loop.epoch_loop) is FastEpoch
            if fails:
                raise ArithmeticError

    trainer = toys.trainer(tmp_path, FastLoop(), Fails(), max_epochs=1)
    own = type(trainer.fit_loop.epoch_loop)
    with pytest.raises(ArithmeticError) if fails else nullcontext():
        trainer.fit(toys.classifier(), toys.data())
    assert type(trainer.fit_loop.epoch_loop) is own is not FastEpoch


def distributed(folder: Path, fast: bool) -> dict[str, Any]:
    """One rank's share of what a fit leaves behind."""
    recorder, module = Recorder(), toys.offline()
    trainer = toys.trainer(
        folder,
        recorder,
        *([FastLoop()] if fast else []),
        strategy="ddp",
        devices=2,
        log_every_n_steps=10,
        accumulate_grad_batches=2,
        gradient_clip_val=0.1,
    )
    trainer.fit(module, toys.data(batch_size=8, train_size=256, augmentation=None))
    return {
        "weights": plain(dict(module.state_dict())),
        "optimizer": plain(trainer.optimizers[0].state_dict()),
        "loops": plain(trainer.fit_loop.state_dict()),
        "hooks": recorder.seen,
    }


@two_processes
@pytest.mark.skipif(toys.ACCELERATOR == "gpu", reason="two processes would share what may be the only GPU")
def test_two_processes_do_what_they_do_without_it(tmp_path):
    run_two("tests.speed.test_fast_loop", tmp_path)
    for rank in range(2):
        kept = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert_same(kept["fast"], kept["own"])
        assert len(kept["own"]["hooks"]) > 100


if __name__ == "__main__":
    where = Path(sys.argv[1])
    found = {name: distributed(where / name, fast) for name, fast in {"own": False, "fast": True}.items()}
    torch.save(found, where / f"{os.environ['LOCAL_RANK']}.pt")
