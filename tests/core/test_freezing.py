from __future__ import annotations

import copy
import pickle
import timeit
from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kd_lightning.core.hashing import weights_hash
from kd_lightning.networks import (
    TeacherConvNet,
    exclude_from_state_dict,
    freeze,
    include_in_state_dict,
    is_excluded_from_state_dict,
    is_frozen,
    unfreeze,
)


def network() -> nn.Sequential:
    """BatchNorm and dropout show at once when a layer is in training mode."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def set_everything(module: nn.Module) -> None:
    """What `freeze` cannot intercept: the attributes set one by one, on the layers and parameters themselves."""
    for layer in module.modules():
        layer.training = True
    for parameter in module.parameters():
        parameter.requires_grad = True


def holds(teacher: nn.Module) -> bool:
    return not any(layer.training for layer in teacher.modules()) and not any(
        parameter.requires_grad for parameter in teacher.parameters()
    )


def copies(teacher: nn.Module) -> dict[str, nn.Module]:
    return {
        "itself": teacher,
        "deep copy": copy.deepcopy(teacher),
        "pickled": pickle.loads(pickle.dumps(teacher)),
        "copy of a holder": copy.deepcopy(nn.ModuleList([teacher]))[0],
    }


CALLS: dict[str, Callable[[nn.Module], object]] = {
    "train": lambda module: module.train(),
    "requires_grad_": lambda module: [layer.requires_grad_(True) for layer in module.modules() if layer is not module],
    "apply": lambda module: module.apply(lambda layer: nn.init.zeros_(layer.weight) if hasattr(layer, "weight") else 0),
    "a layer's train": lambda module: [layer.train() for layer in module.modules() if layer is not module],
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("kind", ["itself", "deep copy", "pickled", "copy of a holder"])
def test_calls_pass_a_frozen_network_by(call: Callable[[nn.Module], object], kind: str) -> None:
    teacher = copies(freeze(network()))[kind]
    before = weights_hash(teacher)
    pair = nn.ModuleDict({"teacher": teacher, "student": network()})
    call(pair)
    assert holds(teacher)
    assert weights_hash(teacher) == before
    assert pair["student"].training


@pytest.mark.parametrize("kind", ["itself", "deep copy", "pickled", "copy of a holder"])
def test_attributes_set_one_by_one_are_undone_by_the_next_call(kind: str) -> None:
    teacher = copies(freeze(network()))[kind]
    before, inputs = weights_hash(teacher), torch.randn(5, 4)
    expected = teacher(inputs)
    set_everything(teacher)
    assert not holds(teacher)
    output = teacher(inputs)
    assert holds(teacher)
    assert output.grad_fn is None
    assert torch.equal(output, expected)
    assert weights_hash(teacher) == before


def test_a_copy_is_frozen_on_its_own() -> None:
    teacher = freeze(network())
    for kind, twin in copies(teacher).items():
        if kind != "itself":
            assert twin.train() is twin
            assert twin[1].eval() is twin[1]
            unfreeze(twin)
            assert not holds(twin)
            assert holds(teacher)


def test_freezing_again_repairs_at_once_and_adds_nothing() -> None:
    teacher = freeze(freeze(network()))
    set_everything(teacher)
    assert freeze(teacher) is teacher
    assert holds(teacher)
    assert len(teacher._forward_pre_hooks) == 1


def test_a_gradient_left_on_a_parameter_is_gone_so_that_no_optimizer_steps_on_it() -> None:
    teacher = network()
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    teacher(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    before = weights_hash(freeze(teacher))
    optimizer.step()
    assert weights_hash(teacher) == before


def test_a_gradient_reaches_the_inputs_through_a_frozen_network() -> None:
    inputs = torch.randn(5, 4, requires_grad=True)
    freeze(network())(inputs).sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.abs().sum() > 0


def test_unfreeze_restores_trainable_parameters() -> None:
    teacher = network()
    teacher[0].weight.requires_grad_(False)  # fixed on purpose, before anything was frozen
    teacher = unfreeze(freeze(freeze(teacher)))
    assert [name for name, parameter in teacher.named_parameters() if not parameter.requires_grad] == ["0.weight"]
    assert all(layer.training for layer in teacher.modules())
    assert not is_frozen(teacher)
    teacher(torch.randn(5, 4)).sum().backward()
    assert teacher[3].weight.grad is not None
    assert teacher.eval()[1].training is False
    assert unfreeze(teacher) is teacher
    assert not teacher.training


def test_a_member_frozen_in_its_own_right_stays_frozen_when_its_ensemble_is_given_back() -> None:
    member = freeze(network())
    ensemble = unfreeze(freeze(nn.ModuleList([member, network()])))
    assert holds(member.train())
    assert all(parameter.requires_grad for parameter in ensemble[1].parameters())


def test_a_compiled_teacher_holds() -> None:
    teacher = exclude_from_state_dict(freeze(network()))
    inputs = torch.randn(5, 4)
    expected = teacher(inputs)
    teacher.compile(backend="eager")
    torch.testing.assert_close(teacher(inputs), expected)
    set_everything(teacher)
    torch.testing.assert_close(teacher(inputs), expected)
    assert teacher(inputs).grad_fn is None
    assert holds(teacher)
    pair = nn.ModuleDict({"student": nn.Linear(2, 2), "teacher": teacher})
    assert list(pair.state_dict()) == ["student.weight", "student.bias"]
    pair.load_state_dict(pair.state_dict())


def test_the_check_costs_microseconds() -> None:
    teacher = freeze(TeacherConvNet(batch_norm=True))
    (check,) = teacher._forward_pre_hooks.values()
    assert min(timeit.repeat(lambda: check(teacher, ()), number=100, repeat=20)) / 100 < 50e-6  # 6 on an idle machine


# ---- in a training run


class Pair(LightningModule):
    """A student that imitates its teacher, which is called `backbone` and handed to the optimizer as well."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.student = nn.Linear(4, 3)
        self.backbone = teacher
        self.automatic_parameters = list(self.parameters())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.student(batch[0]), self.backbone(batch[0]))

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.backbone(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.automatic_parameters, lr=0.1, momentum=0.9, weight_decay=0.1)


