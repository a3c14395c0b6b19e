"""The drop-in adds to a module that was written without us what it says it adds, and nothing else, and then is gone."""

from __future__ import annotations

import copy
import re
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from kd_lightning import Term, UsageError
from kd_lightning.callbacks import Constant, Distillation, TeacherFreezing, TemperatureSchedule, TermWeightSchedule
from kd_lightning.core.hashing import weights_hash
from kd_lightning.losses import AdversarialLoss, JacobianLoss, KDLoss, TaskLoss
from kd_lightning.networks import Discriminator, StudentConvNet
from tests import toys

FEATURES, CLASSES, LR = 12, 5, 0.1


def network(width: int = 8, seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, CLASSES))


def teacher() -> nn.Sequential:
    return network(16, seed=2)


class Hint(nn.Module):
    """A loss that learns: the student's layer, mapped to the teacher's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.connector = nn.Linear(8, 16)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        return functional.mse_loss(self.connector(student), teacher)


def distillation(student: str = "backbone", hint: bool = True, **changes: Any) -> Distillation:
    terms = {"kd": Term(KDLoss(3.0), weight=0.5)}
    if hint:
        terms["hint"] = Term(Hint(), weight=2.0, student="1", teacher="1")
    return Distillation(**{"student": student, "teacher": teacher(), "terms": terms} | changes)


class Theirs(LightningModule):
    """Someone's own: nothing in it knows of us."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = network(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=LR, momentum=0.9)


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(6, FEATURES, generator=generator), torch.randint(CLASSES, (6,), generator=generator))
        for _ in range(count)
    ]


def fit(module: LightningModule, *callbacks: Callback, folder: Any, data: Any = None, val: Any = None, **changes: Any):
    trainer = toys.trainer(folder, *callbacks, **{"max_epochs": 2} | changes)
    trainer.fit(module, toys.Loader(batches() if data is None else data), val)
    return trainer


# ---- what it computes


