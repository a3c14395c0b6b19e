from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import Term
from kd_lightning.losses import KDLoss, TaskLoss
from kd_lightning.networks import Generator
from kd_lightning.schemes import GeneratorInversion, InversionDistiller
from kd_lightning.schemes.data_free.generator_inversion import init_generator
from kd_lightning.schemes.data_free.windows import random_crops, random_shifts
from tests import toys
from tests.schemes.data_free import test_inversion
from tests.schemes.data_free.test_data_free import numbers

FEATURES = ["conv.1", "conv.5"]


def learner(**changes: Any) -> InversionDistiller:
    given = {"features": FEATURES, "synthesis_steps": 2, "width": 5} | changes
    terms = {"kd": Term(KDLoss(temperature=3.0)), "task": Term(TaskLoss(), teacher=None, weight=0.1)}
    torch.manual_seed(3)
    generator = given.pop("generator", None) or Generator((3, 28, 28), latent=6, width=4)
    networks = test_inversion.networks()
    synthesizer = GeneratorInversion({"class": Term(TaskLoss(), student=None, weight=0.5)}, generator, **given)
    return InversionDistiller(*networks, terms, synthesizer, **test_inversion.SMALL)


CASES = {
    "inversion_contrastive": lambda: toys.Case(learner(), data=numbers, settle=test_inversion.settle),
}


def features(teacher: nn.Module, x: Tensor) -> Tensor:
    one = teacher.conv[1](teacher.conv[0](x))
    other = teacher.conv[5](teacher.conv[4](teacher.conv[3](teacher.conv[2](one))))
    return torch.cat((one.mean((2, 3)), other.mean((2, 3))), dim=1)


@pytest.mark.parametrize("remembered", [0, 8])
def test_a_round_follows_the_papers_loss_step_by_step(remembered: int):
    ours = learner(lr=0.01, negatives=100)
    ours.bank.features.normal_(generator=torch.Generator().manual_seed(5))
    teacher, head = copy.deepcopy(ours.teacher), copy.deepcopy(ours.synthesizer.head).requires_grad_(True)
    generator = copy.deepcopy(ours.synthesizer.generator).train().requires_grad_(True)
    torch.manual_seed(7)
    found = test_inversion.a_round(ours, 4, number=remembered // 8)
    torch.manual_seed(7)
    wanted = torch.randint(10, (4,))
    init_generator(generator)
    noise = torch.randn(4, 6).requires_grad_()
    optimizers = [
        torch.optim.Adam([noise, *generator.parameters()], lr=0.01, betas=(0.5, 0.999)),
        torch.optim.Adam(head.parameters(), lr=0.01),
    ]
    history = []
    for _ in range(2):
        drawn = generator(noise)
        whole = random_shifts(drawn, 4)
        loss = 0.5 * functional.cross_entropy(teacher(whole), wanted)
        of_whole, of_part = features(teacher, whole), features(teacher, random_crops(drawn))
        both = torch.stack((of_part, of_whole), dim=1)
        if remembered:
            old = ours.bank.features[:8][torch.randperm(8)]
            of_part, of_whole = torch.cat((of_part, old[:, 0])), torch.cat((of_whole, old[:, 1]))
        one, other = head(of_part), head(of_whole).detach()
        one, other = one / one.norm(dim=1, keepdim=True), other / other.norm(dim=1, keepdim=True)
        p = (one @ other.T / 0.1).log_softmax(1).diagonal()
        loss = loss - 0.8 * (p[:4].mean() + (p[4:].mean() if remembered else 0))
        history.append((loss.item(), drawn.detach(), both.detach()))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    _, images, kept = min(history, key=lambda step: step[0])
    assert torch.equal(found["targets"], wanted)
    torch.testing.assert_close(found["images"], images, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["features"], kept, rtol=1e-3, atol=1e-4)
    for ours_, theirs in zip(ours.synthesizer.head.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(ours_, theirs.detach(), rtol=1e-3, atol=1e-4)


def test_generated_images_are_remembered_with_their_features(tmp_path):
    ours = learner()
    toys.trainer(tmp_path, max_epochs=2).fit(ours, numbers())
    assert ours.bank.features.flatten(1).any(dim=1).all()
    assert not ours.synthesizer.head[0].weight.requires_grad
    # what is remembered of a whole image is what the teacher gives for it, moved a little
    whole = features(ours.teacher, ours.bank.images)
    assert functional.cosine_similarity(ours.bank.features[:, 1], whole).min() > 0.5


def test_crops_are_of_a_quarter_to_all_and_moves_of_whole_pixels():
    image = torch.zeros(1, 1, 28, 28)
    image[..., 10:18, 10:18] = 1.0
    many = image.expand(500, -1, -1, -1)
    torch.manual_seed(0)
    areas = random_crops(many).sum((1, 2, 3)) / 64  # what is enlarged covers more
    assert areas.max() < 4.05
    assert areas.max() > 3.5
    assert (areas[areas > 0] < 1.3).any()
    moved = random_shifts(many, 4)
    torch.testing.assert_close(moved.sum((1, 2, 3)), torch.full((500,), 64.0))
    corners = {divmod(m[0].flatten().argmax().item(), 28) for m in moved.round()}
    assert corners <= {(y, x) for y in range(6, 15) for x in range(6, 15)}
    assert len(corners) > 75


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="features is empty: name layers of the teacher"):
        learner(features=[])
    with pytest.raises(ValueError, match="the generator has 10 classes, but targets choose the class"):
        learner(generator=Generator((3, 28, 28), classes=10))
    with pytest.raises(ValueError, match="negatives=-1 must be at least 0"):
        learner(negatives=-1)
    with pytest.raises(ValueError, match=r"temperature=0 and lr=0.001 finite numbers above 0"):
        learner(temperature=0)
