"""Losses on generated inputs: of the teacher's logits alone, and between two networks' logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from kd_lightning.losses import ActivationLoss, InformationEntropyLoss, LogitL1Loss, OneHotLoss
from tests.losses import naive
from tests.losses.case import Case
from tests.losses.plain import ROWS, Plain

CASES = {
    "OneHotLoss": Case(alone=True, kinked=True),
    "ActivationLoss": Case(alone=True, kinked=True),
    "InformationEntropyLoss": Case(alone=True),
    "LogitL1Loss": Case(
        kinked=True, minimum="elsewhere", wrong=[((4, 10), (4, 5)), ((4, 1), (4, 10)), ((0, 3), (0, 3))]
    ),  # least there, where its gradient is any of a kink's
}


@pytest.fixture
def logits():
    return 3 * torch.randn(7, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_one_hot_is_the_cross_entropy_against_the_predicted_class(logits):
    rows = logits.tolist()
    expected = -sum(naive.log_softmax(row)[row.index(max(row))] for row in rows) / 7
    assert OneHotLoss()(logits).item() == pytest.approx(expected, rel=1e-12)


def test_activation_is_minus_the_mean_magnitude(logits):
    expected = -sum(abs(value) for row in logits.tolist() for value in row) / 70
    assert ActivationLoss()(logits.view(7, 5, 2)).item() == pytest.approx(expected, rel=1e-12)


def test_entropy_is_that_of_the_batchs_mean_and_not_of_its_samples(logits):
    soft = [naive.softmax(row) for row in logits.tolist()]
    mean = [sum(column) / 7 for column in zip(*soft, strict=True)]
    expected = sum(p * math.log10(p) for p in mean)
    assert InformationEntropyLoss()(logits).item() == pytest.approx(expected, rel=1e-12)
    sure = 50 * torch.eye(10, dtype=torch.float64)  # each of one class, all classes alike
    assert InformationEntropyLoss()(sure).item() == pytest.approx(-1)
    assert InformationEntropyLoss()(sure[:1].repeat(10, 1)).item() == pytest.approx(0, abs=1e-9)


def test_l1_is_the_mean_of_the_differences(logits):
    other = logits.roll(1, dims=0)
    pairs = zip(logits.flatten().tolist(), other.flatten().tolist(), strict=True)
    assert LogitL1Loss()(logits, other).item() == pytest.approx(sum(abs(s - t) for s, t in pairs) / 70, rel=1e-12)
    assert LogitL1Loss()(logits, logits).item() == 0


@pytest.mark.parametrize("shape", [(10,), (0, 10), (4, 1), (4, 10, 2)])
def test_inputs_other_than_logits_are_refused(shape):
    for loss in (OneHotLoss(), InformationEntropyLoss()):
        with pytest.raises(ValueError, match=r"must be \(N, C\) with C >= 2.*: address logits"):
            loss(torch.zeros(shape))


def test_inputs_other_than_features_are_refused():
    for shape in ((10,), (0, 10)):
        with pytest.raises(ValueError, match=r"must be .* and not empty: address a layer of features"):
            ActivationLoss()(torch.zeros(shape))


def plain_one_hot(m, s, t, y):
    return F.cross_entropy(s, s.argmax(1))


def plain_information_entropy(m, s, t, y):
    p = s.softmax(1).mean(0)
    return (p * p.log10()).sum()


def plain_logit_l1(m, s, t, y):
    return F.l1_loss(s, t)


def plain_activation(m, s, t, y):
    return -s.abs().mean()


PLAIN = {
    "OneHotLoss": Plain(plain_one_hot),
    "InformationEntropyLoss": Plain(plain_information_entropy),
    "LogitL1Loss": Plain(plain_logit_l1),
    "ActivationLoss": Plain(plain_activation, ROWS[0], ROWS[0]),
}