def by_hand(
    epochs: int = 2,
    accumulated: int = 1,
    clip: float | None = None,
    precision: str = "64-true",
    schedule: Any = None,
    hint: bool = True,
    data: Any = None,
) -> tuple[nn.Module, nn.Module, list[float]]:
    """The student, the connector and each batch's loss of a run in plain torch."""
    student, shown, connector = network(), teacher(), Hint().connector
    if precision == "64-true":
        student, shown, connector = student.double(), shown.double(), connector.double()
    parameters = [*student.parameters(), *(connector.parameters() if hint else ())]
    optimizer = torch.optim.SGD(parameters, lr=LR, momentum=0.9)
    scheduler = schedule(optimizer) if schedule else None
    found = []
    for number, (x, y) in enumerate((batches() if data is None else data) * epochs):
        x = x.to(student[0].weight.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            hidden, guide = student[:2](x), shown[:2](x).detach()
            logits, soft = student[2](hidden), (shown[2](guide).detach().to(student[0].weight.dtype) / 3).softmax(1)
            loss = functional.cross_entropy(logits, y)
            with torch.autocast("cpu", enabled=False):
                loss = loss + 0.5 * 9 * (soft * (soft.log() - (logits.to(soft.dtype) / 3).log_softmax(1))).sum() / len(
                    x
                )
            if hint:
                loss = loss + 2.0 * functional.mse_loss(connector(hidden), guide)
        found.append(loss.item())
        (loss / accumulated).backward()
        if (number + 1) % accumulated == 0:
            if clip:
                nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            optimizer.zero_grad()
            if scheduler:
                scheduler.step()
    return student, connector, found


class Losses(Callback):
    """What Lightning minimises, batch by batch."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_before_backward(self, trainer, pl_module, loss):
        self.found.append(loss.item() * trainer.accumulate_grad_batches)


def assert_same(ours: nn.Module, theirs: nn.Module, **tolerance: float) -> None:
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, **tolerance or {"rtol": 1e-9, "atol": 1e-12})


@pytest.mark.parametrize("hint", [True, False])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_run_is_the_one_written_out(accumulated, clip, hint, tmp_path):
    module, drop_in, losses = Theirs(), distillation(hint=hint), Losses()
    changes = {"accumulate_grad_batches": accumulated, "gradient_clip_val": clip, "precision": "64-true"}
    fit(module, drop_in, losses, folder=tmp_path, **changes)
    student, connector, found = by_hand(accumulated=accumulated, clip=clip, hint=hint)
    assert losses.found == pytest.approx(found, rel=1e-9)
    assert_same(module.backbone, student)
    if hint:
        assert_same(drop_in.terms["hint"].loss.connector, connector)


@pytest.mark.parametrize(("precision", "rtol"), [("32-true", 1e-5), ("bf16-mixed", 1e-3)])
def test_a_run_is_the_one_written_out_in_other_precisions(precision, rtol, tmp_path):
    module, losses = Theirs(), Losses()
    fit(module, distillation(), losses, folder=tmp_path, precision=precision)
    student, _, found = by_hand(precision=precision)
    assert losses.found == pytest.approx(found, rel=rtol)
    assert_same(module.backbone, student, rtol=rtol, atol=rtol)


def test_the_teacher_and_the_terms_take_the_modules_precision(tmp_path):
    drop_in = distillation()
    fit(Theirs(), drop_in, folder=tmp_path, precision="bf16-true", max_steps=1)
    assert {p.dtype for p in [*drop_in.teacher.parameters(), *drop_in.terms.parameters()]} == {torch.bfloat16}


# ---- their optimizer


def halving(optimizer: Any) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 0.5**step)


def one_cycle(optimizer: Any) -> OneCycleLR:
    return OneCycleLR(optimizer, max_lr=LR, total_steps=9)


def each_step(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step"}


FORMS = {
    "optimizer": (lambda o: o, None),
    "list": (lambda o: [o], None),
    "tuple": (lambda o: (o,), None),
    "two lists": (lambda o: ([o], [each_step(halving(o))]), halving),
    "two lists, one cycle": (lambda o: ([o], [each_step(one_cycle(o))]), one_cycle),
    "dict": (lambda o: {"optimizer": o}, None),
    "dict with config": (lambda o: {"optimizer": o, "lr_scheduler": each_step(halving(o))}, halving),
    "dict, one cycle": (lambda o: {"optimizer": o, "lr_scheduler": each_step(one_cycle(o))}, one_cycle),
    "list of dicts": (lambda o: [{"optimizer": o, "lr_scheduler": each_step(one_cycle(o))}], one_cycle),
    "dict with plateau": (
        lambda o: {
            "optimizer": o,
            "lr_scheduler": {"scheduler": ReduceLROnPlateau(o, patience=99), "monitor": "train_loss"},
        },
        None,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_connectors_join_their_optimizer_in_each_form_that_lightning_allows(form, tmp_path):
    configured, schedule = FORMS[form]

    class Module(Theirs):
        def configure_optimizers(self):
            return configured(super().configure_optimizers())

    module, drop_in = Module(), distillation()
    trainer = fit(module, drop_in, folder=tmp_path, precision="64-true")
    student, connector, _ = by_hand(schedule=schedule)
    assert_same(module.backbone, student)
    assert_same(drop_in.terms["hint"].loss.connector, connector)
    (group,) = trainer.optimizers[0].param_groups
    assert len(group["params"]) == 4 + 2


class PlainScheduler(Theirs):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return {"optimizer": optimizer, "lr_scheduler": halving(optimizer)}


def test_a_plain_scheduler_in_a_dict_moves_at_each_epoch(tmp_path):
    trainer = fit(PlainScheduler(), distillation(), folder=tmp_path)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(LR / 4)


class TwoGroups(Theirs):
    def configure_optimizers(self):
        assert list(self.children()) == [self.backbone]  # nothing is seen here but what is theirs
        groups = [{"params": self.backbone[0].parameters()}, {"params": self.backbone[2].parameters(), "lr": 0.0}]
        return torch.optim.AdamW(groups, lr=0.01)


def test_the_first_of_several_groups_is_joined(tmp_path):
    trainer = fit(TwoGroups(), drop_in := distillation(), folder=tmp_path)
    first, second = trainer.optimizers[0].param_groups
    assert [parameter is ours for parameter, ours in zip(first["params"][2:], drop_in.terms.parameters(), strict=True)]
    assert len(second["params"]) == 2


OPTIMIZERS = {
    "AdamW": lambda module: torch.optim.AdamW(module.parameters(), lr=0.01),
    "named": lambda module: torch.optim.Adam(module.named_parameters(), lr=0.01),
    "RMSprop": lambda module: torch.optim.RMSprop(module.parameters(), lr=0.01),
    "LBFGS": lambda module: torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_trains_the_connectors_too(name, tmp_path):
    class Module(Theirs):
        def configure_optimizers(self):
            return OPTIMIZERS[name](self)

    drop_in = distillation()
    before = weights_hash(drop_in.terms)
    trainer = fit(Module(), drop_in, folder=tmp_path)
    assert weights_hash(drop_in.terms) != before
    (group,) = trainer.optimizers[0].param_groups
    assert len(group.get("param_names", group["params"])) == len(group["params"]) == 6


def test_an_optimizer_that_is_kept_from_fit_to_fit_is_joined_once(tmp_path):
    class Module(Theirs):
        def __init__(self) -> None:
            super().__init__()
            self.kept = torch.optim.SGD(self.parameters(), lr=LR)

        def configure_optimizers(self):
            return self.kept

    module, drop_in = Module(), distillation()
    for _ in range(2):
        fit(module, drop_in, folder=tmp_path)
    assert len(module.kept.param_groups[0]["params"]) == 6


# ---- what their step returns


class Outputs(Callback):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(outputs)


class ReturnsDict(Theirs):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx), "batch_idx": batch_idx}


def test_a_dict_keeps_its_other_items(tmp_path):
    module, losses, outputs = ReturnsDict(), Losses(), Outputs()
    fit(module, distillation(), losses, outputs, folder=tmp_path, precision="64-true")
    student, _, found = by_hand()
    assert_same(module.backbone, student)
    assert [output["batch_idx"] for output in outputs.seen] == [0, 1, 2, 3] * 2
    assert [output["loss"].item() for output in outputs.seen] == pytest.approx(found, rel=1e-9)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")
@pytest.mark.parametrize("after_the_student", [True, False])
def test_a_step_that_is_skipped_stays_skipped(after_the_student, tmp_path):
    class Module(Theirs):
        def training_step(self, batch, batch_idx):
            if after_the_student or batch_idx % 2 == 0:
                loss = super().training_step(batch, batch_idx)
            return loss if batch_idx % 2 == 0 else None

    module, outputs, drop_in = Module(), Outputs(), distillation()
    asked: list[int] = []
    drop_in.teacher.register_forward_hook(lambda *_: asked.append(1))
    trainer = fit(module, drop_in, outputs, folder=tmp_path, max_epochs=1)
    assert [not output for output in outputs.seen] == [False, True, False, True]
    assert len(asked) == trainer.global_step - 2 == 2


class NoLoss(Theirs):
    def training_step(self, batch, batch_idx):
        return {"lost": super().training_step(batch, batch_idx)}


def test_a_dict_without_a_loss_is_refused_by_lightning(tmp_path):
    with pytest.raises(Exception, match="the 'loss' key needs to be present"):
        fit(NoLoss(), distillation(), folder=tmp_path)


# ---- what the networks and the losses are given


class Recorder(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside
        self.given: list[Any] = []

    def forward(self, x, *, scale=1.0, mask=None):
        self.given.append((x, scale, mask))
        return {"logits": self.inside(scale * x * mask)}


class Augments(Theirs):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Recorder(self.backbone)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] + torch.randn_like(batch[0]), batch[1]

    def training_step(self, batch, batch_idx):
        x = batch[0].lerp(batch[0].flip(0), torch.rand(()))
        mask = torch.rand_like(x).round()
        return functional.cross_entropy(self.backbone(x, scale=2.0, mask=mask)["logits"], batch[1])


def test_the_teacher_is_called_as_the_student_is(tmp_path):
    module, shown = Augments(), Recorder(teacher())
    fit(module, distillation(hint=False, teacher=shown), folder=tmp_path)
    assert len(shown.given) == 8
    for ours, theirs in zip(shown.given, module.backbone.given, strict=True):
        assert [a is b for a, b in zip(ours, theirs, strict=True)] == [True] * 3


class Shared(Theirs):
    """The student is the head of an encoder that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.backbone = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        return self.backbone(self.encoder(x))


def test_what_the_teacher_says_is_a_target_even_where_its_input_learns(tmp_path):
    module, shown = Shared(), nn.Linear(FEATURES, CLASSES)
    theirs = copy.deepcopy(module)
    fit(module, distillation(hint=False, teacher=shown), folder=tmp_path, max_steps=1)
    x, y = batches()[0]
    features = theirs.encoder(x)
    logits, soft = theirs.backbone(features), (shown(features.detach()) / 3).softmax(1)
    loss = functional.cross_entropy(logits, y) + 4.5 * functional.kl_div(
        (logits / 3).log_softmax(1), soft, reduction="batchmean"
    )
    loss.backward()
    torch.testing.assert_close(module.encoder.weight, theirs.encoder.weight - LR * theirs.encoder.weight.grad)


class Labelled(Theirs):
    def training_step(self, batch, batch_idx):
        x = batch.pop("image") if isinstance(batch, dict) else batch if isinstance(batch, Tensor) else batch[0]
        if isinstance(batch, dict):
            batch.clear()
        return self(x).square().mean()


def named(label: str) -> list[Any]:
    return [{"image": x, label: y, "crs": "EPSG:4326"} for x, y in batches()]


FORMS_OF_BATCHES = {
    "pair": (batches(), "target"),
    "list": ([list(batch) for batch in batches()], "target"),
    "triple": ([(x, y, torch.arange(6)) for x, y in batches()], "target"),
    "label": (named("label"), "label"),
    "labels": (named("labels"), "labels"),
    "sentiment": (named("sentiment"), "sentiment"),
}


@pytest.mark.parametrize("form", FORMS_OF_BATCHES)
def test_labels_are_found_in_a_batch_and_before_their_step_takes_them_out(form, tmp_path):
    data, name = FORMS_OF_BATCHES[form]
    module, losses = Labelled(), Losses()
    drop_in = distillation(terms={"task": Term(TaskLoss(), teacher=None, target=name)})
    fit(module, drop_in, losses, folder=tmp_path, max_steps=1, data=copy.deepcopy(data))
    x, y = batches()[0]
    logits = network()(x)
    assert losses.found == [pytest.approx((logits.square().mean() + functional.cross_entropy(logits, y)).item())]


@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: x,
        lambda x, y: (x,),
        lambda x, y: (x, y, y, "meta"),
        lambda x, y: {"image": x},
        lambda x, y: (x, {"boxes": [y]}),
    ],
)
def test_a_batch_of_any_form_will_do_where_no_loss_needs_a_label(form, tmp_path):
    data, loss = [form(*batch) for batch in batches()], Keeps()
    fit(Labelled(), distillation(terms={"kd": Term(loss)}), folder=tmp_path, data=data, max_epochs=1)
    assert len(loss.targets) == 4
    assert all(target is None or isinstance(target, Tensor) for target in loss.targets)


