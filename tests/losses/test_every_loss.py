"""Properties of every exported loss, which are found in the tree, so that a new loss is tested without an edit here.

A loss that needs arguments, or does not compare logits, is described in the `CASES` of its own test file.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from kd_lightning import losses
from tests.losses.case import Shapes
from tests.losses.every import CASES, LOSSES, Values, build, each, like, listed, needed


def exact(name: str) -> nn.Module:
    """Build a new loss with float64 weights."""
    return build(name).double()


def draw(shapes: Shapes, generator: torch.Generator) -> Values:
    return each(lambda shape: 3 * torch.randn(shape, generator=generator, dtype=torch.float64), shapes)


def example(name: str) -> tuple[Values, Values, Any]:
    """Return student, teacher and target; the student requires a gradient, the teacher does not."""
    generator = torch.Generator().manual_seed(0)
    case = CASES[name]
    student, teacher = draw(case.student, generator), draw(case.teacher, generator)
    return each(Tensor.requires_grad_, student), teacher, case.target()


def call(name: str, loss: nn.Module, student: Values, teacher: Values | None, target: Any) -> Tensor:
    """Call the loss with a fixed seed if it draws random numbers."""
    if CASES[name].random:
        torch.manual_seed(0)
    return loss(student, teacher, target)


def first_call(name: str, loss: nn.Module, *arguments: Any) -> Tensor:
    return call(name, deepcopy(loss) if [*loss.buffers()] or CASES[name].random else loss, *arguments)


def depends_on_the_teacher(name: str) -> bool:
    student, teacher, target = example(name)
    loss = exact(name)
    other = each(lambda shown: -1.5 * shown.flip(0), teacher)
    return not torch.equal(
        first_call(name, loss, student, teacher, target), first_call(name, loss, student, other, target)
    )


def depends_on_the_target(name: str) -> bool:
    student, teacher, target = example(name)
    loss = exact(name)
    other = each(lambda label: label.flip(0), target)
    return not torch.equal(
        first_call(name, loss, student, teacher, target), first_call(name, loss, student, teacher, other)
    )


def has_a_temperature(loss: nn.Module) -> bool:
    """True for a temperature that can be set; a learned one cannot."""
    kept = getattr(type(loss), "temperature", None)
    return "temperature" in vars(loss) or (isinstance(kept, property) and kept.fset is not None)


TAUGHT = [name for name in CASES if depends_on_the_teacher(name)]
LABELLED = [name for name in CASES if depends_on_the_target(name)]
SOFTENED = [name for name in CASES if has_a_temperature(build(name))]
REFUSING = {name.partition(" of ")[0] for name, case in CASES.items() if case.wrong}  # shapes of their own
ON_LOGITS = [
    name for name, case in CASES.items() if case.student == (6, 10) and name.partition(" of ")[0] not in REFUSING
]
CONNECTED = [name for name in CASES if [*build(name).parameters()]]
COMPARING = [name for name in CASES if getattr(build(name), "compares_samples", False)]
every_loss = pytest.mark.parametrize("name", CASES)
at_temperatures = pytest.mark.parametrize("name", SOFTENED)


def stacked(name: str) -> bool:
    """True if it has several teachers, stacked after the batch dimension."""
    teacher = CASES[name].teacher
    return isinstance(teacher, tuple) and name in ON_LOGITS and len(teacher) == 3


def test_the_losses_are_found():
    assert set(LOSSES) <= set(CASES), "a loss that needs arguments says in the CASES of its test how it is built"
    assert "KDLoss" in set(TAUGHT) & set(SOFTENED) - set(LABELLED)
    assert "TaskLoss" in set(LABELLED) - set(TAUGHT) - set(SOFTENED)
    assert [name for name in TAUGHT if stacked(name)]
    played = {
        name for name in CASES if hasattr(build(name), "discriminator_loss")
    }  # whose discriminator knows the teacher
    alone = {name for name, case in CASES.items() if case.alone}
    assert set(TAUGHT) | set(LABELLED) | played == set(CASES) - alone


def function_of(name: str) -> Callable[..., Tensor] | None:
    """Return the public function in the class's file, whose name is that of the class in lower case with underlines."""
    functions = inspect.getmembers(sys.modules[LOSSES[name].__module__], inspect.isfunction)
    (function,) = [found for key, found in functions if key.replace("_", "") == name.lower()] or [None]
    return function


