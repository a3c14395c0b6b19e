"""What holds for every loss that the package exports, found in the tree: a new one is tested by being there."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning import losses
from kd_lightning.losses import (
    CAMKDFeatureLoss,
    EnsembleLoss,
    FeatureEnsembleLoss,
    KDLoss,
    SoftCrossEntropyLoss,
    geometric_mean,
)

LOSSES: dict[str, type[nn.Module]] = {
    name: found
    for name, found in vars(losses).items()
    if name.endswith("Loss") and isinstance(found, type) and issubclass(found, nn.Module)
}


class Listed(nn.Module):
    """For a loss that takes a list of what several teachers show: takes it stacked, as all here do."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.needs_target: bool = loss.needs_target

    def forward(self, student, teacher, target=None):
        return self.loss(student, [*teacher.unbind(min(1, teacher.dim() - 1))], target)


BUILT: dict[str, Callable[..., nn.Module]] = {  # how a loss is built of its temperature, where that is not all it takes
    "CAMKDFeatureLoss": lambda: Listed(CAMKDFeatureLoss(3, [nn.Linear(4, 10), nn.Linear(4, 10)])).double(),
    "EnsembleLoss": lambda **given: EnsembleLoss(KDLoss(**given)),
    "EnsembleLoss of geometric means": lambda **given: EnsembleLoss(KDLoss(**given), geometric_mean, [1.0, 2.0, 4.0]),
    "FeatureEnsembleLoss": lambda: Listed(FeatureEnsembleLoss([KDLoss(), SoftCrossEntropyLoss(), KDLoss()])),
}
NAMES = list({**LOSSES, **BUILT})
FEATURES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {  # what a loss compares that is not for logits
    "CAMKDFeatureLoss": ((6, 3, 2, 2), (6, 2, 4, 2, 2)),
    "FeatureMSELoss": ((6, 3, 4, 4), (6, 3, 4, 4)),
    "SADLoss": ((6, 3, 4, 4), (6, 5, 2, 2)),
}
STACKED = {  # several teachers: (N, 3, C)
    "CAMKDFeatureLoss",
    "CAMKDLoss",
    "EnsembleLoss",
    "EnsembleLoss of geometric means",
    "FeatureEnsembleLoss",
}
CONNECTED = {"CAMKDFeatureLoss"}  # it has weights, of a type that its inputs must have
NOT_ZERO_AT_ITS_LEAST = {"FeatureEnsembleLoss", "SoftCrossEntropyLoss"}  # the entropy of the soft targets stays
KINKED = {"KLMAELoss"}  # where a probability equals its target, rounding decides the absolute error's gradient's sign
LIMITS = {("LogitMSELoss", torch.float16): 1e4}  # its gradient 2 (s - t) / (N C) leaves float16 beyond, at N C = 2

every_loss = pytest.mark.parametrize("name", NAMES)


def build(name: str, **given: Any) -> nn.Module:
    return BUILT.get(name, LOSSES.get(name))(**given)


