from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional

from kd_lightning import Term
from kd_lightning.losses import KDLoss, TaskLoss
from kd_lightning.networks import ConvNet
from kd_lightning.schemes import PseudoExamplesDistiller, PseudoExampleSynthesis
from kd_lightning.schemes.data_free.synthesizer import SynthesisRound
from tests import toys
from tests.schemes.data_free.test_inversion import SMALL, networks
from tests.schemes.online.test_mutual import kl
from tests.schemes.two_player_steps import sgd


def terms() -> dict[str, Term]:
    return {"task": Term(TaskLoss(), teacher=None, weight=0.7), "kd": Term(KDLoss(temperature=2.0), weight=0.4)}


def learner(**changes: Any) -> PseudoExamplesDistiller:
    made_with = {"image_shape": (3, 28, 28), "synthesis_steps": changes.pop("synthesis_steps", 2)}
    return PseudoExamplesDistiller(*networks(), terms(), PseudoExampleSynthesis(**made_with), **SMALL | changes)


def settle(ours: PseudoExamplesDistiller) -> None:
    """Every process mixes, and moves, images of its own."""
    start = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(4))
    ours.synthesizer.init_images = lambda given: start.expand(given.num_images, -1, -1, -1).clone()  # type: ignore


CASES = {"pseudo_examples": lambda: toys.Case(learner(), settle=settle)}


def test_rounds_and_steps_follow_the_paper(tmp_path):
    """Written out: mixtures, moved up the loss by Adam; the same once more two batches later; and the student."""
    ours = learner(optimizer=sgd)
    student, teacher = copy.deepcopy(ours.student), copy.deepcopy(ours.teacher)
    torch.manual_seed(5)
    batches = [(torch.rand(6, 3, 28, 28), torch.randint(10, (6,)), torch.arange(6)) for _ in range(4)]
    chosen: list[torch.Tensor] = []
    states: list[dict[str, torch.Tensor]] = []
    rows, begin = ours.choose_rows, ours.synthesizer.init_images
    ours.choose_rows = lambda batch: (chosen.append(rows(batch)), chosen[-1])[1]  # type: ignore
    ours.synthesizer.init_images = lambda given: (states.append(begin(given)), states[-1].clone())[1]  # type: ignore
    toys.trainer(tmp_path, max_epochs=1).fit(ours, toys.Loader(batches))

    def moved(x: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()
        up = torch.optim.Adam([x], lr=0.1, maximize=True)
        student.eval()
        for _ in range(2):
            p, q = teacher(x).softmax(1), student(x).softmax(1)
            (x.grad,) = torch.autograd.grad((p * (p / q).log()).sum(1).mean(), [x])
            up.step()
            x.data.clamp_(0, 1)
        student.train()
        return x.detach()

    optimizer = sgd(student.parameters())
    examples = torch.zeros(0, 3, 28, 28)
    for number, (x, y, _) in enumerate(batches):
        if number == 0:
            examples = moved(states[0])
        if number == 2:
            assert torch.equal(states[1], ours.bank.images[:8])
            torch.testing.assert_close(examples, ours.bank.images[:8], rtol=1e-3, atol=1e-4)
            examples = torch.cat((examples, moved(examples)))
        made = examples[chosen[number]]
        told = kl(student(made), teacher(made), 2.0)
        loss = 0.4 * told + 0.7 * functional.cross_entropy(student(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(examples, ours.bank.images[:16], rtol=1e-3, atol=1e-4)
    for key, value in ours.student.state_dict().items():
        torch.testing.assert_close(value, student.state_dict()[key], rtol=1e-3, atol=1e-5)


def test_the_first_are_mixtures_of_two_labelled_images():
    ours = learner()
    labelled = torch.stack((torch.zeros(3, 28, 28), torch.ones(3, 28, 28)))
    torch.manual_seed(0)
    given = SynthesisRound(0, 4000, ours.student, ours.teacher, ours.bank, labelled)
    drawn = ours.synthesizer.init_images(given).flatten(1)
    assert torch.equal(drawn[:, 0], drawn[:, -1])  # one proportion an image
    between = (drawn[:, 0] > 0) & (drawn[:, 0] < 1)
    assert between.float().mean() == pytest.approx(0.5, abs=0.03)
    assert drawn[between][:, 0].mean() == pytest.approx(0.5, abs=0.03)


def test_the_student_finds_the_new_ones_harder(tmp_path):
    ours = learner(memory_size=32, synthesis_batch_size=16, synthesis_interval=40, synthesis_steps=20)
    toys.trainer(tmp_path, max_steps=41).fit(ours, toys.data(steps_per_epoch=41))
    ours.student.eval()
    old, new = (ours.bank.images[part] for part in (slice(0, 16), slice(16, 32)))
    apart = [kl(ours.student(x), ours.teacher(x), 1.0).item() for x in (old, new)]
    assert apart[1] > apart[0]


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="terms must have one of the labels"):
        PseudoExamplesDistiller(ConvNet(4), ConvNet(6), {"kd": Term(KDLoss())}, PseudoExampleSynthesis((3, 28, 28)))
    with pytest.raises(ValueError, match="terms must have one of the labels"):
        PseudoExamplesDistiller(
            ConvNet(4), ConvNet(6), {"task": Term(TaskLoss(), teacher=None)}, PseudoExampleSynthesis((3, 28, 28))
        )
    with pytest.raises(ValueError, match="synthesis_interval=0 must be at least 1"):
        learner(synthesis_interval=0)
    batch = torch.rand(4, 1, 28, 28), torch.arange(4), torch.arange(4)
    with pytest.raises(ValueError, match=r"image_shape=\[3, 28, 28\] and the batch's inputs are \(4, 1, 28, 28\)"):
        learner().on_train_batch_start(batch, 0)