class Keeps(KDLoss):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[Any] = []

    def forward(self, student, teacher, target=None):
        self.targets.append(target)
        return super().forward(student, teacher)


def decorated(step: Any) -> Any:
    @wraps(step)
    def inner(*arguments: Any) -> Any:
        return step(*arguments)

    return inner


class TakesTheBatchAlone(Theirs):
    @decorated
    def training_step(self, batch):
        return functional.cross_entropy(self(batch[0]), batch[1])


def test_a_step_is_given_the_arguments_that_it_names(tmp_path):
    module = TakesTheBatchAlone()
    fit(module, distillation(), folder=tmp_path, precision="64-true")
    assert_same(module.backbone, by_hand()[0])


class Iterates(Theirs):
    def training_step(self, dataloader_iter):
        (x, y), *_ = next(dataloader_iter)
        return functional.cross_entropy(self(x), y)


@pytest.mark.filterwarnings("ignore:.*dataloader_iter")
def test_a_step_that_takes_its_batches_itself_gets_all_of_them(tmp_path):
    module = Iterates()
    fit(module, distillation(), folder=tmp_path)
    assert_same(module.backbone, by_hand(precision="32-true")[0], rtol=1e-5, atol=1e-6)


class Itself(Theirs):
    """Its own forward is the student."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = self.backbone[0], self.backbone[2]
        del self.backbone

    def forward(self, x):
        return self.head(self.hidden(x).tanh())


def test_the_module_itself_may_be_the_student(tmp_path):
    module, losses = Itself(), Losses()
    fit(module, distillation("", hint=False), losses, folder=tmp_path, precision="64-true")
    student, _, found = by_hand(hint=False)
    assert losses.found == pytest.approx(found, rel=1e-9)
    assert_same(module.hidden, student[0])


class BuildsLate(Theirs):
    def __init__(self) -> None:
        super().__init__()
        self.late = self.backbone
        del self.backbone

    def setup(self, stage):
        self.backbone = self.late


def test_a_student_that_is_built_in_setup_is_found(tmp_path):
    module = BuildsLate()
    fit(module, distillation(), folder=tmp_path, precision="64-true")
    assert_same(module.backbone, by_hand()[0])


def test_a_dotted_name_is_a_student_too(tmp_path):
    class Nested(Theirs):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.ModuleDict({"backbone": self.backbone})

    module = Nested()
    del module.backbone
    Nested.forward = lambda self, x: self.model["backbone"](x)
    fit(module, distillation("model.backbone"), folder=tmp_path, precision="64-true")
    assert_same(module.model["backbone"], by_hand()[0])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
@pytest.mark.parametrize("what", ["student", "teacher", "module"])
def test_compiled_networks_are_seen_into(what, tmp_path):
    torch.compiler.reset()
    module, drop_in = Theirs(), distillation()
    fitted: Any = module
    if what == "module":
        fitted = torch.compile(module, backend="eager")
    else:
        {"student": module.backbone, "teacher": drop_in.teacher}[what].compile(backend="eager")
    fit(fitted, drop_in, folder=tmp_path)
    assert_same(module.backbone, by_hand(precision="32-true")[0], rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


# ---- what its page says

PAGE = (Path(__file__).parents[2] / "docs/drop-in.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(YAML,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


class OfImages(Theirs):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.backbone = StudentConvNet()


class Images(LightningDataModule):
    def train_dataloader(self):
        return toys.Loader([(torch.rand(4, 3, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(4))])


def test_its_program_and_its_yaml_for_their_command_line_do_the_same(workplace, monkeypatch):
    (program,) = [program for program in PROGRAMS if "import timm" not in program]
    names: dict[str, Any] = {
        "Trainer": lambda callbacks: toys.trainer(workplace, *callbacks, max_epochs=2),
        "YourModule": lambda: OfImages(),
        "YourDataModule": Images,
    }
    exec(program, names)
    Path("theirs.yaml").write_text("seed_everything: false\n" + YAML, encoding="utf-8")
    quiet = ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.accelerator=cpu"]
    monkeypatch.setattr("sys.argv", ["theirs.py", "fit", "--config=theirs.yaml", "--trainer.max_epochs=2", *quiet])
    cli = LightningCLI(OfImages, Images)
    assert cli.trainer.global_step == 2
    assert toys.same(toys.weights(cli.model), toys.weights(names["trainer"].lightning_module))
    assert not toys.same(toys.weights(cli.model), toys.weights(OfImages()))


# ---- several students


class Pair(Theirs):
    def __init__(self) -> None:
        super().__init__()
        self.second = network(8, seed=4)

    def training_step(self, batch, batch_idx):
        first = super().training_step(batch, batch_idx)
        return first + functional.cross_entropy(self.second(batch[0]), batch[1])


def second(name: str = "kd2") -> Distillation:
    return distillation("second", teacher=network(16, seed=5), terms={name: Term(KDLoss(2.0))})


def test_two_students_of_one_module_have_two_drop_ins(tmp_path):
    module, losses = Pair(), Losses()
    checkpoint = ModelCheckpoint(tmp_path)
    trainer = fit(module, distillation(), second(), losses, checkpoint, folder=tmp_path, precision="64-true")
    assert_same(module.backbone, by_hand()[0])
    assert {"train/kd", "train/hint", "train/kd2", "temperature/kd2"} <= set(trainer.logged_metrics)
    student, shown = network(8, seed=4).double(), network(16, seed=5).double()
    x, y = batches()[0]
    logits, soft = student(x.double()), (shown(x.double()) / 2).softmax(1)
    kd = 4 * functional.kl_div((logits / 2).log_softmax(1), soft, reduction="batchmean")
    expected = by_hand()[2][0] + functional.cross_entropy(logits, y) + kd
    assert losses.found[0] == pytest.approx(expected.item(), rel=1e-9)
    saved = torch.load(checkpoint.best_model_path, weights_only=True)["callbacks"]
    assert {"Distillation{'student': 'backbone'}", "Distillation{'student': 'second'}"} <= set(saved)
    assert [name for name, _ in module.named_children()] == ["backbone", "second"]
    assert not {"training_step", "configure_optimizers"} & set(vars(module))


# ---- what is logged


class Logged(Logger):
    """What reaches a logger, step by step."""

    name, version = "logged", 0

    def __init__(self) -> None:
        super().__init__()
        self.values: list[dict[str, float]] = []

    def log_metrics(self, metrics, step=None):
        self.values.append({name: value for name, value in metrics.items() if name != "epoch"})

    def log_hyperparams(self, params, *_):
        pass


def test_terms_are_logged_unweighted_beside_what_they_log(tmp_path):
    fit(Theirs(), distillation(), folder=tmp_path, max_steps=1, logger=(logged := Logged()))
    student, shown, (x, y) = network(), teacher(), batches()[0]
    kd = 9 * functional.kl_div((student(x) / 3).log_softmax(1), (shown(x) / 3).softmax(1), reduction="batchmean")
    hint = functional.mse_loss(Hint().connector(student[:2](x)), shown[:2](x))
    expected = {"train_loss": functional.cross_entropy(student(x), y).item(), "temperature/kd": 3.0}
    expected |= {"train/kd": kd.item(), "train/hint": hint.item()}
    assert logged.values == [pytest.approx(expected, rel=1e-5)]


def test_terms_are_logged_only_at_the_steps_that_are_due(tmp_path):
    module, due = Theirs(), []
    module.log_dict = lambda values, **_: due.append(module.global_step)
    fit(module, distillation(), folder=tmp_path, log_every_n_steps=3)
    assert due == [2, 5]


class LogsTheSame(Theirs):
    def training_step(self, batch, batch_idx):
        self.log("train/kd", torch.tensor(1.0))
        self.log("train/loss", torch.tensor(2.0))
        return super().training_step(batch, batch_idx)


def test_nothing_that_they_log_is_overwritten(tmp_path):
    with pytest.raises(ValueError, match="'train/kd' is logged by LogsTheSame or another term: give the term another"):
        fit(LogsTheSame(), distillation(), folder=tmp_path)
    terms = {"loss": Term(KDLoss())}
    with pytest.raises(ValueError, match="'train/loss' is logged by LogsTheSame"):
        fit(LogsTheSame(), distillation(terms=terms), folder=tmp_path)
    logged = Logged()
    fit(LogsTheSame(), distillation(terms={"soft": Term(KDLoss())}), folder=tmp_path, logger=logged)
    assert {(values["train/kd"], values["train/loss"]) for values in logged.values} == {(1.0, 2.0)}
    with pytest.raises(ValueError, match="'train/kd' is logged by Pair or another term"):
        fit(Pair(), distillation(), second("kd"), folder=tmp_path)


# ---- other callbacks


@pytest.mark.parametrize("order", [1, -1])
def test_schedules_reach_the_terms_in_either_order(order, tmp_path):
    drop_in, losses = distillation(hint=False), Losses()
    schedules = [TemperatureSchedule(Constant(3.0)), TermWeightSchedule("kd", Constant(0.5))]
    drop_in.terms["kd"].weight = 7.0
    drop_in.terms["kd"].loss.temperature = 9.0
    fit(Theirs(), *[drop_in, *schedules][::order], losses, folder=tmp_path, precision="64-true")
    assert losses.found == pytest.approx(by_hand(hint=False)[2], rel=1e-9)


def averaged(decay: float | None) -> dict[str, Tensor]:
    """The average of the student's weights after each of eight steps."""
    average: dict[str, Tensor] = {}
    for steps in range(1, 9):
        student, _, _ = by_hand(precision="32-true", data=(batches() * 2)[:steps], epochs=1)
        share = 1 / steps if decay is None else 1 - decay if steps > 1 else 1
        for name, value in student.state_dict().items():
            average[name] = average.get(name, 0.0) * (1 - share) + share * value
    return average