PLAIN = [
    name
    for name, kind in LOSSES.items()
    if not needed(kind) and not [*kind().state_dict()] and type(build(name)) is kind
]


@pytest.mark.parametrize("name", PLAIN)
def test_function_and_module_give_the_same_value(name: str):
    loss, function = LOSSES[name](), function_of(name)
    given = dict(zip(("student", "teacher", "target"), example(name), strict=True))
    wanted = inspect.signature(function).parameters
    arguments = {argument: given[argument] if argument in given else getattr(loss, argument) for argument in wanted}
    assert getattr(losses, function.__name__) is function
    assert torch.equal(function(**arguments), loss(*given.values()))


@pytest.mark.parametrize("name", LOSSES)
def test_it_takes_student_teacher_target_in_this_order(name: str):
    assert list(inspect.signature(LOSSES[name].forward).parameters) == ["self", "student", "teacher", "target"]


@every_loss
def test_needs_target_is_declared(name: str):
    assert getattr(build(name), "needs_target", False) is (name in LABELLED)


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.samples and not case.random])
def test_compares_samples_is_declared(name: str):
    """Without comparisons the loss is a mean over samples: the mean over both halves of a batch equals the whole."""
    loss, (student, teacher, target) = exact(name), example(name)

    def of(rows: slice) -> Tensor:
        return first_call(name, loss, *(each(lambda value: value[rows], side) for side in (student, teacher, target)))

    mean, whole = (of(slice(0, 3)) + of(slice(3, 6))) / 2, of(slice(0, 6))
    assert torch.isclose(mean, whole, rtol=1e-9) == (name not in COMPARING)
    if [module for module in loss.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]:
        assert name in COMPARING


AT_THE_TEACHER = [name for name in TAUGHT if CASES[name].minimum != "elsewhere"]


@pytest.mark.parametrize(
    "name", [name for name in AT_THE_TEACHER if stacked(name) or CASES[name].student == CASES[name].teacher]
)
def test_it_is_smallest_when_the_student_equals_the_teacher(name: str):
    student, teacher, target = example(name)
    loss = exact(name)
    if stacked(name):
        teacher = student.detach().unsqueeze(1).expand_as(teacher)
    else:
        student = each(lambda shown: shown.clone().requires_grad_(), teacher)
    least = first_call(name, loss, student, teacher, target)
    gradients = torch.autograd.grad(least, listed(student))
    assert max(gradient.abs().max().item() for gradient in gradients) < 1e-9
    assert (abs(least.item()) < 1e-12) is (CASES[name].minimum == "zero")
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-3, 0.1, 1.0, 10.0, 100.0):
        away = each(lambda seen, scale=scale: seen.detach() + scale / 3 * draw(seen.shape, generator), student)
        assert first_call(name, loss, away, teacher, target) > least


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.samples])
def test_gradients_reach_the_student_and_never_a_frozen_teacher(name: str):
    case, inputs = CASES[name], torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    student, teacher = (
        nn.ModuleList(nn.Linear(5, math.prod(shape[1:])) for shape in listed(shapes)).double()
        for shapes in (case.student, case.teacher)
    )
    teacher.requires_grad_(False)
    for _ in range(2):  # a second backward, on a graph of its own
        seen, shown = (
            [layer(inputs).view(shape) for layer, shape in zip(network, listed(shapes), strict=True)]
            for network, shapes in ((student, case.student), (teacher, case.teacher))
        )
        call(name, exact(name), like(example(name)[0], seen), like(example(name)[1], shown), case.target()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("name", CONNECTED)
def test_its_parameters_are_trained_and_saved(name: str):
    loss, (student, teacher, target) = build(name), example(name)
    student, teacher = (each(lambda value: value.detach().float(), side) for side in (student, teacher))
    before = deepcopy(loss.state_dict())
    learns = {key: parameter for key, parameter in loss.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD(learns.values(), lr=0.1)
    call(name, loss, student, teacher, target).backward()
    optimizer.step()
    after = loss.state_dict()
    assert not [key for key in learns if torch.equal(before[key], after[key])]
    again = build(name)
    again.load_state_dict(after)
    if not CASES[name].random:
        assert torch.equal(
            first_call(name, again, student, teacher, target), first_call(name, loss, student, teacher, target)
        )


@pytest.mark.parametrize("name", [name for name in TAUGHT if not CASES[name].constants])
def test_gradients_flow_through_the_teachers_values_to_its_input(name: str):
    student, teacher, target = example(name)
    loss = exact(name)
    each(Tensor.requires_grad_, teacher)  # as a generator of images needs it
    split = len(listed(student))

    def value(*flat: Tensor) -> Tensor:
        seen, shown = like(student, [*flat[:split]]), like(teacher, [*flat[split:]])
        return first_call(name, loss, seen, shown, target)

    torch.autograd.gradcheck(value, (*listed(student), *listed(teacher)), fast_mode=True)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.constants])
