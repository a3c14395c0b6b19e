"""What holds for every scheme, and for every callback that a scheme learns by: a new one is tested by being there."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from kd_lightning import UsageError, schemes
from kd_lightning.callbacks import Constant, Linear, TemperatureSchedule, TermWeightSchedule
from kd_lightning.callbacks.schedules.base import find_terms
from kd_lightning.core.learner import Learner
from kd_lightning.networks import is_excluded_from_state_dict, load_student
from kd_lightning.weights.export import export_checkpoint
from kd_lightning.weights.reading import read_weights
from tests import found, toys

CASES = found.cases()
# a worker makes all tests of one case, whose uninterrupted run is made once
every_case = pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in CASES])

# the runs that are resumed here write no checkpoints of their own
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


def fit(case: toys.Case, folder: Any, *callbacks: Callback, ckpt_path: Any = None, data: Any = None, **changes: Any):
    trainer = toys.trainer(folder, *case.callbacks, *callbacks, **changes)
    trainer.fit(case.learner, (case.data or toys.data)(**data or {}), ckpt_path=ckpt_path)
    return trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Each uninterrupted run, made when it is asked for: its weights, and a checkpoint after every optimizer step."""
    runs: dict[str, Any] = {}

    def run(name: str) -> tuple[dict[str, Tensor], list[Any]]:
        if name not in runs:
            folder = tmp_path_factory.mktemp("run")
            every_step = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
            every_epoch = ModelCheckpoint(folder, "epoch-{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
            case = CASES[name]()
            fit(case, folder, every_step, every_epoch)
            runs[name] = (toys.weights(case.learner), sorted(folder.glob("*.ckpt")))
        return runs[name]

    return run


def test_every_scheme_has_a_case():
    cases = {type(build().learner) for build in CASES.values()}
    public = {vars(schemes)[name] for name in schemes.__all__}
    assert {kind for kind in public if issubclass(kind, Learner) and not inspect.isabstract(kind)} <= cases


def chosen(steps_per_batch: int) -> set[str]:
    """Four checkpoints: of the first step, of an epoch's middle, of its last batch, and of its end."""
    return {*(f"step={batch * steps_per_batch}.ckpt" for batch in (1, 6, 8)), "epoch-epoch=1.ckpt"}


def resume(name: str, finished: Any, folder: Any, four: bool) -> int:
    """Resume a run from the chosen checkpoints or from the others, and compare the weights; returns how many."""
    truth, checkpoints = finished(name)
    assert len(checkpoints) == 12 + 3  # four batches in each of three epochs, and the epochs' ends
    first_of = chosen(CASES[name]().learner.optimizer_steps_per_batch)
    resumed = [checkpoint for checkpoint in checkpoints if (checkpoint.name in first_of) == four]
    for checkpoint in resumed:
        case = CASES[name]()
        fit(case, folder, ckpt_path=checkpoint)
        assert toys.same(toys.weights(case.learner), truth), checkpoint.name
    return len(resumed)


@every_case
def test_resume_from_chosen_checkpoints_is_bit_exact(name, finished, tmp_path):
    assert resume(name, finished, tmp_path, four=True) == 4


@pytest.mark.slow
@every_case
def test_resume_from_every_other_checkpoint_is_bit_exact(name, finished, tmp_path):
    assert resume(name, finished, tmp_path, four=False) == 11


class Watch(Callback):
    """What an optimizer step does: the norm of what it is given, and who had a gradient at all."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.learned: set[str] = set()

    def on_train_start(self, trainer, pl_module):
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda optimizer, *_: self.look(pl_module, optimizer))

    def look(self, pl_module, optimizer):
        own = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        gradients = {n: p.grad for n, p in pl_module.named_parameters() if p.grad is not None and p in own}
        self.norms.append(math.sqrt(sum(g.double().square().sum().item() for g in gradients.values())))
        self.learned |= {name for name, gradient in gradients.items() if gradient.any()}


@every_case
def test_runs_under_clipping_accumulation_and_bf16(name, tmp_path):
    case, watch = CASES[name](), Watch()
    changes = {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2}
    if case.learner.automatic_optimization:
        trainer = fit(case, tmp_path, watch, precision="bf16-mixed", **changes)
        assert trainer.global_step == 3 * 2
        assert len(watch.norms) == 6
        assert max(watch.norms) <= 0.05 * 1.001
    else:  # players that move in turn
        with pytest.raises(UsageError, match=r"accumulate_grad_batches=2: .* updates its players in turn"):
            fit(CASES[name](), tmp_path, **changes)
        trainer = fit(case, tmp_path, watch, precision="bf16-mixed", gradient_clip_val=0.05)
        assert trainer.global_step == 3 * 4 * case.learner.optimizer_steps_per_batch
        assert len(watch.norms) == trainer.global_step
        assert max(watch.norms) <= 0.05 * 1.001
        assert trainer.gradient_clip_val == 0.05
    assert all(value.isfinite().all() for value in case.learner.state_dict().values())
    trained = {name for name, parameter in case.learner.named_parameters() if parameter.requires_grad}
    assert trained == watch.learned  # nothing is there in vain


@every_case
def test_a_plateau_of_the_training_loss_lowers_each_rate(name, tmp_path):
    case = CASES[name]()
    case.learner.build_lr_scheduler = lambda optimizer: ReduceLROnPlateau(optimizer, threshold=1e9, patience=1)
    case.learner.lr_interval = "epoch"
    rates = [[group["lr"] for group in each.param_groups] for each in built(case.learner.configure_optimizers())]
    trainer = fit(case, tmp_path, log_every_n_steps=50)
    lowered = [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers]
    factor = 1.0 if name == "born_again" else 0.1  # each of its epochs is a generation, with a new scheduler
    assert lowered == [[pytest.approx(factor * rate) for rate in of_one] for of_one in rates]


def built(configured: Any) -> list[Optimizer]:
    return configured[0] if isinstance(configured, tuple) else [configured["optimizer"]]


@every_case
def test_a_checkpoint_is_plain_and_strict_and_the_export_is_the_deployed_network_alone(name, finished, tmp_path):
    _, checkpoints = finished(name)
    content = torch.load(checkpoints[-1], weights_only=True)
    case = CASES[name]()
    learner = case.learner
    trainer = toys.trainer(tmp_path, *case.callbacks)
    for callback in case.callbacks:  # a callback may make a network state
        callback.setup(trainer, learner, "fit")
    kept_out = {path for path, module in learner.named_modules() if is_excluded_from_state_dict(module)}
    assert not [key for key in content["state_dict"] if key.startswith(tuple(f"{path}." for path in kept_out))]
    learner.load_state_dict(content["state_dict"], strict=True)

    network = learner.get_submodule(content["inference_network"])
    own = {name: value.clone() for name, value in network.state_dict().items()}
    exported = export_checkpoint(str(checkpoints[-1]), str(tmp_path / "student.safetensors"))
    assert read_weights(exported, "student").tensors.keys() == own.keys()
    for file in (exported, checkpoints[-1]):
        assert toys.same(load_student(file, network).state_dict(), own)


@every_case
def test_schedules_reach_the_terms(name, tmp_path):
    case = CASES[name]()
    terms = [term for named in find_terms(case.learner, None).values() for term in named]
    name_of_one = next(iter(find_terms(case.learner, None)))
    weight = TermWeightSchedule(name_of_one, Linear(1.0, 0.0, duration=12))
    inside = [module for term in terms for module in term.loss.modules()]
    softened = [module for module in inside if isinstance(getattr(module, "temperature", None), float)]
    temperature = [TemperatureSchedule(Constant(2.5))] if softened else []
    fit(case, tmp_path, weight, *temperature)
    assert [term.weight for term in find_terms(case.learner, name_of_one)[name_of_one]] == [pytest.approx(1 / 12)]
    assert {module.temperature for module in softened} <= {2.5}
