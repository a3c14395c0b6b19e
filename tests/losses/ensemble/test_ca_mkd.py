"""Confidence-aware weights against the paper's formulas written out."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning import OfflineDistiller, Term, losses
from kd_lightning.losses import CAMKDFeatureLoss, CAMKDLoss, EnsembleLoss, KDLoss, ca_mkd_feature_loss, ca_mkd_loss
from kd_lightning.networks import ConvNet, Ensemble
from tests.losses import naive
from tests.losses.case import Case
from tests.losses.plain import STUDENT, TWO_TEACHERS, Plain


def two_teachers() -> CAMKDFeatureLoss:
    torch.manual_seed(0)
    return CAMKDFeatureLoss(3, [nn.Linear(4, 10), nn.Linear(4, 10)])


CASES = {
    "CAMKDLoss": Case(teacher=(6, 3, 10)),
    "CAMKDFeatureLoss": Case(
        two_teachers,
        (6, 3, 2, 2),
        [(6, 4, 2, 2), (6, 4, 2, 2)],
        kinked=True,  # by the connectors' ReLU, which equal samples, standardised to zero, stand at
    ),
}

LABELS = torch.tensor([3, 0, 6, 1, 1])


def logits(teachers: int = 3, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Return student logits (5, C) and teacher logits (5, K, C)."""
    generator = torch.Generator().manual_seed(0)
    student, *stacked = scale * torch.randn(1 + teachers, 5, 7, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), torch.stack(stacked, dim=1)


def trust(rows: list[list[float]], label: int) -> list[float]:
    """The paper's equation: (1 - exp(L_k) / sum_j exp(L_j)) / (K - 1)."""
    errors = [-naive.log_softmax(row)[label] for row in rows]
    total = math.fsum(math.exp(error) for error in errors)
    return [(1 - math.exp(error) / total) / (len(rows) - 1) for error in errors]


def mean_of_divergences(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """T^2 / N sum_n sum_k w_nk KL(teacher k || student), as in the authors' code without its 1 / K."""
    total = 0.0
    for s, rows, label in zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True):
        log_q = naive.log_softmax(s, temperature)
        for w, row in zip(trust(rows, label), rows, strict=True):
            log_p = naive.log_softmax(row, temperature)
            total += w * math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))
    return temperature**2 * total / len(student)


def disagreement(teacher: Tensor, temperature: float) -> float:
    """T^2 / N sum_n sum_k w_nk KL(teacher k || their mixture)."""
    total = 0.0
    for rows, label in zip(teacher.tolist(), LABELS.tolist(), strict=True):
        soft = [naive.softmax(row, temperature) for row in rows]
        mixture = [math.fsum(w * p[c] for w, p in zip(trust(rows, label), soft, strict=True)) for c in range(7)]
        for w, p in zip(trust(rows, label), soft, strict=True):
            total += w * math.fsum(p_c * math.log(p_c / m_c) for p_c, m_c in zip(p, mixture, strict=True))
    return temperature**2 * total / len(teacher)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 50.0])
@pytest.mark.parametrize("teachers", [2, 3, 5])
def test_it_is_the_papers_mean_of_divergences_minus_the_teachers_disagreement(teachers, temperature):
    student, teacher = logits(teachers)
    loss = CAMKDLoss(temperature)(student, teacher, LABELS)
    apart = disagreement(teacher, temperature)
    assert apart > 0.01
    assert loss.item() == pytest.approx(mean_of_divergences(student, teacher, temperature) - apart, rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 50.0])
def test_its_gradient_is_that_of_the_papers_cross_entropies(temperature):
    student, teacher = logits()
    shares = torch.tensor([trust(rows, label) for rows, label in zip(teacher.tolist(), LABELS.tolist(), strict=True)])
    log_q = (student / temperature).log_softmax(dim=1).unsqueeze(1)
    errors = -((teacher / temperature).softmax(dim=2) * log_q).sum(dim=2)  # (N, K)
    expected = temperature**2 * (shares.double() * errors).sum(dim=1).mean()
    (wanted,) = torch.autograd.grad(expected, student)
    (gradient,) = torch.autograd.grad(CAMKDLoss(temperature)(student, teacher, LABELS), student)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-9)


