from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from kd_lightning import Term
from kd_lightning.losses import KDLoss, TaskLoss
from kd_lightning.networks import ConvDiscriminator, Generator
from kd_lightning.schemes import SyntheticInputsDistiller
from tests import toys
from tests.schemes.adversarial.test_adversarial_distiller import bce
from tests.schemes.online.test_mutual import kl, without_dropout
from tests.schemes.two_player_steps import follows, sgd


def networks(classes: int = 10) -> list[nn.Module]:
    pair = [toys.network(8, seed=1), toys.network(16, seed=2)]
    torch.manual_seed(3)
    return [
        *pair,
        Generator((3, 28, 28), latent=6, width=4, classes=classes),
        ConvDiscriminator(3, width=4, classes=classes),
    ]


def learner(classes: int = 10) -> SyntheticInputsDistiller:
    return SyntheticInputsDistiller(*networks(classes), toys.terms())


def settle(ours: SyntheticInputsDistiller) -> None:
    def same_for_all(n: int, device: torch.device) -> tuple[torch.Tensor, ...]:
        noise = torch.linspace(-1, 1, ours.generator.latent).expand(n, -1)
        return (noise, torch.full((n,), 3)) if ours.generator.classes else (noise,)

    ours.generator.draw = same_for_all  # type: ignore


CASES = {
    "synthetic": lambda: toys.Case(learner(), settle=settle),
    "synthetic_without_classes": lambda: toys.Case(learner(classes=0), settle=settle),
}


@pytest.mark.parametrize("classes", [0, 10])
def test_three_steps_are_those_of_a_plain_loop(classes, tmp_path):
    built = without_dropout(networks(classes))
    changes = {"optimizer": sgd, "discriminator_optimizer": sgd}
    ours = SyntheticInputsDistiller(*copy.deepcopy(built), toys.terms(), **changes)
    student, teacher, generator, d = built
    teacher.eval().requires_grad_(False)
    numbers = torch.Generator().manual_seed(9)
    drawn = [(torch.randn(16, 6, generator=numbers), torch.randint(10, (16,), generator=numbers)) for _ in range(3)]
    if not classes:
        drawn = [draw[:1] for draw in drawn]
    mine, theirs = iter(drawn), iter(drawn)
    ours.generator.draw = lambda n, device: next(mine)  # type: ignore

    def moves(x, y):
        noise, *wanted = next(theirs)
        made = generator(noise, *wanted)
        z = student(torch.cat((x, made.detach())))
        t = teacher(torch.cat((x, made.detach())))
        real, fake = d(x), d(made.detach())
        told = bce(real[:, 0], 1.0) + bce(fake[:, 0], 0.0)
        if classes:
            told = told + functional.cross_entropy(real[:, 1:], y) + functional.cross_entropy(fake[:, 1:], wanted[0])

        def move():
            verdict = d(made)
            misled = bce(verdict[:, 0], 1.0)
            if classes:
                misled = misled + functional.cross_entropy(verdict[:, 1:], wanted[0])
            return {"task": functional.cross_entropy(z[:16], y), "kd": kl(z, t, 3.0), "generator": misled}

        return told, move

    weights = {"task": 0.5, "kd": 0.5, "generator": 1.0}
    follows(ours, {"student": student, "generator": generator}, {"discriminator": d}, moves, weights, tmp_path)


def test_the_student_does_not_move_the_generator():
    ours = learner()
    losses = ours.compute_losses((torch.rand(8, 3, 28, 28), torch.arange(8)))
    weight = ours.generator.project.weight
    assert torch.autograd.grad(losses["kd"], weight, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(losses["generator"], weight)[0].any()


def test_a_generator_draws_each_class_and_wrong_arguments_are_refused():
    generator = Generator((1, 8, 12), latent=5, width=4, classes=3)
    noise, target = generator.draw(500, torch.device("cpu"))
    assert target.unique().tolist() == [0, 1, 2]
    images = generator(noise, target)
    assert images.shape == (500, 1, 8, 12)
    assert 0 <= images.min() < images.max() <= 1
    with pytest.raises(ValueError, match="draws one of 3 classes"):
        generator(noise)
    with pytest.raises(
        ValueError, match=r"image_shape=\[3, 28, 30\] needs a height and a width that are multiples of 4"
    ):
        Generator((3, 28, 30))
    with pytest.raises(ValueError, match="latent=0 must be at least 1"):
        Generator((3, 28, 28), latent=0)
    with pytest.raises(ValueError, match="no term has a teacher"):
        SyntheticInputsDistiller(*networks(), {"task": Term(TaskLoss(), teacher=None)})
    network = toys.network()
    with pytest.raises(ValueError, match="share parameters"):
        SyntheticInputsDistiller(network, network, *networks()[2:], {"kd": Term(KDLoss())})
    small = SyntheticInputsDistiller(*networks()[:2], Generator((3, 8, 8)), ConvDiscriminator(3), toys.terms())
    with pytest.raises(
        ValueError,
        match=r"\(4, 3, 8, 8\) and real ones \(4, 3, 28, 28\) differ: set the generator's image_shape to \[3, 28, 28",
    ):
        small.compute_losses((torch.rand(4, 3, 28, 28), torch.arange(4)))
    ours = learner()
    seen = ours.network_outputs(torch.rand(4, 3, 28, 28))
    with pytest.raises(ValueError, match="has classes and the batch has no class indices"):
        ours.discriminator_loss(seen)
