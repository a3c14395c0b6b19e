from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import Classifier, OfflineDistiller, Term, UsageError
from kd_lightning.core.errors import NonFiniteError
from kd_lightning.core.terms import Terms
from kd_lightning.losses import (
    BernoulliKDLoss,
    FeatureMSELoss,
    KDLoss,
    LogitMSELoss,
    ProbabilityCrossEntropyLoss,
    TaskLoss,
)
from kd_lightning.schemes import MutualLearning
from tests import toys
from tests.callbacks import drop_in

CLASSES = 5


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def losses(term: Term, student: Tensor, teacher: Tensor | None = None, fixed: bool = False, **labels: Tensor) -> Any:
    terms = Terms({"t": term})
    terms.teacher_is_fixed = fixed
    student = student if student.requires_grad else student.requires_grad_()
    return terms.losses({"logits": student}, None if teacher is None else {"logits": teacher}, labels)


# ---- probabilities

SHAPES = {"images": (6, CLASSES), "tokens": (2, 3, CLASSES), "pixels": (2, CLASSES, 3, 3)}


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_are_refused_where_logits_are_meant(side, shape, dtype):
    given = {"student": logits(*shape).to(dtype), "teacher": logits(*shape, seed=1).to(dtype)}
    losses(Term(KDLoss(2.0)), given["student"].clone(), given["teacher"])
    given[side] = given[side].softmax(dim=1 if len(shape) == 4 else -1)
    with pytest.raises(UsageError, match=f"term 't': the {side}'s logits are probabilities .* KDLoss takes logits"):
        losses(Term(KDLoss(2.0)), given["student"].detach(), given["teacher"])


def test_probabilities_with_classes_first_are_refused():
    with pytest.raises(UsageError, match="probabilities"):
        losses(Term(KDLoss(2.0), class_dim=1), logits(2, CLASSES, 7), logits(2, CLASSES, 7).softmax(dim=1))


@pytest.mark.parametrize(
    "term",
    [
        Term(ProbabilityCrossEntropyLoss(), teacher=None),
        Term(LogitMSELoss()),
        Term(BernoulliKDLoss(2.0)),
    ],
    ids=["meant", "squares", "binary"],
)
def test_probabilities_are_taken_where_they_may_be_meant(term):
    probabilities = logits(6, CLASSES).softmax(dim=1)
    assert losses(term, probabilities, probabilities.detach().roll(1), target=torch.arange(6) % CLASSES)


def test_log_probabilities_are_logits():
    assert losses(Term(KDLoss(2.0)), logits(6, CLASSES), logits(6, CLASSES, seed=1).log_softmax(dim=1))


# ---- labels


@pytest.mark.parametrize("label", [99, CLASSES, -1])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_label_that_is_no_class_is_refused(label, shape):
    positions = shape[:1] + shape[2:] if len(shape) == 4 else shape[:-1]
    target = torch.zeros(positions, dtype=torch.long)
    target.flatten()[1] = label
    with pytest.raises(UsageError, match=f"term 't': the label {label} is none of the 5 classes .*labels are 0 to 4"):
        losses(Term(TaskLoss(), teacher=None), logits(*shape), target=target)
    with pytest.warns(UserWarning, match=f"label {label} is none of the 5 classes .*'t' needs no label"):
        losses(Term(KDLoss(2.0)), logits(*shape), logits(*shape, seed=1), target=target)