def test_a_teacher_that_is_certain_and_wrong_has_no_weight():
    student, teacher = logits()
    right = 50 * nn.functional.one_hot(LABELS, 7).double()
    teacher[:, 0], teacher[:, 1], teacher[:, 2] = right.roll(1, dims=1), teacher[:, 1] + right, teacher[:, 2] + right
    alone = EnsembleLoss(KDLoss(4.0))(student, teacher[:, 1:])
    assert ca_mkd_loss(student, teacher, LABELS).item() == pytest.approx(alone.item(), rel=1e-9)
    assert abs(EnsembleLoss(KDLoss(4.0))(student, teacher) - alone) > 0.1


def test_teachers_with_equal_errors_or_without_a_label_have_equal_weights():
    student, teacher = logits()
    alike = torch.stack([teacher[:, 0], teacher[:, 0] + 1, teacher[:, 0] - 1], dim=1)
    expected = naive.kd(student.detach(), teacher[:, 0], 4.0)
    assert ca_mkd_loss(student, alike, LABELS).item() == pytest.approx(expected, rel=1e-9)
    unlabelled = ca_mkd_loss(student, teacher, torch.full((5,), -100))
    torch.testing.assert_close(unlabelled, EnsembleLoss(KDLoss(4.0))(student, teacher), rtol=1e-12, atol=0)


def test_invalid_inputs_are_refused_in_one_line():
    student, teacher = logits()
    with pytest.raises(ValueError, match=r"\(5, 1, 7\) are of a single teacher"):
        ca_mkd_loss(student, teacher[:, :1], LABELS)
    with pytest.raises(ValueError, match=r"target \(5,\) of torch.float32 do not fit"):
        ca_mkd_loss(student, teacher, LABELS.float())
    with pytest.raises(ValueError, match="needs the label 'target'"):
        Term(CAMKDLoss())({"logits": student}, {"logits": teacher}, {})


# ---- features


def maps(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classifiers(*widths: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(width, 7).double() for width in widths]


@pytest.mark.parametrize("teachers", [2, 3])
def test_features_are_weighted_by_the_teachers_cross_entropies_of_the_students(teachers):
    _, said = logits(teachers)
    shapes = [(5, 3, 2, 2), (5, 4, 1, 2), (5, 2, 3, 1)][:teachers]
    shown, teacher = ([maps(*shape, seed=seed + i) for i, shape in enumerate(shapes)] for seed in (1, 4))
    total = 0.0
    for n, label in enumerate(LABELS.tolist()):
        for w, s, t in zip(trust(said[n].tolist(), label), shown, teacher, strict=True):
            squares = [(a - b) ** 2 for a, b in zip(s[n].flatten().tolist(), t[n].flatten().tolist(), strict=True)]
            total += w * math.fsum(squares) / len(squares)
    assert ca_mkd_feature_loss(shown, teacher, said, LABELS).item() == pytest.approx(total / 5, rel=1e-12)


def test_gradients_of_features_also_flow_through_the_weights():
    _, said = logits(2)
    shown = [maps(5, 3, 2, 2, seed=1).requires_grad_(), maps(5, 4, 1, 2, seed=2).requires_grad_()]
    teacher = [maps(5, 3, 2, 2, seed=3), maps(5, 4, 1, 2, seed=4)]
    said.requires_grad_()
    torch.autograd.gradcheck(lambda a, b, said: ca_mkd_feature_loss([a, b], teacher, said, LABELS), (*shown, said))
    loss = ca_mkd_feature_loss(shown, teacher, said, LABELS)
    assert torch.autograd.grad(loss, said)[0].any()


@pytest.mark.parametrize("pool_size", [1, 2, 4])
def test_connectors_classifiers_and_weights_are_the_papers(pool_size: int):
    loss = CAMKDFeatureLoss(3, classifiers(4 * pool_size**2, 6 * pool_size**2), pool_size).double()
    student = maps(5, 3, 4, 4, seed=1).requires_grad_()
    teacher = [maps(5, 4, 4, 4, seed=2).relu(), maps(5, 6, 4, 4, seed=3).relu()]
    shown, said = [], []
    for connector, classifier in zip(loss.connectors, loss.classifiers, strict=True):
        convolution, norm, _ = connector
        x = torch.einsum("nchw,dc->ndhw", student, convolution.weight[:, :, 0, 0])
        mean, variance = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), keepdim=True, unbiased=False)
        x = (x - mean) / (variance + norm.eps).sqrt()
        x = (x * norm.weight[:, None, None] + norm.bias[:, None, None]).relu()
        side = 4 // pool_size
        pooled = x.view(5, -1, pool_size, side, pool_size, side).mean(dim=(3, 5)).flatten(1)
        shown.append(x)
        said.append(pooled @ classifier.weight.T + classifier.bias)
    shares = torch.softmax(torch.stack([-x.log_softmax(dim=1)[torch.arange(5), LABELS] for x in said], dim=1), dim=1)
    errors = torch.stack([(s - t).square().mean(dim=(1, 2, 3)) for s, t in zip(shown, teacher, strict=True)], dim=1)
    expected = ((1 - shares) * errors).sum(dim=1).mean()
    found = loss(student, teacher, LABELS)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    learned = [student, *(p for p in loss.parameters() if p.requires_grad)]
    wanted = torch.autograd.grad(expected, learned, retain_graph=True)
    for gradient, reference in zip(torch.autograd.grad(found, learned), wanted, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-12)