@pytest.mark.parametrize("temperature", [1.0, 50.0])
def test_the_gradient_is_that_of_the_value(name: str, temperature: float):
    student, teacher, target = example(name)
    loss = exact(name)
    if name in SOFTENED:
        loss.temperature = temperature
    elif temperature > 1:
        return

    def value(*flat: Tensor) -> Tensor:
        return first_call(name, loss, like(student, [*flat]), teacher, target)

    torch.autograd.gradcheck(value, (*listed(student),), fast_mode=len(flattened(student)) > 100)


def flattened(values: Values) -> Tensor:
    return torch.cat([value.flatten() for value in listed(values)])


TYPES = torch.float16, torch.bfloat16, torch.float32, torch.float64
MIXED = {(TYPES[0], TYPES[2]), (TYPES[2], TYPES[1]), (TYPES[3], TYPES[0])}
"""Pairs of types that `make test` tries beside the equal ones: either side may be the more precise."""
PAIRS = [pytest.param(s, t, marks=[] if s == t or (s, t) in MIXED else pytest.mark.slow) for s in TYPES for t in TYPES]


@every_loss
@pytest.mark.parametrize(("student_type", "teacher_type"), PAIRS)
def test_it_is_a_scalar_of_at_least_single_precision_for_any_two_types(name: str, student_type, teacher_type):
    student, teacher, target = example(name)
    student = each(lambda seen: seen.detach().to(student_type).requires_grad_(), student)
    teacher = each(lambda shown: shown.to(teacher_type), teacher)
    loss = call(name, build(name), student, teacher, target)
    gradients = torch.autograd.grad(loss, listed(student))
    assert loss.shape == ()
    if name not in CONNECTED:  # else of the type of its weights, at least
        looked_at = [*listed(student), *(listed(teacher) if name in TAUGHT else [])]
        assert loss.dtype == (torch.float64 if any(x.dtype == torch.float64 for x in looked_at) else torch.float32)
    assert loss.dtype in (torch.float32, torch.float64)
    assert {gradient.dtype for gradient in gradients} == {student_type}
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", CONNECTED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_module_in_half_precision_gives_a_finite_value_and_gradient(name: str, dtype: torch.dtype):
    student, teacher, target = example(name)
    for kind in (torch.float32, dtype):
        seen, shown = (each(lambda value, kind=kind: value.detach().to(kind), side) for side in (student, teacher))
        seen = each(Tensor.requires_grad_, seen)
        loss = call(name, build(name).to(dtype), seen, shown, target)
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, listed(seen)))


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
def test_unequal_logits_are_refused_with_both_shapes_and_the_remedy(name: str, student, teacher):
    if stacked(name):
        teacher = (*teacher[:1], 3, *teacher[1:])
    with pytest.raises(ValueError, match="the same") as refusal:
        build(name)(torch.zeros(student), torch.zeros(teacher), torch.zeros(student[:1], dtype=torch.long))
    if not CASES[name].splits_teachers:
        assert f"student logits {student} and teacher logits {teacher}" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", [name for name in LABELLED if name in ON_LOGITS])
