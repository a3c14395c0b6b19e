"""`Distillation` and any training step: what it returns, and the batches and networks that it uses."""

from __future__ import annotations

import copy
from functools import wraps
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import Term
from kd_lightning.losses import KDLoss, TaskLoss
from tests.callbacks.drop_in import (
    CLASSES,
    FEATURES,
    LR,
    Losses,
    Theirs,
    assert_same,
    batches,
    by_hand,
    distillation,
    fit,
    network,
    teacher,
)

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
