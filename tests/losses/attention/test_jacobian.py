from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kd_lightning import OfflineDistiller, Term, tap
from kd_lightning.callbacks import TeacherCache
from kd_lightning.core.activations import differentiable
from kd_lightning.losses import GradientAttentionLoss, JacobianLoss, TaskLoss, gradient_attention_loss, jacobian_loss
from tests import toys
from tests.losses.case import Case
from tests.losses.differentiable import ByItsInput

CASES = {
    "JacobianLoss": Case(lambda: ByItsInput(JacobianLoss()), student=(6, 12), teacher=(6, 12), kinked=True),
    "GradientAttentionLoss": Case(
        lambda: ByItsInput(GradientAttentionLoss()), student=(6, 12), teacher=(6, 12), kinked=True
    ),
}
BOTH = ["logits", "input"]


def network(seed: int, width: int = 7) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 4)).double()


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 2, 3, generator=generator, dtype=torch.float64), torch.tensor([0, 3, 1, 2, 2])


def differences(score, x: Tensor) -> Tensor:
    """The gradient of each sample's score, by central differences."""
    found = torch.zeros_like(x).flatten(1)
    for i in range(found.shape[1]):
        step = torch.zeros_like(found)
        step[:, i] = 1e-6
        step = step.view_as(x)
        with torch.no_grad():
            found[:, i] = (score(x + step) - score(x - step)) / 2e-6
    return found


def test_jacobians_are_those_of_central_differences():
    (x, _), student, teacher = inputs(), network(1), network(2)
    k = teacher(x).argmax(dim=1)
    rows = [differences(lambda at, n=n: n(at)[torch.arange(5), k], x) for n in (student, teacher)]
    s, t = ([[v / sum(w * w for w in row) ** 0.5 for v in row] for row in side.tolist()] for side in rows)
    expected = sum((a - b) ** 2 for p, q in zip(s, t, strict=True) for a, b in zip(p, q, strict=True)) / 5
    seen = [[*map(tap(n, differentiable(x), BOTH).get, BOTH)] for n in (student, teacher)]
    assert jacobian_loss(*seen).item() == pytest.approx(expected, rel=1e-6)


def test_gradients_of_the_losses_are_those_of_central_differences():
    (x, y), student, teacher = inputs(), network(1), network(2)
    s, t = (differences(lambda at, n=n: -n(at).softmax(dim=1).log()[torch.arange(5), y], x) for n in (student, teacher))
    seen = [[*map(tap(n, differentiable(x), BOTH).get, BOTH)] for n in (student, teacher)]
    assert gradient_attention_loss(*seen, y).item() == pytest.approx((s - t).square().sum().item() / 10, rel=1e-6)


@pytest.mark.parametrize("loss", [JacobianLoss(), GradientAttentionLoss()])
def test_the_second_derivative_reaches_the_students_weights_and_never_the_teachers(loss):
    (x, y), student = inputs(), network(1)
    learner = OfflineDistiller(student, network(2), {"it": Term(loss, student=BOTH, teacher=BOTH)}).double()
    value = learner.compute_losses((x, y))["it"]
    weight = student[1].weight
    (gradient,) = torch.autograd.grad(value, weight)
    nudged = []
    for sign in (1, -1):
        moved = copy.deepcopy(learner)
        with torch.no_grad():
            moved.student[1].weight[2, 3] += sign * 1e-6
        nudged.append(moved.compute_losses((x, y))["it"].item())
    assert gradient[2, 3].item() == pytest.approx((nudged[0] - nudged[1]) / 2e-6, rel=1e-5)
    assert not any(parameter.requires_grad for parameter in learner.teacher.parameters())


@pytest.mark.parametrize("loss", [JacobianLoss(), GradientAttentionLoss()])
def test_it_trains_with_dropout_batch_norm_and_in_half_precision(loss, tmp_path):
    terms = {"task": Term(TaskLoss(), teacher=None), "it": Term(loss, 0.1, student=BOTH, teacher=BOTH)}
    learner = OfflineDistiller(toys.network(8, seed=1), toys.network(16, seed=2), terms)
    before = toys.weights(learner)
    toys.trainer(tmp_path, precision="bf16-mixed").fit(learner, toys.data())
    after = toys.weights(learner)
    assert all(value.isfinite().all() for value in after.values())
    assert not toys.same(before, after)


def test_values_without_derivatives_are_refused(tmp_path):
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"set the term's student to \[logits, input\]"):
        jacobian_loss([x, x], [x, x])
    leaf = x.clone().requires_grad_()
    for name, sides in (("student", ([leaf * 2], [leaf * 2, leaf])), ("teacher", ([leaf * 2, leaf], [leaf, leaf, x]))):
        with pytest.raises(ValueError, match=rf"needs the {name}'s logits and an input that requires a gradient"):
            jacobian_loss(*sides)
    with pytest.raises(ValueError, match="needs the teacher's logits and an input that requires a gradient"):
        jacobian_loss([leaf * 2, leaf], [x, x])
    with pytest.raises(
        ValueError, match=r"student's logits do not depend on its recorded input: .* remove TeacherCache"
    ):
        jacobian_loss([x, leaf], [leaf * 2, leaf])
    other = torch.zeros(2, 4, requires_grad=True)
    with pytest.raises(ValueError, match=r"student's input \(2, 3\) and the teacher's \(2, 4\) differ in shape"):
        jacobian_loss([leaf * 2, leaf], [other[:, :3], other])
    terms = {"it": Term(JacobianLoss(), student=BOTH, teacher=BOTH)}
    cached = OfflineDistiller(toys.network(8, seed=1), toys.network(16, seed=2), terms)
    with pytest.raises(ValueError, match=r"\[logits, input\]|remove TeacherCache"):
        toys.trainer(tmp_path, TeacherCache()).fit(cached, toys.data(augmentation=None))
