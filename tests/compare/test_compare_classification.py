"""Against naive loops in Python's own floats, which are float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kd_lightning import Classifier
from kd_lightning.compare.measure import classification
from kd_lightning.compare.measure.predictions import predict, prepared_rows
from kd_lightning.data import MNIST, DigitScenes, ResidentDataModule
from kd_lightning.networks import Captioner, LabelEncoder


def probabilities(row: list[float]) -> list[float]:
    largest = max(row)
    exponentials = [math.exp(value - largest) for value in row]
    return [value / sum(exponentials) for value in exponentials]


@pytest.fixture(params=[0.1, 3.0, 30.0])
def case(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, and classes that the student often gets right."""
    draw = torch.Generator().manual_seed(0)
    student = request.param * torch.randn(500, 10, generator=draw)
    teacher = student + request.param * torch.randn(500, 10, generator=draw)
    guesses = torch.randint(10, (500,), generator=draw)
    target = torch.where(torch.rand(500, generator=draw) < 0.7, student.argmax(1), guesses)
    return student, teacher, target


def test_accuracy_and_negative_log_likelihood(case: tuple[Tensor, Tensor, Tensor]) -> None:
    student, _, target = case
    rows = list(zip(student.tolist(), target.tolist(), strict=True))
    hits = sum(max(row) == row[label] for row, label in rows) / len(rows)
    nll = -sum(math.log(probabilities(row)[label]) for row, label in rows) / len(rows)
    assert classification.accuracy(student, target) == pytest.approx(hits, rel=1e-12)
    assert classification.negative_log_likelihood(student, target) == pytest.approx(nll, rel=1e-6)


def test_calibration_error(case: tuple[Tensor, Tensor, Tensor]) -> None:
    student, _, target = case
    total = 0.0
    for i in range(15):
        confidences: list[float] = []
        hits = 0
        for row, label in zip(student.tolist(), target.tolist(), strict=True):
            confidence = max(probabilities(row))
            if i / 15 < confidence <= (i + 1) / 15:
                confidences.append(confidence)
                hits += row[label] == max(row)
        if confidences:
            n = len(confidences)
            total += n / len(target) * abs(hits / n - sum(confidences) / n)
    assert classification.calibration_error(student, target) == pytest.approx(total, abs=1e-9)


def test_calibration_of_certain_predictions() -> None:
    logits = torch.tensor([[100.0, 0.0]]).repeat(10, 1)
    assert classification.calibration_error(logits, torch.zeros(10, dtype=torch.long)) == 0
    assert classification.calibration_error(logits, torch.tensor([0] * 6 + [1] * 4)) == pytest.approx(0.4)


def test_agreement_and_divergence(case: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, _ = case
    rows = list(zip(student.tolist(), teacher.tolist(), strict=True))
    agree = sum(s.index(max(s)) == t.index(max(t)) for s, t in rows) / len(rows)
    kl = 0.0
    for s, t in rows:
        kl += sum(q * math.log(q / p) for p, q in zip(probabilities(s), probabilities(t), strict=True)) / len(rows)
    assert classification.agreement(student, teacher) == pytest.approx(agree, rel=1e-12)
    assert classification.divergence(student, teacher) == pytest.approx(kl, rel=1e-6)


def test_divergence_is_from_the_teacher() -> None:
    # the teacher is sure of what the student doubts: KL(teacher || student) = ln 2; the other way round it is far more
    assert classification.divergence(torch.zeros(1, 2), torch.tensor([[100.0, 0.0]])) == pytest.approx(math.log(2))


def test_tokens_are_measured_one_by_one():
    torch.manual_seed(0)
    learner = Classifier(Captioner(LabelEncoder(), width=6), input_key="told")
    data = ResidentDataModule(MNIST(), views=DigitScenes("captioning"), train_size=64, val_size=0)
    (logits,), target = prepared_rows(predict(learner, data.test_dataloader()), "classes", -100, limit=600)
    batches = list(data.test_dataloader())[:1]
    assert logits.shape == (600, 10)
    assert torch.equal(target, torch.cat([batch["target"] for batch in batches]).flatten()[:600])
    assert torch.equal(logits, learner.student(**batches[0]["told"]).flatten(0, 1)[:600])


def test_the_divergence_from_a_teacher_that_masks_a_class_is_finite() -> None:
    assert classification.divergence(torch.zeros(1, 2), torch.tensor([[0.0, -math.inf]])) == pytest.approx(math.log(2))