def shapes(name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of what the student and the teacher show."""
    return FEATURES.get(name, ((6, 10), (6, 3, 10) if name in STACKED else (6, 10)))


def example(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Student, teacher, target; the student learns, the teacher does not."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes(name))
    return student.requires_grad_(), teacher, torch.randint(10, (6,), generator=generator)


def looks_at_the_teacher(name: str) -> bool:
    student, teacher, target = example(name)
    loss = build(name)
    return not torch.equal(loss(student, teacher, target), loss(student, teacher.flip(0), target))


def looks_at_the_target(name: str) -> bool:
    student, teacher, target = example(name)
    loss = build(name)
    return not torch.equal(loss(student, teacher, target), loss(student, teacher, target.flip(0)))


TAUGHT = [name for name in NAMES if looks_at_the_teacher(name)]
LABELLED = [name for name in NAMES if looks_at_the_target(name)]
SOFTENED = [name for name in NAMES if hasattr(build(name), "temperature")]
ON_LOGITS = [name for name in NAMES if name not in FEATURES]
by_teachers = pytest.mark.parametrize("name", TAUGHT)
at_temperatures = pytest.mark.parametrize("name", SOFTENED)


def test_the_losses_are_found():
    assert {"KDLoss", "KLMAELoss", "LogitMSELoss", "SoftCrossEntropyLoss", "EnsembleLoss", "CAMKDLoss"} <= set(TAUGHT)
    assert {"TaskLoss", "ProbabilityCrossEntropyLoss", "CAMKDLoss"} <= set(LABELLED)
    assert {"KDLoss", "KLMAELoss", "SoftCrossEntropyLoss", "EnsembleLoss", "CAMKDLoss"} <= set(SOFTENED)
    assert set(TAUGHT) | set(LABELLED) == set(NAMES)


def function_of(name: str) -> Callable[..., Tensor]:
    """The one public function of the file that the class stands in."""
    module = sys.modules[LOSSES[name].__module__]
    functions = inspect.getmembers(
        module, lambda member: inspect.isfunction(member) and member.__module__ == module.__name__
    )
    (function,) = [function for name, function in functions if name.endswith("_loss")]
    return function


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BUILT])  # what wraps losses is no function
def test_the_function_and_the_module_are_one(name: str):
    loss, function = build(name), function_of(name)
    given = dict(zip(("student", "teacher", "target"), example(name), strict=True))
    wanted = inspect.signature(function).parameters
    arguments = {argument: given[argument] if argument in given else getattr(loss, argument) for argument in wanted}
    assert getattr(losses, function.__name__) is function
    assert torch.equal(function(**arguments), loss(*given.values()))


@pytest.mark.parametrize("name", LOSSES)
def test_it_takes_student_teacher_target_in_this_order(name: str):
    assert list(inspect.signature(LOSSES[name].forward).parameters) == ["self", "student", "teacher", "target"]


@every_loss
def test_it_says_whether_it_needs_labels(name: str):
    assert getattr(build(name), "needs_target", False) is (name in LABELLED)


def unstacked(name: str) -> tuple[int, ...]:
    """The shape of what one teacher shows."""
    _, shape = shapes(name)
    return (*shape[:1], *shape[2:]) if name in STACKED else shape


@pytest.mark.parametrize("name", [name for name in TAUGHT if unstacked(name) == shapes(name)[0]])
def test_it_is_least_when_the_student_equals_the_teacher(name: str):
    student, teacher, target = example(name)
    loss = build(name)
    if name in STACKED:
        teacher = student.detach().unsqueeze(1).expand_as(teacher)
    else:
        student = teacher.clone().requires_grad_()
    least = loss(student, teacher, target)
    (gradient,) = torch.autograd.grad(least, student)
    assert gradient.abs().max().item() < 1e-12
    assert (abs(least.item()) < 1e-12) is (name not in NOT_ZERO_AT_ITS_LEAST)
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-3, 0.1, 1.0, 10.0, 100.0):
        away = student.detach() + scale * torch.randn(student.shape, generator=generator, dtype=student.dtype)
        assert loss(away, teacher, target) > least


@every_loss
def test_gradients_reach_the_student_and_never_a_frozen_teacher(name: str):
    torch.manual_seed(0)
    student, teacher = (nn.Linear(5, math.prod(shape[1:])).double() for shape in shapes(name))
    teacher.requires_grad_(False)
    inputs = torch.randn(6, 5, dtype=torch.float64)
    _, _, target = example(name)
    for _ in range(2):  # a second backward, on a graph of its own
        seen, shown = (
            network(inputs).view(shape) for network, shape in zip((student, teacher), shapes(name), strict=True)
        )
        build(name)(seen, shown, target).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


@by_teachers
def test_gradients_go_through_what_a_teacher_shows_to_whatever_made_them(name: str):
    student, teacher, target = example(name)
    loss = build(name)
    teacher.requires_grad_()  # as a generator of images needs it
    torch.autograd.gradcheck(lambda student, teacher: loss(student, teacher, target), (student, teacher))


@every_loss
@pytest.mark.parametrize("temperature", [1.0, 50.0])
def test_the_gradient_is_that_of_the_value(name: str, temperature: float):
    student, teacher, target = example(name)
    loss = build(name)
    if name in SOFTENED:
        loss.temperature = temperature
    torch.autograd.gradcheck(lambda student: loss(student, teacher, target), (student,))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in CONNECTED])
@pytest.mark.parametrize("student_type", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("teacher_type", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_it_is_a_scalar_of_at_least_single_precision_whatever_the_two_types(name: str, student_type, teacher_type):
    student, teacher, target = example(name)
    student, teacher = student.detach().to(student_type).requires_grad_(), teacher.to(teacher_type)
    loss = build(name)(student, teacher, target)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.shape == ()
    looked_at = [student, teacher] if name in TAUGHT else [student]
    assert loss.dtype == (torch.float64 if any(x.dtype == torch.float64 for x in looked_at) else torch.float32)
    assert gradient.dtype == student_type
    assert gradient.any()


# ---- wrong inputs

UNLIKE = [
    ((4, 10), (4, 5)),
    ((4, 10), (3, 10)),
    ((4, 1), (4, 10)),
    ((4, 10), (4, 1)),
    ((1, 10), (4, 10)),
    ((4, 10), (1, 10)),
    ((4, 1), (4, 1)),
    ((0, 10), (0, 10)),
    ((4, 0), (4, 0)),
    ((10,), (10,)),
    ((), ()),
    ((4, 10), (10,)),
    ((4, 10, 2), (4, 10, 2)),
]
UNLABELLED = [
    ((4, 10), (3,)),
    ((4, 10), (4, 1)),
    ((4, 10), (1, 4)),
    ((4, 10), ()),
    ((4, 1), (4,)),
    ((0, 10), (0,)),
    ((10,), (10,)),
    ((10,), ()),
    ((4, 10, 2), (4, 2)),
    ((4, 10, 2), (4,)),
]


@pytest.mark.parametrize("name", [name for name in TAUGHT if name in ON_LOGITS])
@pytest.mark.parametrize(("student", "teacher"), UNLIKE)
def test_logits_that_do_not_compare_are_refused_with_both_shapes_and_the_remedy(name: str, student, teacher):
    if name in STACKED:
        teacher = (*teacher[:1], 3, *teacher[1:])
    with pytest.raises(ValueError, match="the same") as refusal:
        build(name)(torch.zeros(student), torch.zeros(teacher), torch.zeros(student[:1], dtype=torch.long))
    if name != "FeatureEnsembleLoss":  # what is wrong with one teacher's is said of that one
        assert f"student logits {student} and teacher logits {teacher}" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", [name for name in LABELLED if name in ON_LOGITS])
@pytest.mark.parametrize(("student", "target"), UNLABELLED)
def test_labels_that_do_not_fit_are_refused_with_both_shapes_and_the_remedy(name: str, student, target):
    teacher = (*student[:1], 3, *student[1:]) if name in STACKED else student
    are_logits = len(student) == 2 and student[0] >= 1 and student[1] >= 2
    with pytest.raises(ValueError, match="do not fit" if are_logits or name not in TAUGHT else "the same") as refusal:
        build(name)(torch.zeros(student), torch.zeros(teacher), torch.zeros(target, dtype=torch.long))
    if are_logits or name not in TAUGHT:
        assert f"logits {teacher} and target {target}" in str(refusal.value)
        assert "class indices (N,)" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@at_temperatures
@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, math.nan, math.inf, -math.inf])
def test_a_temperature_that_is_no_temperature_is_refused_at_construction_and_when_scheduled(
    name: str, temperature: float
):
    remedy = f"temperature={temperature} must be a finite number above 0"
    with pytest.raises(ValueError, match=remedy):
        build(name, temperature=temperature)
    loss = build(name)
    loss.temperature = temperature
    with pytest.raises(ValueError, match=remedy):
        loss(*example(name))


# ---- every finite input: loss x dtype x temperature x magnitude

SHAPES = {
    "unrelated": lambda s, t, close: (s, t),
    "close": lambda s, t, close: (t + close * s, t),
    "equal": lambda s, t, close: (t, t),
    "opposite": lambda s, t, close: (-t, t),
    "far from zero": lambda s, t, close: (s * close + 1, t * close + 1),
    "certain": lambda s, t, close: (torch.eye(*s.shape), torch.eye(*s.shape).roll(1, dims=1)),
    "silent student": lambda s, t, close: (s * 0, t),
}


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, float, Tensor, Tensor, Tensor]:
    """The loss, the temperature, and student, teacher and target."""
    name = draw(st.sampled_from(sorted(ON_LOGITS)))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    temperature = 10 ** draw(st.floats(-2, 3))
    largest = LIMITS.get((name, dtype), torch.finfo(dtype).max if dtype == torch.float16 else 1e4)
    magnitude = min(10 ** draw(st.floats(-3, math.log10(largest))), largest)
    rows, classes = draw(st.sampled_from([1, 2, 5, 33])), draw(st.sampled_from([2, 3, 10, 100]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    student, *teachers = 2 * torch.rand(4, rows, classes, generator=generator) - 1
    shape, close = SHAPES[draw(st.sampled_from(sorted(SHAPES)))], 10 ** draw(st.floats(-4, 0))
    pairs = [shape(student, teacher, close) for teacher in teachers]
    student, teacher = pairs[0]
    if name in STACKED:
        teacher = torch.stack([teacher for _, teacher in pairs], dim=1)
    student, teacher = ((magnitude * x).clamp(-largest, largest).to(dtype) for x in (student, teacher))
    return name, temperature, student, teacher, torch.randint(classes, (rows,), generator=generator)


def value_and_gradient(loss: nn.Module, student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    student = student.detach().requires_grad_()
    value = loss(student, teacher, target)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def check(case: tuple[str, float, Tensor, Tensor, Tensor]) -> None:
    name, temperature, student, teacher, target = case
    loss = build(name)
    if name in SOFTENED:
        loss.temperature = temperature
    value, gradient = value_and_gradient(loss, student, teacher, target)
    assert value.isfinite()
    assert gradient.isfinite().all()
    exact, exact_gradient = value_and_gradient(loss, student.double(), teacher.double(), target)
    # absolute below 1, relative above; of the gradient the whole, which has the precision of the student's type
    assert (value - exact).abs() <= 1e-3 * exact.abs().clamp(min=1)
    if name not in KINKED:
        difference = (gradient.double() - exact_gradient).norm()
        assert difference <= max(1e-3, torch.finfo(gradient.dtype).eps) * exact_gradient.norm().clamp(min=1)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            again, gradient_again = value_and_gradient(loss, student, teacher, target)
        assert torch.equal(again, value)
        assert torch.equal(gradient_again, gradient)


@given(cases())
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_loss_and_gradient_are_finite_and_those_of_float64(case):
    check(case)


@pytest.mark.slow
@given(cases())
@settings(max_examples=10_000, deadline=None, derandomize=True, database=None)
def test_loss_and_gradient_are_finite_and_those_of_float64_in_10_000_cases(case):
    check(case)