@pytest.mark.parametrize(("student", "target"), UNLABELLED)
def test_labels_that_do_not_fit_are_refused_with_both_shapes_and_the_remedy(name: str, student, target):
    teacher = (*student[:1], 3, *student[1:]) if stacked(name) else student
    are_logits = len(student) == 2 and student[0] >= 1 and student[1] >= 2
    with pytest.raises(ValueError, match="do not fit" if are_logits or name not in TAUGHT else "the same") as refusal:
        build(name)(torch.zeros(student), torch.zeros(teacher), torch.zeros(target, dtype=torch.long))
    if are_logits or name not in TAUGHT:
        assert f"logits {teacher} and target {target}" in str(refusal.value)
        assert "class indices (N,)" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@at_temperatures
@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, math.nan, math.inf, -math.inf])
def test_an_invalid_temperature_is_refused_at_construction_and_when_scheduled(name: str, temperature: float):
    remedy = f"temperature={temperature} must be a finite number above 0"
    with pytest.raises(ValueError, match=remedy):
        build(name, temperature=temperature)
    loss = build(name)
    loss.temperature = temperature
    with pytest.raises(ValueError, match=remedy):
        loss(*example(name))


WRONG = [(name, *shapes) for name, case in CASES.items() for shapes in case.wrong]


@pytest.mark.parametrize(("name", "student", "teacher"), WRONG)
def test_unequal_features_are_refused_with_both_shapes_and_the_remedy(name: str, student, teacher):
    seen, shown = (each(torch.zeros, shapes) for shapes in (student, teacher))
    with pytest.raises(ValueError, match=r"\S") as refusal:
        build(name)(seen, shown, CASES[name].target())
    message = str(refusal.value)
    assert ": " in message  # the remedy
    assert any(str(part) in message for shape in (*listed(student), *listed(teacher)) for part in (shape, *shape))
    assert "\n" not in message


@pytest.mark.parametrize("name", COMPARING)
def test_losses_that_compare_samples_refuse_a_batch_of_one(name: str):
    loss = build(name)
    if [module for module in loss.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]:
        return  # whose statistics are also over positions; torch itself refuses where there are none
    one = [each(lambda value: value[:1], side) for side in example(name)]
    with pytest.raises(ValueError, match=r"sample|batch"):
        loss(*one)


# ---- every finite input: loss x dtype x temperature x magnitude

RELATIONS: dict[str, Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]] = {
    "unrelated": lambda s, t, close: (s, t),
    "close": lambda s, t, close: (t + close * s, t),
    "equal": lambda s, t, close: (t, t),
    "opposite": lambda s, t, close: (-t, t),
    "far from zero": lambda s, t, close: (s * close + 1, t * close + 1),
    "certain": lambda s, t, close: (sharp(s, 0), sharp(t, 1)),
    "silent student": lambda s, t, close: (s * 0, t),
    "silent teacher": lambda s, t, close: (s, t * 0),
    "equal samples": lambda s, t, close: (s[:1].expand_as(s), t[:1].expand_as(t)),
}


def sharp(like: Tensor, place: int) -> Tensor:
    """One in each row, and zero elsewhere."""
    flat = torch.zeros(len(like), like[0].numel())
    flat[torch.arange(len(like)), (torch.arange(len(like)) + place) % flat.shape[1]] = 1
    return flat.view_as(like)


