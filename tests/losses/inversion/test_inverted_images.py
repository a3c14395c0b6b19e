"""Losses that fit images to a teacher: BatchNorm statistics, total variation, impressions, activation records."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from kd_lightning.losses import ActivationRecordLoss, BatchNormStatisticsLoss, ImpressionLoss, TotalVariationLoss
from tests.losses import naive
from tests.losses.case import Case
from tests.losses.plain import TEACHER, N, Plain


def distribution() -> torch.Tensor:
    return torch.randn(6, 10, generator=torch.Generator().manual_seed(7), dtype=torch.float64).softmax(dim=1)


CASES = {
    "TotalVariationLoss": Case(student=(6, 3, 5, 4), teacher=(6, 3, 5, 4), alone=True, kinked=True),
    "ActivationRecordLoss": Case(
        student=[(6, 3, 2, 2), (6, 4)],
        teacher=[(6, 3, 2, 2), (6, 4)],
        target=lambda: torch.randn(6, 16, generator=torch.Generator().manual_seed(7), dtype=torch.float64),
        kinked=True,
    ),
    "BatchNormStatisticsLoss": Case(
        student=[(6, 3, 5, 4), (3,), (3,)], teacher=[(6, 3, 5, 4), (3,), (3,)], alone=True, kinked=True, samples=False
    ),
}


def test_statistics_are_over_batch_and_positions_and_layers_are_summed():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 2, 3, 3, generator=generator, dtype=torch.float64)
    mean, variance = torch.tensor([[0.5, -1.0], [2.0, 1.0]], dtype=torch.float64)
    distances = []
    values = [features[:, c].flatten().tolist() for c in range(2)]
    means = [sum(v) / 36 for v in values]
    spreads = [sum((x - m) ** 2 for x in v) / 36 for v, m in zip(values, means, strict=True)]
    for found, known in ((means, mean.tolist()), (spreads, variance.tolist())):
        distances.append(math.sqrt(sum((f - k) ** 2 for f, k in zip(found, known, strict=True))))
    loss = BatchNormStatisticsLoss()
    assert loss([features, mean, variance]).item() == pytest.approx(sum(distances), rel=1e-12)
    assert loss([features, mean, variance] * 2).item() == pytest.approx(2 * sum(distances), rel=1e-12)
    norm = torch.nn.BatchNorm2d(2, momentum=None).double()
    norm(features)
    exact = loss([features, norm.running_mean, norm.running_var * 35 / 36])  # torch's own is unbiased
    assert exact.item() == pytest.approx(0, abs=1e-12)


def test_statistics_of_vectors_are_those_of_the_batch():
    features = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    value = BatchNormStatisticsLoss()([features, torch.tensor([2.0, 5.0]), torch.tensor([1.0, 8.0])])
    assert value.item() == pytest.approx(3 + 4)


def test_variation_is_the_norm_of_the_differences_to_four_neighbours():
    images = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = 0.0
    for image in images.tolist():
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            squares = [
                (channel[y + dy][x + dx] - channel[y][x]) ** 2
                for channel in image
                for y in range(3)
                for x in range(4)
                if 0 <= y + dy < 3 and 0 <= x + dx < 4
            ]
            total += math.sqrt(sum(squares))
    assert TotalVariationLoss()(images).item() == pytest.approx(total / 2, rel=1e-12)


def test_an_impression_is_the_cross_entropy_of_softened_logits():
    logits = 3 * torch.randn(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = distribution()
    pairs = zip(logits.tolist(), target.tolist(), strict=True)
    expected = -sum(
        y * q for row, wanted in pairs for y, q in zip(wanted, naive.log_softmax([z / 20 for z in row]), strict=True)
    )
    assert ImpressionLoss()(logits, None, target).item() == pytest.approx(expected / 6, rel=1e-12)


def test_a_record_is_compared_where_it_is_positive_and_layers_are_divided_by_their_size():
    generator = torch.Generator().manual_seed(0)
    maps, logits = torch.randn(5, 2, 2, generator=generator), torch.randn(5, 3, generator=generator)
    record = torch.randn(5, 7, generator=generator)
    total = 0.0
    for layer, wanted, size in ((maps.flatten(1), record[:, :4], 4), (logits, record[:, 4:], 3)):
        pairs = zip(layer.flatten().tolist(), wanted.flatten().tolist(), strict=True)
        total += sum((max(f, 0) - max(r, 0)) ** 2 for f, r in pairs) / (5 * size) / size
    loss = ActivationRecordLoss()
    assert loss([maps, logits], None, record).item() == pytest.approx(total, rel=1e-5)
    assert loss(logits, None, record[:, 4:]).item() == pytest.approx(loss([logits], None, record[:, 4:]).item())
    with pytest.raises(ValueError, match="do not fit: record the layers that the term addresses"):
        loss([maps, logits], None, record[:, :5])


def test_invalid_inputs_are_refused():
    loss = BatchNormStatisticsLoss()
    with pytest.raises(ValueError, match="address the layer before a BatchNorm, its running_mean"):
        loss([torch.zeros(2, 3), torch.zeros(3)])
    with pytest.raises(ValueError, match=r"features \(2, 3\), mean \(4,\) and variance \(3,\) must be"):
        loss([torch.zeros(2, 3), torch.zeros(4), torch.zeros(3)])
    with pytest.raises(ValueError, match=r"with N >= 2 samples"):
        loss([torch.zeros(1, 3), torch.zeros(3), torch.zeros(3)])
    with pytest.raises(ValueError, match=r"images \(2, 3\) must be \(N, C, H, W\).*: address the input"):
        TotalVariationLoss()(torch.zeros(2, 3))
    for shape in ((1, 3, 1, 5), (1, 3, 5, 1), (0, 3, 5, 5)):
        with pytest.raises(ValueError, match=r"of at least 2 x 2: address the input"):
            TotalVariationLoss()(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"do not fit: .* or floating-point probabilities"):
        ImpressionLoss()(torch.zeros(2, 3), None, torch.zeros(2, 2))


def plain_activation_record(m, s, t, y):
    sizes = [x[0].numel() for x in s]
    pairs = zip(s, y.split(sizes, 1), sizes, strict=True)
    return sum((x.flatten(1).relu() - r.relu()).square().mean() / size for x, r, size in pairs)


def plain_total_variation(m, s, t, y):
    x = s
    moved = x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]
    moved += x[..., 1:, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, 1:]
    return sum(d.flatten(1).norm(dim=1).mean() for d in moved)


def plain_batch_norm_statistics(m, s, t, y):
    features, mean, variance = s
    found, spread = features.mean((0, 2, 3)), features.var((0, 2, 3), correction=0)
    return (found - mean).norm() + (spread - variance).norm()


PLAIN = {
    "ImpressionLoss": Plain(lambda m, s, t, y: F.cross_entropy(s / 20, y)),
    "ActivationRecordLoss": Plain(
        plain_activation_record, [TEACHER, (N, 10)], [TEACHER, (N, 10)], target=lambda: torch.ones(N, 128 * 36 + 10)
    ),
    "TotalVariationLoss": Plain(plain_total_variation, (N, 3, 28, 28), (N, 3, 28, 28)),
    "BatchNormStatisticsLoss": Plain(plain_batch_norm_statistics, [TEACHER, (128,), (128,)], [TEACHER, (128,), (128,)]),
}
