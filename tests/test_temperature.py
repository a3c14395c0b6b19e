"""The measurements of docs/temperature.md against loops; its page, and the compare file behind it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from benchmarks.origin.report import place
from benchmarks.temperature import GROUPS, PAGE, PLAN, SECTIONS, TEMPERATURES, entropy, gradients, noise, soft
from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.losses import task_loss

IMAGES, CLASSES = 6, 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, CLASSES))


def images_and_logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(IMAGES, 5, generator=generator), 4 * torch.randn(IMAGES, CLASSES, generator=generator)


@pytest.mark.parametrize("temperature", [0.5, 3.0, 100.0])
def test_entropy_is_the_mean_over_images_of_minus_p_log_p(temperature):
    _, logits = images_and_logits()
    total = 0.0
    for row in logits.tolist():
        weights = [math.exp(value / temperature) for value in row]
        total -= sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights)
    assert entropy(logits, temperature) == pytest.approx(total / IMAGES, rel=1e-6)
    assert entropy(torch.tensor([[2e4, 0.0, 0.0]]), 1.0) == 0, "0 log 0 is 0"


@pytest.mark.parametrize(
    ("loss", "targets"),
    [(task_loss, torch.tensor([0, 1, 2, 3, 0, 1])), (soft(8.0), images_and_logits()[1])],
    ids=["labels", "soft targets"],
)
def test_noise_is_that_of_each_images_own_gradient(loss, targets):
    student, (images, _) = network(), images_and_logits()
    each: list[list[float]] = []
    for i in range(IMAGES):
        student.zero_grad()
        loss(student(images[i : i + 1]), targets[i : i + 1]).backward()
        each.append([value for parameter in student.parameters() for value in parameter.grad.flatten().tolist()])
    mean = [sum(column) / IMAGES for column in zip(*each, strict=True)]
    trace = sum((value - m) ** 2 for row in each for value, m in zip(row, mean, strict=True)) / IMAGES
    measured = gradients(student, images, targets, loss)
    assert torch.allclose(measured, torch.tensor(each, dtype=torch.float64), atol=1e-6)
    assert noise(measured) == pytest.approx(trace / sum(m**2 for m in mean), rel=1e-4)


def test_noise_of_mini_batches_is_the_images_noise_by_their_number():
    generator = torch.Generator().manual_seed(0)
    each = torch.randn(50, 3, generator=generator, dtype=torch.float64) + 1
    drawn = torch.randint(50, (40_000, 8), generator=generator)
    assert noise(each[drawn].mean(dim=1)) == pytest.approx(noise(each) / 8, rel=0.03)


def test_the_compare_file_differs_in_the_temperature_alone():
    plan = read_plan(PLAN)
    for group in [group for group in plan.groups if group.name in GROUPS]:
        labels, *taught = group.variants
        assert labels.teacher is None
        assert [variant.name for variant in taught] == [f"t-{temperature:g}" for temperature in TEMPERATURES]
        found = []
        for variant in taught:
            terms = variant.config["model"]["init_args"]["terms"]
            assert [term["weight"] for term in terms.values()] == [0.0, 1.0]
            found.append(terms["kd"]["loss"]["init_args"].pop("temperature"))
            assert variant.config == taught[0].config, variant.name
            assert variant.teacher is not None
            assert variant.teacher.path == "teachers/teacher"
        assert found == list(TEMPERATURES)


def test_the_page_has_a_place_for_every_figure():
    text = PAGE.read_text()
    for name in SECTIONS:
        assert "| --- |" in place(text, name, ["| --- |"])