@st.composite
def inputs(draw: st.DrawFn) -> tuple[str, float, Values, Values, Any]:
    """The loss, the temperature, and student, teacher and target."""
    name = draw(st.sampled_from(sorted(CASES)))
    case = CASES[name]
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    temperature = 10 ** draw(st.floats(-2, math.log10(case.hottest)))
    largest = case.limits.get(dtype, torch.finfo(dtype).max if dtype == torch.float16 and name in ON_LOGITS else 1e4)
    magnitude = min(10 ** draw(st.floats(-3, math.log10(largest))), largest)
    relation, close = RELATIONS[draw(st.sampled_from(sorted(RELATIONS)))], 10 ** draw(st.floats(-4, 0))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    shapes, target = [case.student, case.teacher], case.target()
    if name in ON_LOGITS:
        rows = draw(st.sampled_from([2, 5, 33] if name in COMPARING else [1, 2, 5, 33]))
        classes = draw(st.sampled_from([2, 3, 10, 100]))
        shapes = [(rows, *shape[1:-1], classes) for shape in shapes]
        target = torch.randint(classes, (rows,), generator=generator)
    student, teacher = (each(lambda shape: 2 * torch.rand(shape, generator=generator) - 1, side) for side in shapes)
    if stacked(name):
        pairs = [relation(student, shown, close) for shown in teacher.unbind(1)]
        student, teacher = pairs[0][0], torch.stack([shown for _, shown in pairs], dim=1)
    else:
        equal = shapes[0] == shapes[1]
        seen, shown = listed(student), listed(teacher)
        if equal:
            pairs = [relation(s, t, close) for s, t in zip(seen, shown, strict=True)]
            seen, shown = [s for s, _ in pairs], [t for _, t in pairs]
        else:  # each by itself, for they cannot be added
            seen, shown = [relation(s, s, close)[0] for s in seen], [relation(t, t, close)[1] for t in shown]
        student, teacher = like(student, seen), like(teacher, shown)
    student, teacher = (
        each(lambda x: (magnitude * x).clamp(-largest, largest).to(dtype), side) for side in (student, teacher)
    )
    return name, temperature, student, teacher, target


def value_and_gradient(
    name: str, loss: nn.Module, student: Values, teacher: Values, target: Any
) -> tuple[Tensor, list[Tensor]]:
    student = each(lambda seen: seen.detach().requires_grad_(), student)
    value = first_call(name, loss, student, teacher, target)
    with torch.autocast("cpu", enabled=False):  # as Lightning's backward
        return value.detach(), [*torch.autograd.grad(value, listed(student))]


def check(given: tuple[str, float, Values, Values, Any]) -> None:
    name, temperature, student, teacher, target = given
    loss = build(name)
    if name in SOFTENED:
        loss.temperature = temperature
    value, gradients = value_and_gradient(name, loss, student, teacher, target)
    assert value.isfinite()
    doubled = [each(Tensor.double, side) for side in (student, teacher)]
    true_value, true_gradients = value_and_gradient(name, deepcopy(loss).double(), *doubled, target)
    # float16 cannot hold the gradient of points that almost coincide: there it may be infinite, and nothing else
    fits = max(gradient.abs().max().item() for gradient in true_gradients) <= torch.finfo(gradients[0].dtype).max
    assert all(gradient.isfinite().all() if fits else not gradient.isnan().any() for gradient in gradients)
    # absolute below 1, relative above; of the gradient the whole, which has the precision of the student's type
    tolerance = CASES[name].tolerance
    assert (value - true_value).abs() <= tolerance * true_value.abs().clamp(min=1)
    if fits and not CASES[name].kinked:
        precise = flattened(true_gradients)
        difference = (flattened(gradients).double() - precise).norm()
        assert difference <= max(tolerance, torch.finfo(gradients[0].dtype).eps) * precise.norm().clamp(min=1)
    for dtype in (torch.bfloat16, torch.float16) if name not in CONNECTED else ():
        with torch.autocast("cpu", dtype=dtype):
            again, gradients_again = value_and_gradient(name, loss, student, teacher, target)
        assert torch.equal(again, value)
        assert torch.equal(flattened(gradients_again), flattened(gradients))


@given(inputs())
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_loss_and_gradient_are_finite_and_close_to_float64(case):
    check(case)


@pytest.mark.slow
@given(inputs())
@settings(max_examples=10_000, deadline=None, derandomize=True, database=None)
def test_loss_and_gradient_are_finite_and_close_to_float64_in_10_000_cases(case):
    check(case)
