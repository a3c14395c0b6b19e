"""A value that is not finite stops a run at its step, whatever the scheme, loop and precision, and reaches no file."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from kd_lightning import Classifier, OfflineDistiller, Term, UsageError
from kd_lightning.callbacks import Distillation, FastLoop, FaultTolerance
from kd_lightning.core import finite_check
from kd_lightning.core.errors import NonFiniteError
from kd_lightning.core.finite_tensors import non_finite_state
from kd_lightning.core.learner import Learner
from kd_lightning.losses import CRDLoss, KDLoss, TaskLoss
from kd_lightning.speed.fast_loop.epoch import FastEpoch
from kd_lightning.weights import export_student
from tests import found, toys

BAD = 4
"""Number of the batch that has the fault, after a checkpoint of the step before it; from 0."""


class Fault(Callback):
    """Puts a value that is not finite into one batch or its step."""

    def __init__(self, kind: str, at: int = BAD, value: float = math.nan) -> None:
        self.kind, self.at, self.value = kind, at, value
        self.is_now = False
        self.loops: set[type] = set()
        self.hashes: dict[str, str] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        teacher = getattr(pl_module, "teacher", None)
        if self.kind == "teacher":
            teacher.register_forward_hook(lambda _, __, logits: logits + (self.value if self.is_now else 0.0))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.is_now = batch_idx == self.at
        if not self.is_now:
            return
        self.hashes = {path.name: sha(path) for path in Path(trainer.default_root_dir).glob("*.ckpt")}
        self.loops.add(type(trainer.fit_loop.epoch_loop))
        if self.kind == "pixel":
            batch[0][0, 0, 3, 3] = self.value
        if self.kind == "rate":
            for optimizer in trainer.optimizers:
                optimizer.param_groups[0]["lr"] = self.value

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if self.is_now and self.kind == "gradient":
            gradient = next(p.grad for p in pl_module.parameters() if p.grad is not None)
            gradient.view(-1)[0] = self.value


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def saver(folder: Path, **changes: Any) -> ModelCheckpoint:
    settings = {"filename": "last", "every_n_train_steps": 2, "enable_version_counter": False}
    return ModelCheckpoint(folder, **settings | {"save_on_exception": True} | changes)


def stops(folder: Path, case: toys.Case, fault: Callback, *callbacks: Callback, **changes: Any) -> str:
    """Run a fit, check that it stops and that its files are those of before; return the message."""
    settings: dict[str, Any] = {"max_epochs": 1, "log_every_n_steps": 50}
    trainer = toys.trainer(folder, *case.callbacks, *callbacks, fault, saver(folder), **settings | changes)
    data = case.data or toys.data
    loaders: Any = data(train_size=112, augmentation=None) if data is toys.data else data()
    if not isinstance(case.learner, Learner):
        loaders.setup("fit")
        loaders = loaders.train_dataloader()
    with pytest.raises(NonFiniteError) as error:
        trainer.fit(case.learner, loaders)
    assert "\n" not in str(error.value)
    if isinstance(fault, Fault):
        assert {path.name: sha(path) for path in folder.glob("*.ckpt")} == fault.hashes
    for path in folder.glob("*.ckpt"):
        assert not non_finite_state(torch.load(path, weights_only=True), ["terms.crd.loss.log_means"])
    return str(error.value)


# ---- schemes


class Plain(LightningModule):
    """A user's module that knows nothing of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.network = toys.network(seed=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


def crd() -> toys.Case:
    loss = CRDLoss(10, 10, num_samples=60_000, dim=4, negatives=8)
    terms = toys.terms() | {"crd": Term(loss, weight=0.1, target=["target", "index"])}
    return toys.Case(OfflineDistiller(toys.network(seed=1), toys.network(16, seed=2), terms))


def drop_in_of_images() -> toys.Case:
    return toys.Case(Plain(), [Distillation("network", toys.network(16, seed=2), {"kd": Term(KDLoss(3.0))})])


OTHERS = {"crd": crd, "drop-in": drop_in_of_images, "plain": lambda: toys.Case(Plain(), [FaultTolerance()])}
CASES = found.cases() | OTHERS
CHOSEN = ["offline", "mutual", "byot", "momentum", "adversarial", "data_free", "crd", "drop-in", "plain"]
FAULTS = {"pixel": math.nan, "gradient": math.nan, "rate": math.inf}


def of_schemes(names: list[str]) -> list[Any]:
    return [(name, kind) for name in names for kind in FAULTS if (name, kind) != ("data_free", "pixel")]


def stops_at_its_step(name: str, kind: str, folder: Path) -> None:
    case = CASES[name]()
    steps = getattr(case.learner, "optimizer_steps_per_batch", 1)
    fault = Fault(kind, 2 if case.data else BAD, FAULTS[kind])
    message = stops(folder, case, fault)
    subject = {"pixel": "loss", "gradient": "gradient of '", "rate": ""}[kind]
    assert subject in message
    number = next(int(word.rstrip(",:")) for word in message.partition(" step ")[2].split())
    assert fault.at <= number <= fault.at + 1 if steps == 1 or kind != "rate" else number >= fault.at