@pytest.mark.parametrize("ignored", [-100, -1, 255])
def test_an_ignored_label_is_no_fault(ignored):
    term = Term(TaskLoss(), teacher=None, ignore_index=ignored)
    assert losses(term, logits(6, CLASSES), target=torch.tensor([0, 1, 2, 3, 4, ignored]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_whole_numbers_of_any_type_are_class_indices(dtype, shape):
    positions = shape[:1] + shape[2:] if len(shape) == 4 else shape[:-1]
    target = torch.arange(torch.Size(positions).numel()).view(positions) % CLASSES
    found = losses(Term(TaskLoss(), teacher=None), logits(*shape), target=target.to(dtype))
    assert found["t"] == losses(Term(TaskLoss(), teacher=None), logits(*shape), target=target)["t"]


# ---- teachers


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_teacher_that_is_not_finite_is_refused_by_its_layer(bad):
    teacher = logits(6, CLASSES, seed=1)
    teacher[2, 1] = bad
    with pytest.raises(NonFiniteError, match=r"^the teacher's logits is not finite in the first batch \(1 of 30"):
        losses(Term(LogitMSELoss()), logits(6, CLASSES), teacher)


def test_a_masked_class_is_finite_enough():
    teacher = logits(6, CLASSES, seed=1)
    teacher[:, 1] = -torch.inf
    assert losses(Term(KDLoss(2.0)), logits(6, CLASSES), teacher)["t"].isfinite()
    teacher[2] = -torch.inf
    with pytest.raises(NonFiniteError, match="the teacher's logits"):
        losses(Term(KDLoss(2.0)), logits(6, CLASSES), teacher)


def right_of(count: int, samples: int = 64) -> tuple[Tensor, Tensor]:
    """A teacher's logits that are right for some of the samples, and the labels."""
    target = torch.arange(samples) % CLASSES
    predicted = torch.where(torch.arange(samples) < count, target, (target + 1) % CLASSES)
    return functional.one_hot(predicted, CLASSES).float() * 9, target


@pytest.mark.parametrize(
    ("count", "samples", "fixed", "warned"),
    [(13, 64, True, True), (0, 64, True, True), (40, 64, True, False), (13, 64, False, False), (0, 16, True, False)],
    ids=["chance", "none right", "good", "a peer", "too few to tell"],
)
def test_a_teacher_at_chance_is_warned_of(count, samples, fixed, warned):
    teacher, target = right_of(count, samples)
    with pytest.warns(UserWarning, match=f"right class of {count} of 64 .*chance") if warned else nullcontext():
        losses(Term(KDLoss(2.0)), logits(samples, CLASSES), teacher, fixed, target=target)


def test_a_constant_teacher_is_warned_of():
    with pytest.warns(UserWarning, match="the same logits for all 6 samples"):
        losses(Term(KDLoss(2.0)), logits(6, CLASSES), logits(1, CLASSES).expand(6, -1), fixed=True)


# ---- terms that cannot teach


class Detached(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        if self.how == "no_grad":
            with torch.no_grad():
                return functional.mse_loss(student, teacher)
        return self.scale * functional.mse_loss(student.detach(), teacher)


@pytest.mark.parametrize("how", ["no_grad", "detach"])
def test_a_loss_without_the_students_graph_is_refused(how):
    with pytest.raises(UsageError, match="term 't' cannot teach the student: Detached gave a value without the graph"):
        losses(Term(Detached(how)), logits(6, CLASSES), logits(6, CLASSES, seed=1))


def test_a_term_is_checked_when_its_weight_leaves_zero():
    term, terms = Term(Detached("detach"), weight=0.0), None
    terms = Terms({"task": Term(TaskLoss(), teacher=None), "t": term})
    given = {"logits": logits(6, CLASSES).requires_grad_()}, {"logits": logits(6, CLASSES, seed=1)}
    for _ in range(2):
        terms.losses(*given, {"target": torch.arange(6) % CLASSES})
    term.weight = 0.5
    with pytest.raises(UsageError, match="term 't' cannot teach"):
        terms.losses(*given, {"target": torch.arange(6) % CLASSES})


def test_each_of_several_sets_of_terms_is_checked():
    terms = Terms({"a": Term(KDLoss(2.0)), "b": Term(Detached("detach"))})
    given = {"logits": logits(6, CLASSES).requires_grad_()}, {"logits": logits(6, CLASSES, seed=1)}, {}
    terms.losses(*given, only=["a"])
    assert not terms.is_checked
    with pytest.raises(UsageError, match="term 'b' cannot teach"):
        terms.losses(*given, only=["b"])


def test_the_checks_are_made_once():
    terms = Terms({"kd": Term(KDLoss(2.0))})
    student = {"logits": logits(6, CLASSES).requires_grad_()}
    terms.losses(student, {"logits": logits(6, CLASSES, seed=1)}, {})
    assert terms.is_checked
    terms.losses(student, {"logits": logits(6, CLASSES).softmax(dim=1)}, {})  # not looked at again


# ---- torch's errors in losses


class WrongSignature(nn.Module):
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return functional.mse_loss(student, teacher)


class WrongOperation(WrongSignature):
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return (student @ teacher).mean()


def test_an_error_of_torch_in_a_loss_names_the_term_and_what_it_got():
    with pytest.raises(UsageError, match=r"^term 't': WrongOperation failed on student \(6, 5\) float32, teacher"):
        losses(Term(WrongOperation()), logits(6, CLASSES), logits(6, CLASSES, seed=1))


# ---- whole fits, of a learner and of the drop-in


def fit_learner(tmp_path: Any, student: nn.Module, teacher: nn.Module, batch: Any) -> None:
    learner = OfflineDistiller(student, teacher, {"kd": Term(KDLoss(3.0))})
    toys.trainer(tmp_path, max_epochs=1).fit(learner, toys.Loader([batch] * 2))


def fit_drop_in(tmp_path: Any, student: nn.Module, teacher: nn.Module, batch: Any) -> None:
    module = drop_in.Theirs()
    module.backbone = student
    callback = drop_in.distillation(hint=False, teacher=teacher)
    toys.trainer(tmp_path, callback, max_epochs=1).fit(module, toys.Loader([batch] * 2))


both_ways = pytest.mark.parametrize("fit", [fit_learner, fit_drop_in], ids=["learner", "drop-in"])


def batch(size: int = 40) -> tuple[Tensor, Tensor]:
    return logits(size, drop_in.FEATURES), torch.arange(size) % drop_in.CLASSES


def student(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(drop_in.FEATURES, 8), *layers, nn.Linear(8, drop_in.CLASSES))


@both_ways
@pytest.mark.parametrize("layer", [nn.BatchNorm1d(8), nn.Dropout(0.1)], ids=["norm", "dropout"])
def test_a_student_that_was_left_in_eval_is_refused(fit, layer, tmp_path):
    with pytest.raises(UsageError, match=rf"student.* is in eval mode, so that its '1' \({type(layer).__name__}\)"):
        fit(tmp_path, student(layer).eval(), drop_in.teacher(), batch(8))


@both_ways
def test_a_mode_that_changes_nothing_and_a_layer_kept_in_eval_are_no_faults(fit, tmp_path):
    fit(tmp_path, student(nn.Tanh()).eval(), drop_in.teacher(), batch(8))
    fit(tmp_path, nn.Sequential(student(nn.BatchNorm1d(8)).eval()), drop_in.teacher(), batch(8))


def test_peers_that_were_left_in_eval_are_refused(tmp_path):
    peers = MutualLearning(student(), [student(nn.Dropout()).eval()], {"kd": Term(KDLoss(3.0))})
    with pytest.raises(UsageError, match=r"^peers\.0 is in eval mode"):
        toys.trainer(tmp_path, max_epochs=1).fit(peers, toys.Loader([batch()]))


@both_ways
def test_an_untrained_teacher_is_warned_of_once(fit, tmp_path):
    teacher = drop_in.teacher()
    nn.init.zeros_(teacher[2].weight)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, student(), teacher, batch())
    assert sum("the same logits for all 40 samples" in str(each.message) for each in caught) == 1


@both_ways
def test_a_teacher_of_other_classes_and_one_that_ends_in_a_softmax_are_refused(fit, tmp_path):
    with pytest.raises(UsageError, match="num_classes"):
        fit(tmp_path, student(), nn.Linear(drop_in.FEATURES, 3), batch(8))
    with pytest.raises(UsageError, match="term 'kd': the teacher's logits are probabilities"):
        fit(tmp_path, student(), nn.Sequential(drop_in.teacher(), nn.Softmax(dim=1)), batch(8))


def test_features_are_not_taken_for_probabilities():
    terms = Terms({"f": Term(FeatureMSELoss(), student="0", teacher="0")})
    probabilities = logits(6, CLASSES).softmax(dim=1)
    assert terms.losses({"0": probabilities.clone().requires_grad_()}, {"0": probabilities.roll(1)}, {})


def test_a_classifier_is_checked_as_well(tmp_path):
    x, _ = batch(8)
    with pytest.raises(UsageError, match="term 'task': the label 7 is none of the 5 classes"):
        toys.trainer(tmp_path, max_epochs=1).fit(Classifier(student()), toys.Loader([(x, torch.full((8,), 7))]))


@pytest.mark.parametrize("loss", [functional.mse_loss, "kd", Term(KDLoss(2.0))], ids=["function", "text", "term"])
def test_the_loss_of_a_term_is_a_module(loss):
    with pytest.raises(UsageError, match=f"the loss of a term is a {type(loss).__name__}"):
        Term(loss)


def test_the_drop_in_needs_a_teacher():
    with pytest.raises(UsageError, match="teacher of 'backbone' is None, not a network"):
        drop_in.distillation(teacher=None)
