from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning import losses
from kd_lightning.losses import AttentiveEnsembleLoss, attentive_ensemble_loss
from kd_lightning.networks import ConstantPrior, Ensemble
from tests.losses.case import Case
from tests.losses.plain import ROWS, N, Plain


def build(temperature: float = 4.0) -> AttentiveEnsembleLoss:
    torch.manual_seed(0)
    return AttentiveEnsembleLoss(teachers=3, features=5, width=4, temperature=temperature)


CASES = {
    "AttentiveEnsembleLoss": Case(
        build,
        student=[(6, 10), (6, 5)],
        teacher=(6, 3, 10),
        minimum="elsewhere",
        constants=True,
        wrong=[([(6, 10), (6, 5)], (6, 3, 9)), ([(6, 10), (6, 5)], (6, 10)), ([(6, 10), (6, 5)], (5, 3, 10))],
    )
}


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    exponentials = [math.exp(v / temperature) for v in row]
    return [e / sum(exponentials) for e in exponentials]


def example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    student, features = torch.randn(4, 10, generator=generator), torch.randn(4, 5, generator=generator)
    return (
        student.double(),
        features.double(),
        2 * torch.randn(4, 3, 10, generator=generator).double(),
        torch.tensor([1, 7, 0, 3]),
    )


def test_value_is_that_of_the_naive_formula():
    student, features, teacher, target = example()
    loss = build(temperature=2.0).double()
    total = 0.0
    for n in range(4):
        scores = []
        for k in range(3):
            pair = features[n].tolist() + loss.embeddings[k].tolist()
            hidden = [
                math.tanh(sum(w * v for w, v in zip(row, pair, strict=True)) + b)
                for row, b in zip(loss.hidden.weight.tolist(), loss.hidden.bias.tolist(), strict=True)
            ]
            scores.append(sum(w * h for w, h in zip(loss.score.weight[0].tolist(), hidden, strict=True)))
        a = softmax(scores)
        q, plain = (
            [sum(a[k] * softmax(teacher[n, k].tolist(), t)[c] for k in range(3)) for c in range(10)] for t in (2.0, 1.0)
        )
        p = softmax(student[n].tolist(), 2.0)
        total += 4 * sum(x * math.log(x / y) for x, y in zip(q, p, strict=True)) - math.log(plain[int(target[n])])
    assert loss([student, features], teacher, target).item() == pytest.approx(total / 4, rel=1e-9)


def test_two_teachers_are_enough_and_none_is_refused():
    student, features, teacher, target = example()
    loss = AttentiveEnsembleLoss(teachers=2, features=5).double()
    expected = attentive_ensemble_loss(student, teacher[:, :2], loss.confidence(features), target)
    torch.testing.assert_close(loss([student, features], teacher[:, :2], target), expected)
    with pytest.raises(ValueError, match=r"teacher logits \(4, 0, 10\) must be \(N, C\) and \(N, K, C\)"):
        attentive_ensemble_loss(student, teacher[:, :0], torch.ones(4, 0), target)


def test_student_and_attention_have_separate_gradients():
    student, features, teacher, target = example()
    loss = build(temperature=2.0).double()
    student.requires_grad_()
    loss([student, features.requires_grad_()], teacher, target).backward()
    mixture = sum(
        a.unsqueeze(1) * (teacher[:, k] / 2).softmax(1) for k, a in enumerate(loss.confidence(features).unbind(1))
    )
    torch.testing.assert_close(student.grad, 2 * ((student / 2).softmax(1) - mixture).detach() / 4)
    assert features.grad.any()  # by way of the attention
    right = -sum(
        a.unsqueeze(1) * teacher[:, k].softmax(1) for k, a in enumerate(loss.confidence(features).unbind(1))
    )[torch.arange(4), target].abs().log().mean()  # fmt: skip
    expected = torch.autograd.grad(right, loss.embeddings)[0]
    torch.testing.assert_close(loss.embeddings.grad, expected)


def test_the_attention_learns_the_right_teacher_for_each_sample():
    """The first teacher classifies the positive samples, the second the negative ones; the third is a rule."""
    generator = torch.Generator().manual_seed(2)
    loss = build()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    rule = ConstantPrior([1.0] * 10)
    for _ in range(300):
        target = torch.randint(10, (64,), generator=generator)
        positive = torch.rand(64, generator=generator) < 0.5
        features = torch.where(positive, 1.0, -1.0).unsqueeze(1) + 0.1 * torch.randn(64, 5, generator=generator)
        right = 6 * torch.nn.functional.one_hot(target, 10).float()
        wrong = 6 * torch.nn.functional.one_hot((target + 1) % 10, 10).float()
        knows = positive.unsqueeze(1)
        teacher = torch.stack(
            (torch.where(knows, right, wrong), torch.where(knows, wrong, right), rule(features)), dim=1
        )
        optimizer.zero_grad()
        loss([torch.zeros(64, 10), features], teacher, target).backward()
        optimizer.step()
    a = loss.confidence(features)
    assert a[positive, 0].min() > 0.9
    assert a[~positive, 1].min() > 0.9


def test_rules_can_be_members_beside_teachers():
    both = Ensemble([ConstantPrior([1, 3]), torch.nn.Linear(4, 2)])
    logits = both(torch.zeros(3, 4))
    torch.testing.assert_close(logits[:, 0].softmax(1), torch.tensor([0.25, 0.75]).expand(3, 2))
    for wrong in ([1.0], [1.0, 0.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match="must be at least two finite numbers above 0"):
            ConstantPrior(wrong)


def test_invalid_inputs_are_refused():
    with pytest.raises(ValueError, match="teachers=1 must be at least 2"):
        AttentiveEnsembleLoss(teachers=1, features=5)
    student, features, teacher, target = (v.float() if v.is_floating_point() else v for v in example())
    with pytest.raises(ValueError, match="student features have 4 channels and the loss was built for 5"):
        build()([student, features[:, :4]], teacher, target)
    with pytest.raises(
        ValueError, match=r"the term lists 1 layers of the student, not 2: set student: \[logits, <layer>\]"
    ):
        build()([student], teacher, target)
    assert attentive_ensemble_loss(student, teacher, torch.full((4, 3), 1 / 3), target).shape == ()


def plain_attentive_ensemble(m, s, t, y):
    (z, features), k = s, t.shape[1]
    pairs = torch.cat((features.unsqueeze(1).expand(-1, k, -1), m.embeddings.expand(len(z), k, -1)), 2)
    a = m.score(torch.tanh(m.hidden(pairs))).softmax(1)
    q = (a.detach() * (t / 4).softmax(2)).sum(1)
    kl = F.kl_div(F.log_softmax(z / 4, 1), q, reduction="batchmean") * 16
    return kl + F.nll_loss((a * t.softmax(2)).sum(1).log(), y)


PLAIN = {
    "AttentiveEnsembleLoss": Plain(
        plain_attentive_ensemble,
        [(N, 10), ROWS[0]],
        (N, 3, 10),
        build=lambda: losses.AttentiveEnsembleLoss(3, features=128),
    ),
}