def on_every_batch(attack: Callable[[LightningModule], object]) -> type[Callback]:
    class Attack(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, i: int) -> None:
            attack(pl_module)

    return Attack


class OldValidationHooks(Callback):
    """Lightning below 2.2 ended every validation with `model.train()`."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.eval()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.train()

    on_sanity_check_end = on_validation_end


class Finetuning(BackboneFinetuning):
    def __init__(self) -> None:
        super().__init__(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.1)


def reinitialise(layer: nn.Module) -> None:
    layer.training = True
    if isinstance(layer, nn.Linear):
        layer.reset_parameters()


ATTACKS: dict[str, Callable[[], Callback]] = {
    "train()": on_every_batch(lambda module: module.train()),
    "unfreeze()": on_every_batch(lambda module: module.unfreeze()),
    "requires_grad_": on_every_batch(lambda module: module.requires_grad_(True)),
    "apply": on_every_batch(lambda module: module.apply(reinitialise)),
    "old validation hooks": OldValidationHooks,
    "BackboneFinetuning": Finetuning,
}


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:The provided params to be frozen already exist"
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
@pytest.mark.parametrize("frozen", [True, False])
def test_a_training_run_under_attack(frozen: bool, attack: Callable[[], Callback], precision: str) -> None:
    torch.manual_seed(0)
    teacher = network()
    # What is usual, the negative control: every attack gets through it.
    teacher = exclude_from_state_dict(freeze(teacher)) if frozen else teacher.eval().requires_grad_(False)
    before, tensors = (
        weights_hash(teacher),
        {name: value.clone() for name, value in copy.deepcopy(teacher).state_dict().items()},
    )
    rows = DataLoader(TensorDataset(torch.randn(12, 4)), batch_size=4)
    trainer = Trainer(
        max_epochs=3,
        precision=precision,
        accelerator="cpu",
        callbacks=[attack()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Pair(teacher)
    if attack is Finetuning:
        model.automatic_parameters = list(model.student.parameters())  # it brings the backbone's itself
    trainer.fit(model, rows, rows)
    assert (weights_hash(teacher) == before) is frozen
    assert all(torch.equal(value, tensors[name]) for name, value in teacher.state_dict().items()) is frozen


# ---- state dicts


def test_a_network_left_out_is_in_no_state_dict_but_its_own() -> None:
    teacher = network()
    names = list(teacher.state_dict())
    for twin in copies(exclude_from_state_dict(teacher)).values():
        deep = nn.ModuleDict({"a": nn.ModuleList([nn.Linear(2, 2), twin])})
        assert list(deep.state_dict()) == ["a.0.weight", "a.0.bias"]
        assert list(deep.state_dict(prefix="module.")) == ["module.a.0.weight", "module.a.0.bias"]
        assert list(twin.state_dict()) == names
        assert len(list(deep.parameters())) == 8


def test_a_state_dict_without_it_leaves_it_as_it_is() -> None:
    for twin in copies(exclude_from_state_dict(network())).values():
        pair = nn.ModuleDict({"student": nn.Linear(2, 2), "teacher": twin})
        before = weights_hash(twin)
        state = {name: torch.ones_like(value) for name, value in pair.state_dict().items()}
        assert str(pair.load_state_dict(state)) == "<All keys matched successfully>"
        assert weights_hash(twin) == before
        assert torch.equal(pair["student"].bias, torch.ones(2))
        pair.load_state_dict(state, assign=True)
        assert weights_hash(twin) == before


def test_loading_stays_strict_for_everything_else() -> None:
    pair = nn.ModuleDict({"student": nn.Linear(2, 2), "teacher": exclude_from_state_dict(network())})
    good = pair.state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key.*student\.bias"):
        pair.load_state_dict({"student.weight": good["student.weight"]})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*studnt\.bias"):
        pair.load_state_dict(good | {"studnt.bias": good["student.bias"]})
    with pytest.raises(RuntimeError, match=r"Missing key.*teacher\.3\.weight"):
        pair.load_state_dict(good | {"teacher.0.weight": torch.zeros(8, 4)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*teacher\.9\.weight"):
        pair.load_state_dict(good | {"teacher.9.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="Missing key"):
        pair["teacher"].load_state_dict({})


def test_a_state_dict_that_has_it_loads_it() -> None:
    pair = nn.ModuleDict({"student": nn.Linear(2, 2), "teacher": exclude_from_state_dict(network())})
    other = nn.ModuleDict({"student": nn.Linear(2, 2), "teacher": network()})
    pair.load_state_dict(other.state_dict())
    assert weights_hash(pair["teacher"]) == weights_hash(other["teacher"])


def test_taken_back_it_is_state_again() -> None:
    for twin in copies(exclude_from_state_dict(exclude_from_state_dict(network()))).values():
        pair = nn.ModuleDict({"teacher": include_in_state_dict(twin)})
        assert len(pair.state_dict()) == 9
        assert not is_excluded_from_state_dict(twin)
        with pytest.raises(RuntimeError, match="Missing key"):
            pair.load_state_dict({})


def test_moves_and_dtypes_reach_it() -> None:
    pair = nn.ModuleDict({"teacher": exclude_from_state_dict(freeze(network()))})
    pair.to(torch.float64)
    assert pair["teacher"][0].weight.dtype == torch.float64
    pair.to("meta")
    assert pair["teacher"][0].weight.is_meta


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)  # each rank has another teacher, until the first broadcast
    pair = nn.ModuleDict({"student": nn.Linear(4, 3), "teacher": exclude_from_state_dict(freeze(network()))})
    nn.parallel.DistributedDataParallel(pair)
    torch.save(weights_hash(pair["teacher"]), f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_the_first_broadcast_of_ddp_reaches_it(tmp_path) -> None:
    torch.multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    assert torch.load(tmp_path / "0") == torch.load(tmp_path / "1")