class Buffered(Theirs):
    """A buffer that comes after all parameters, in the order in which an average is paired with its module."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((3,), 7.0))


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("decay", [None, 0.7])
def test_averages_are_of_their_weights_alone_in_either_order(decay, order, tmp_path):
    average = WeightAveraging() if decay is None else EMAWeightAveraging(decay=decay)
    module, drop_in = Buffered(), distillation()
    before, expected = weights_hash(drop_in.teacher), averaged(decay)
    trainer = fit(module, *[average, drop_in][::order], folder=tmp_path, val=toys.Loader(batches()))
    for _ in range(2):
        for name, value in module.backbone.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(module.mean, torch.full((3,), 7.0))
        trainer.validate(module, toys.Loader(batches()), verbose=False)  # swaps the average in and out again
    assert weights_hash(drop_in.teacher) == before


def normalised() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.Linear(16, CLASSES))


@pytest.mark.filterwarnings("ignore:Swapping scheduler")
def test_averaging_with_new_statistics_leaves_the_teachers_alone(tmp_path):
    class Module(Theirs):
        def __init__(self) -> None:
            super().__init__()
            self.backbone.insert(1, nn.BatchNorm1d(8))

    drop_in = distillation(teacher=normalised(), hint=False)
    drop_in.teacher[1].running_mean += 1
    before = weights_hash(drop_in.teacher)
    fit(Module(), StochasticWeightAveraging(0.01, swa_epoch_start=1), drop_in, folder=tmp_path, max_epochs=3)
    assert weights_hash(drop_in.teacher) == before


class Finetuning(BackboneFinetuning):
    """Two groups of the head's, then the backbone's."""

    def __init__(self) -> None:
        super().__init__(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.01)


@pytest.mark.parametrize("order", [1, -1])
def test_finetuning_and_freezing_of_their_own_go_on(order, tmp_path):
    class Module(Theirs):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(CLASSES, CLASSES)
            self.model = nn.Sequential(self.backbone, self.head)

        def forward(self, x):
            return self.model(x)

        def configure_optimizers(self):
            return torch.optim.SGD(self.head.parameters(), lr=LR)

    module, drop_in = (
        Module(),
        distillation("model", terms={"kd": Term(KDLoss()), "hint": Term(Hint(), 1.0, "0.1", "1")}),
    )
    before = weights_hash(module.backbone)
    trainer = fit(module, *[drop_in, Finetuning(), TeacherFreezing()][::order], folder=tmp_path, max_epochs=2)
    assert weights_hash(module.backbone) != before
    assert [len(group["params"]) for group in trainer.optimizers[0].param_groups] == [2 + 2, 4]


# ---- what is refused


class Manual(Theirs):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class TwoOptimizers(Theirs):
    def configure_optimizers(self):
        return super().configure_optimizers(), super().configure_optimizers()


class NoOptimizer(Theirs):
    def configure_optimizers(self):
        return None


class Never(Theirs):
    def forward(self, x):
        return x @ self.backbone[0].weight.T


class Views(Theirs):
    def forward(self, x):
        return self.backbone(x) + self.backbone(x.flip(0))


class Overwrites(Theirs):
    def forward(self, x):
        logits = super().forward(x)
        x.mul_(2)
        return logits


REFUSED = {
    "manual": (Manual, distillation, "Manual has manual optimization, and so no single loss .* in training_step"),
    "several optimizers": (TwoOptimizers, distillation, "TwoOptimizers has 2 optimizers, and so no single loss"),
    "no optimizer": (NoOptimizer, distillation, "NoOptimizer has no optimizer to train hint.loss.connector.weight"),
    "no student": (Theirs, lambda: distillation("bakbone"), "no network 'bakbone' .* nearest names are backbone"),
    "nothing like it": (Theirs, lambda: distillation("zzz"), "no network 'zzz' .* are backbone, backbone.0"),
    "never": (Never, distillation, r"'backbone' of Never did not run in training_step: name the network"),
    "twice": (Views, distillation, r"'backbone' of Views ran 2 times in training_step.* one call"),
    "overwritten": (Overwrites, distillation, "the input of the student 'backbone' of Overwrites was overwritten"),
    "no layer": (
        Theirs,
        lambda: distillation(terms={"hint": Term(Hint(), student="11", teacher="1")}),
        "has no layer '11'; the nearest names",
    ),
    "not finite": (
        Theirs,
        lambda: distillation(terms={"kd": Term(KDLoss(), float(2)), "bad": Term(NotFinite())}),
        r"the term 'bad' is not finite at step 0 \(nan\)",
    ),
}


class NotFinite(nn.Module):
    def forward(self, student, teacher, target=None):
        return student.sum() * float("nan")


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_a_line_that_says_what_to_do(name, tmp_path):
    build, drop_in, complaint = REFUSED[name]
    module = build()
    with pytest.raises(UsageError, match=complaint) as refusal:
        fit(module, drop_in(), folder=tmp_path)
    assert "\n" not in str(refusal.value)
    assert list(dict(module.named_children())) == ["backbone"]


def test_a_teacher_that_shares_parameters_with_the_student_is_refused(tmp_path):
    module = Theirs()
    with pytest.raises(ValueError, match=r"the teacher and the student 'backbone' share parameters.*copy one of them"):
        fit(module, distillation(teacher=nn.Sequential(module.backbone, nn.Tanh())), folder=tmp_path)


def test_terms_are_checked_at_construction():
    with pytest.raises(ValueError, match="terms is empty"):
        Distillation("backbone", teacher(), {})
    with pytest.raises(ValueError, match=r"cannot be called 'a\.b'"):
        Distillation("backbone", teacher(), {"a.b": Term(KDLoss())})


@pytest.mark.parametrize(
    ("loss", "scheme"),
    [(AdversarialLoss(Discriminator(10)), "AdversarialDistiller"), (JacobianLoss(), "OfflineDistiller")],
)
def test_what_needs_a_step_of_its_own_is_refused(loss, scheme):
    with pytest.raises(ValueError, match=rf"term 'it': {type(loss).__name__} needs a training step .* use {scheme}"):
        Distillation(teacher=nn.Linear(2, 10), student="net", terms={"it": Term(loss)})