def test_a_larger_map_is_pooled_and_a_smaller_one_interpolated():
    loss = CAMKDFeatureLoss(3, classifiers(4, 6)).double()
    student = maps(5, 3, 4, 4, seed=1)
    teacher = [maps(5, 4, 2, 2, seed=2), maps(5, 6, 8, 8, seed=3)]
    again = copy.deepcopy(loss)
    pooled = student.view(5, 3, 2, 2, 2, 2).mean(dim=(3, 5))
    larger = nn.functional.interpolate(student, scale_factor=2, mode="bilinear")
    seen: list[Tensor] = []
    for connector in again.connectors:
        connector.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    torch.testing.assert_close(again(student, teacher, LABELS), loss(student, teacher, LABELS))
    torch.testing.assert_close(seen[0], pooled)
    torch.testing.assert_close(seen[1], larger)


@pytest.mark.parametrize(("own", "theirs"), [((4, 6), (2, 3)), ((2, 3), (4, 6)), ((3, 2), (3, 4)), ((3, 4), (3, 2))])
def test_maps_of_unlike_sides_are_resized(own, theirs):
    loss = CAMKDFeatureLoss(3, classifiers(4, 6)).double()
    student = maps(5, 3, *own, seed=1)
    teacher = [maps(5, 4, *theirs, seed=2), maps(5, 6, *theirs, seed=3)]
    if own[0] >= theirs[0]:
        resized = nn.functional.adaptive_avg_pool2d(student, theirs)
    else:
        resized = nn.functional.interpolate(student, theirs, mode="bilinear")
    torch.testing.assert_close(loss(student, teacher, LABELS), loss(resized, teacher, LABELS))


def test_in_a_run_the_connectors_learn_and_the_teachers_and_their_classifiers_do_not():
    torch.manual_seed(0)
    teachers = [ConvNet(width=6), ConvNet(width=8)]
    loss = CAMKDFeatureLoss(5, [teacher.classifier for teacher in teachers], pool_size=2)
    terms = {"features": Term(loss, student="conv.5", teacher=["members.0.conv.5", "members.1.conv.5"])}
    learner = OfflineDistiller(ConvNet(width=5), Ensemble([*teachers]), terms)
    assert set(teachers[0].state_dict()) == set(ConvNet(width=6).state_dict())  # it keeps its own classifier
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1)
    images, labels = torch.rand(4, 3, 28, 28), torch.arange(4)
    for _ in range(2):
        optimizer.zero_grad()
        learner.compute_losses((images, labels))["features"].backward()
        optimizer.step()
    learned = {name for name, p in learner.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.partition(".")[0] for name in learned} == {"student", "terms"}
    assert not [name for name in learned if "classifier" in name]
    assert len([name for name in learned if "connectors" in name]) == 6
    assert not [name for name in learner.state_dict() if "classifiers" in name]
    for k, teacher in enumerate(teachers):
        assert torch.equal(loss.classifiers[k].weight, teacher.classifier.weight)
    learner.load_state_dict(learner.state_dict())