@pytest.mark.parametrize(("name", "kind"), of_schemes(CHOSEN))
def test_a_fault_stops_a_scheme_at_its_step(name, kind, tmp_path):
    stops_at_its_step(name, kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in CHOSEN])
def test_a_gradient_that_is_not_finite_stops_every_scheme(name, tmp_path):
    stops_at_its_step(name, "gradient", tmp_path)


def test_the_message_names_the_term_its_value_and_the_step(tmp_path):
    message = stops(tmp_path, CASES["offline"](), Fault("teacher", value=math.inf))
    assert message.startswith(f"the loss of term 'kd' is not finite at step {BAD} (task=")
    assert ", kd=nan): look for non-finite inputs" in message


def test_the_message_names_the_parameter_whose_gradient_it_was(tmp_path):
    message = stops(tmp_path, CASES["offline"](), Fault("gradient", value=-math.inf))
    assert message.startswith(f"the gradient of 'student.2.weight' is not finite at step {BAD} (-inf): ")


# ---- loops and precisions

WAYS: dict[str, dict[str, Any]] = {
    "Lightning's loop": {"callbacks": []},
    "fast loop": {"callbacks": [FastLoop]},
    "fast loop, late": {"callbacks": [FastLoop], "late": True},
    "Lightning's loop, late": {"callbacks": [], "late": True},
    "no logs": {"log_every_n_steps": 0},
    "last step": {"max_steps": BAD + 1},
    "bf16-mixed": {"precision": "bf16-mixed", "callbacks": [FastLoop]},
    "bf16-true": {"precision": "bf16-true"},
    "64-true": {"precision": "64-true"},
    "clipped": {"gradient_clip_val": 0.5, "callbacks": [FastLoop]},
}


@pytest.mark.parametrize("kind", ["pixel", "gradient"])
@pytest.mark.parametrize("way", WAYS)
def test_a_fault_stops_every_loop_and_precision(way, kind, tmp_path, monkeypatch):
    settings = WAYS[way] | {}
    callbacks = [build() for build in settings.pop("callbacks", [])]
    if settings.pop("late", False):
        monkeypatch.setattr(finite_check, "answers_at_once", lambda device: False)
    fault = Fault(kind)
    message = stops(tmp_path, toys.Case(toys.offline()), fault, *callbacks, **settings)
    assert f" at step {BAD} " in message
    assert ("the loss of term 'task'" if kind == "pixel" else "the gradient of 'student.2.weight'") in message
    assert fault.loops == {FastEpoch} or not callbacks


@pytest.mark.filterwarnings("ignore:eps=1e-08")
def test_half_precision_without_a_scaler_stops_where_adam_underflows(tmp_path):
    class Epsilon(Callback):
        def on_train_start(self, trainer: Any, *_: Any) -> None:
            trainer.optimizers[0].param_groups[0]["eps"] = 1e-8  # which a learner's own optimizer never has

    assert "not finite at step 1 (" in stops(tmp_path, toys.Case(toys.offline()), Epsilon(), precision="16-true")


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", ["adversarial", "data_free_adversarial"])
def test_each_players_own_step_is_looked_at(name, late, tmp_path, monkeypatch):
    monkeypatch.setattr(finite_check, "answers_at_once", lambda device: not late)

    class OfTheStudent(Fault):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            gradient = pl_module.student[2].weight.grad
            if self.is_now and gradient is not None:
                gradient[0, 0] = math.inf

    case = CASES[name]()
    assert "the gradient of 'student.2.weight'" in stops(tmp_path, case, OfTheStudent("", 2 if case.data else BAD))


@pytest.mark.parametrize("late", [False, True])
def test_a_batch_whose_gradients_are_accumulated_is_looked_at(late, tmp_path, monkeypatch):
    monkeypatch.setattr(finite_check, "answers_at_once", lambda device: not late)

    class LossAlone(Fault):
        """An infinite constant, which has no gradient, in the first of two batches of a step."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            own = pl_module.compute_losses
            pl_module.compute_losses = lambda batch: {
                k: v + (math.inf * self.is_now) if self.is_now else v for k, v in own(batch).items()
            }

    message = stops(tmp_path, toys.Case(toys.classifier()), LossAlone(""), accumulate_grad_batches=2)
    assert f"not finite at step {BAD // 2} (" in message


class Scaled(MixedPrecision):
    """fp16's scaler, on a CPU."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu"))


