from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from kd_lightning import Term
from kd_lightning.losses import KDLoss, TaskLoss
from kd_lightning.schemes import DatasetDistillation
from tests import toys
from tests.schemes.online.test_mutual import batches
from tests.schemes.two_player_steps import sgd


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3 * 49, 8), nn.Tanh(), nn.Linear(8, 10))


def learner(**changes: Any) -> DatasetDistillation:
    built = network()
    torch.manual_seed(2)
    given = {"image_shape": (3, 28, 28), "steps": 2, "lr": 0.5, "xavier": False}
    return DatasetDistillation(built, {"task": Term(TaskLoss(), teacher=None)}, **given | changes)


CASES = {
    "dataset_distillation": lambda: toys.Case(learner()),
    "dataset_distillation_random": lambda: toys.Case(
        learner(random_start=True), settle=lambda ours: setattr(ours, "random_start", False)
    ),
}


def test_three_batches_are_those_of_a_plain_loop(tmp_path):
    ours = learner(optimizer=sgd, images_per_class=2)
    images, raw = ours.images.detach().clone().requires_grad_(), ours.raw_lr.detach().clone().requires_grad_()
    w1, b1, w2, b2 = (p.detach().clone() for p in network().parameters())
    classes = torch.tensor([c for c in range(10) for _ in range(2)])

    def forward(x, w1, b1, w2, b2):
        return torch.tanh(functional.avg_pool2d(x, 4).flatten(1) @ w1.T + b1) @ w2.T + b2

    toys.trainer(tmp_path, max_epochs=1).fit(ours, batches())
    optimizer = sgd([images, raw])
    for x, y in batches():
        weights = [w.requires_grad_() for w in (w1, b1, w2, b2)]
        for _ in range(2):
            inner = functional.cross_entropy(forward(images, *weights), classes)
            gradients = torch.autograd.grad(inner, weights, create_graph=True)
            weights = [w - torch.log1p(raw.exp()) * g for w, g in zip(weights, gradients, strict=True)]
        optimizer.zero_grad()
        functional.cross_entropy(forward(x, *weights), y).backward()
        optimizer.step()
    torch.testing.assert_close(ours.images.detach(), images.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.raw_lr.detach(), raw.detach(), rtol=1e-4, atol=1e-6)
    assert not torch.equal(ours.images.detach(), learner(images_per_class=2).images.detach())


def test_the_student_is_the_result_of_plain_descent_on_the_images(tmp_path):
    ours = learner()
    toys.trainer(tmp_path, max_epochs=2).fit(ours, toys.data(val_size=50))
    plain = network()
    optimizer = torch.optim.SGD(plain.parameters(), lr=ours.lr.item())
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(plain(ours.images.detach()), torch.arange(10)).backward()
        optimizer.step()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(ours.student.state_dict()[key], value, rtol=1e-4, atol=1e-6)


def test_a_random_start_is_another_each_time_and_a_fixed_one_is_kept():
    fixed, random = learner(), learner(random_start=True)
    assert toys.same(fixed.initial_weights(), copy.deepcopy(dict(network().named_parameters())))
    first, second = random.initial_weights(), random.initial_weights()
    assert not torch.equal(first["2.weight"], second["2.weight"])
    assert first.keys() == fixed.initial_weights().keys()
    for start in (learner(xavier=True).initial_weights(), learner(xavier=True, random_start=True).initial_weights()):
        assert start["2.weight"].std().item() == pytest.approx((2 / (147 + 8)) ** 0.5, rel=0.1)
        assert not start["2.bias"].any()


def test_arguments_that_do_not_fit_are_refused():
    for name in ("images_per_class", "steps"):
        with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
            learner(**{name: 0})
    with pytest.raises(ValueError, match="lr=0 must be a finite number above 0"):
        learner(lr=0)
    with pytest.raises(ValueError, match="there is no teacher here, and only the logits are recorded"):
        DatasetDistillation(network(), {"kd": Term(KDLoss())}, image_shape=(3, 28, 28))
    for wrong, what in ((toys.network(), "dropout at 5"), (nn.BatchNorm1d(2), "buffers")):
        with pytest.raises(ValueError, match=f"it has {what}: use a network without"):
            DatasetDistillation(wrong, {"task": Term(TaskLoss(), teacher=None)}, image_shape=(3, 28, 28))