def test_features_that_do_not_fit_are_refused_in_one_line():
    loss = CAMKDFeatureLoss(3, classifiers(4, 6)).double()
    student, teacher = maps(5, 3, 2, 2, seed=1), [maps(5, 4, 2, 2, seed=2), maps(5, 6, 2, 2, seed=3)]
    with pytest.raises(ValueError, match="1 classifiers, but confidence is relative"):
        CAMKDFeatureLoss(3, classifiers(4))
    with pytest.raises(ValueError, match="cannot classify flattened maps with pool_size=3"):
        CAMKDFeatureLoss(3, classifiers(4, 6), pool_size=3)
    with pytest.raises(ValueError, match="cannot classify flattened maps with pool_size=4"):
        CAMKDFeatureLoss(3, classifiers(24, 24), pool_size=4)  # 24 is no multiple of 16
    with pytest.raises(ValueError, match=r"ReLU\(\) cannot classify flattened maps"):
        CAMKDFeatureLoss(3, [nn.ReLU(), nn.ReLU()])
    with pytest.raises(ValueError, match="cannot classify flattened maps with pool_size=0"):
        CAMKDFeatureLoss(3, classifiers(4, 6), pool_size=0)
    wrong = [(student, teacher[:1]), (student, teacher[0]), (student[:, :2], teacher), (student.flatten(2), teacher)]
    for seen, shown in wrong:
        with pytest.raises(
            ValueError, match=r"must be a map \(N, 3, H, W\) and one of each of the 2 teachers"
        ) as refusal:
            loss(seen, shown, LABELS)
        assert f"student features {tuple(seen.shape)} and teacher features [(5, 4, 2, 2)" in str(refusal.value)
        assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match=r"\[\(5, 4, 2, 2\), \(5, 6, 2, 2\)\] and teacher features \[\(5, 6, 2, 2\)"):
        loss(student, teacher[::-1], LABELS)
    with pytest.raises(ValueError, match="target"):
        loss(student, teacher, LABELS[:3])


def plain_confidences(logits, y):
    errors = F.cross_entropy(logits.transpose(1, 2), y.unsqueeze(1).expand(-1, logits.shape[1]), reduction="none")
    return (1 - errors.softmax(1)) / (logits.shape[1] - 1)


def plain_ca_mkd(m, s, t, y):
    p = torch.einsum("nk,nkc->nc", plain_confidences(t, y), (t / 4).softmax(2))
    return F.kl_div(F.log_softmax(s / 4, 1), p, reduction="batchmean") * 16


def plain_ca_mkd_feature(m, s, t, y):
    s = [connector(s) for connector in m.connectors]
    logits = torch.stack([c(x.mean((2, 3))) for c, x in zip(m.classifiers, s, strict=True)], 1)
    errors = torch.stack([F.mse_loss(a, b, reduction="none").mean((1, 2, 3)) for a, b in zip(s, t, strict=True)], 1)
    return (plain_confidences(logits, y) * errors).sum(1).mean()


PLAIN = {
    "CAMKDLoss": Plain(plain_ca_mkd, teachers=3),
    "CAMKDFeatureLoss": Plain(
        plain_ca_mkd_feature,
        STUDENT,
        TWO_TEACHERS,
        build=lambda: losses.CAMKDFeatureLoss(32, [nn.Linear(128, 10), nn.Linear(64, 10)]),
    ),
}