@pytest.mark.parametrize("late", [False, True])
def test_a_gradient_scaler_may_skip_a_step_but_not_all(late, tmp_path, monkeypatch):
    monkeypatch.setattr(finite_check, "answers_at_once", lambda device: not late)
    monkeypatch.setattr(finite_check, "SCALED_STEPS", 3)

    def plugin() -> dict[str, Any]:
        return {"plugins": [Scaled()], "max_epochs": 1, "log_every_n_steps": 50}

    data = toys.data(train_size=112, augmentation=None)
    learner = toys.offline()
    toys.trainer(tmp_path, Fault("gradient", value=math.inf), **plugin()).fit(learner, data)  # skipped, as is normal
    assert all(value.isfinite().all() for value in learner.state_dict().values())

    class Always(Fault):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            self.is_now = batch_idx >= 2

    always = Always("gradient", value=math.inf)
    message = stops(tmp_path / "always", toys.Case(toys.offline()), always, plugins=[Scaled()])
    assert "the gradient of 'student.2.weight' is not finite at step 4 (" in message
    message = stops(tmp_path / "pixel", toys.Case(toys.offline()), Fault("pixel"), plugins=[Scaled()])
    assert "the loss of term 'task'" in message


# ---- files


def test_a_rate_that_destroys_the_weights_in_the_last_step_is_found_at_the_end(tmp_path):
    message = stops(tmp_path, toys.Case(toys.offline()), Fault("rate", value=math.inf), max_steps=BAD + 1)
    assert f"of the weights and optimizer moments is not finite after step {BAD + 1}" in message


@pytest.mark.parametrize("weights_only", [False, True])
def test_no_checkpoint_has_weights_or_averages_that_are_not_finite(weights_only, tmp_path):
    class Destroy(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 3:
                pl_module.student[3].running_var[0] = math.nan

    average = WeightAveraging(use_buffers=True)
    every_step = saver(tmp_path, filename="every", every_n_train_steps=1, save_weights_only=weights_only)
    callbacks = [every_step] if weights_only else [average, every_step]
    message = stops(tmp_path, toys.Case(toys.offline()), Destroy(), *callbacks)
    assert "student.3.running_var' of the weights and optimizer moments is not finite after step 4" in message


def test_what_was_infinite_at_the_start_may_stay_so(tmp_path):
    learner = toys.offline()
    learner.student.register_buffer("causal", torch.full((3, 3), -math.inf).triu(1))
    stopping = EarlyStopping("val/nll", patience=9)
    toys.trainer(tmp_path, FaultTolerance(), stopping, saver(tmp_path)).fit(learner, toys.data(val_size=16))
    assert "student.causal" in torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert export_student(learner, tmp_path / "student.safetensors").exists()


def test_an_interrupted_fit_does_not_save_weights_that_are_not_finite(tmp_path):
    class Interrupt(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                pl_module.student[2].weight.data[0, 0] = math.nan
                raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        toys.trainer(tmp_path, Interrupt(), saver(tmp_path, every_n_train_steps=50)).fit(toys.offline(), toys.data())
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_network_whose_outputs_are_not_finite_is_not_evaluated(tmp_path):
    learner = toys.classifier()
    learner.student[2].weight.data[0, 0] = math.nan
    with pytest.raises(UsageError, match=r"val: outputs of 'student' are not finite .* look for"):
        toys.trainer(tmp_path).validate(learner, toys.data(val_size=16))

    class Masked(nn.Module):
        """One class is excluded by a logit of -inf."""

        def __init__(self) -> None:
            super().__init__()
            self.network = toys.network()

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x).index_fill(1, torch.tensor([9]), -math.inf)

    terms = {"task": Term(TaskLoss(), teacher=None)}
    assert toys.trainer(tmp_path).test(Classifier(Masked(), terms), toys.data())[0]["test/acc"] <= 1


def test_an_export_of_such_weights_is_refused(tmp_path):
    network = nn.Linear(2, 2)
    network.weight.data[0, 0] = math.nan
    with pytest.raises(UsageError, match="weight is not finite"):
        export_student(network, tmp_path / "student.safetensors")
    assert not list(tmp_path.iterdir())


# ---- the trainer


def test_a_trainer_is_as_before_after_a_fit_and_after_a_fault(tmp_path):
    trainer = toys.trainer(tmp_path, FaultTolerance(), max_epochs=1)
    before = list(trainer.callbacks)
    trainer.fit(toys.offline(), toys.data())
    assert trainer.callbacks == before
    assert "save_checkpoint" not in vars(trainer.strategy)
    stops(tmp_path, toys.Case(Plain(), [FaultTolerance()]), Fault("pixel"))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(toys.offline(), toys.data())


def test_a_great_but_finite_gradient_is_no_fault(tmp_path):
    network = nn.Linear(1, 1, bias=False)

    class Great(Plain):
        def __init__(self) -> None:
            LightningModule.__init__(self)
            self.network = network

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return (self.network.weight * 1e25).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-30)

    toys.trainer(tmp_path, FaultTolerance(), max_epochs=1).fit(Great(), toys.Loader([torch.zeros(1)] * 3))
    assert network.weight.isfinite().all()


def test_a_stop_that_a_signal_asked_for_follows_the_step(tmp_path):
    class Ask(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            check = next(each for each in trainer.callbacks if isinstance(each, finite_check.FiniteCheck))
            if batch_idx == 1:
                check.flag.request_stop(15)

    trainer = toys.trainer(tmp_path, Ask())
    with pytest.raises(SystemExit):
        trainer.fit(toys.offline(), toys.data())
    assert trainer.global_step == 2
