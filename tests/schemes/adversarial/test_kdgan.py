from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from kd_lightning import Term
from kd_lightning.losses import KDLoss, LogitMSELoss, TaskLoss
from kd_lightning.schemes import KDGAN
from tests import toys
from tests.schemes.online.test_mutual import conv, kl, without_dropout
from tests.schemes.two_player_steps import follows, sgd


def networks() -> list[nn.Module]:
    return [toys.network(8, seed=1), conv(seed=2), toys.network(12, seed=3)]


def terms() -> tuple[dict[str, Term], dict[str, Term]]:
    task = Term(TaskLoss(), weight=0.5, teacher=None)
    return {"task": task, "kd": Term(LogitMSELoss(), weight=0.2)}, {"task": task, "kd": Term(KDLoss(3.0), weight=0.1)}


def learner(**changes) -> KDGAN:
    return KDGAN(*networks(), *terms(), **changes)


def settle(ours: KDGAN) -> None:
    ours.draw = lambda logits: logits.softmax(dim=1)  # type: ignore


CASES = {"kdgan": lambda: toys.Case(learner(), settle=settle)}


def test_three_steps_are_those_of_a_plain_loop(tmp_path):
    built = without_dropout(networks())
    changes = {"optimizer": sgd, "discriminator_optimizer": sgd}
    ours = KDGAN(*copy.deepcopy(built), *terms(), balance=0.3, gumbel_temperature=0.5, **changes)
    student, teacher, scores = built
    noise = torch.Generator().manual_seed(9)
    drawn = [-torch.empty(16, 10).exponential_(generator=noise).log() for _ in range(6)]
    theirs, mine = iter(drawn), iter(drawn)
    ours.draw = lambda z: ((z.log_softmax(1) + next(mine)) / 0.5).softmax(1)  # type: ignore

    def moves(x, y):
        z = student(x), teacher(x)
        labels = [((logits.softmax(1).log() + next(theirs)) / 0.5).softmax(1) for logits in z]
        h = scores(x)
        p = [(h * label.detach()).sum(1).sigmoid() for label in labels]
        true = h[torch.arange(16), y].sigmoid()
        told = -(true.log().mean() + 0.3 * (1 - p[0]).log().mean() + 0.7 * (1 - p[1]).log().mean())

        def move():
            h = scores(x)
            misled = [(1 - (h * label).sum(1).sigmoid()).log().mean() for label in labels]
            return {
                "task": functional.cross_entropy(z[0], y),
                "kd": (z[0] - z[1].detach()).square().mean(),
                "teacher_task": functional.cross_entropy(z[1], y),
                "teacher_kd": kl(z[1], z[0], 3.0),
                "adversarial_student": misled[0],
                "adversarial_teacher": misled[1],
            }

        return told, move

    weights = {"task": 0.5, "kd": 0.2, "teacher_task": 0.5, "teacher_kd": 0.1}
    weights |= {"adversarial_student": 0.3, "adversarial_teacher": 0.7}
    follows(ours, {"student": student, "teacher": teacher}, {"discriminator": scores}, moves, weights, tmp_path)


def test_drawn_labels_are_gumbels():
    """Their largest entry is each class as often as the classifier says, and they carry a gradient."""
    ours = learner(gumbel_temperature=0.5)
    torch.manual_seed(0)
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5] + [-2.0] * 6).requires_grad_()
    drawn = ours.draw(logits.expand(20_000, 10))
    shares = drawn.argmax(dim=1).bincount(minlength=10) / 20_000
    torch.testing.assert_close(shares, logits.softmax(dim=0).detach(), atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.sum(dim=1), torch.ones(20_000))
    assert torch.autograd.grad(drawn[:, 0].sum(), logits)[0].any()


def test_student_and_teacher_are_evaluated_and_wrong_arguments_are_refused(tmp_path):
    (measured,) = toys.trainer(tmp_path).validate(learner(), toys.data(val_size=50), verbose=False)
    assert {"val/acc", "val/acc/student", "val/acc/teacher"} <= set(measured)
    with pytest.raises(ValueError, match=r"balance=1.5 must lie in \[0, 1\]"):
        learner(balance=1.5)
    with pytest.raises(ValueError, match=r"gumbel_temperature=0.0 must be"):
        learner(gumbel_temperature=0.0)
    network = toys.network()
    with pytest.raises(ValueError, match="share parameters"):
        KDGAN(network, toys.network(), network, *terms())
    ours = KDGAN(*networks(), {}, {})
    seen = ours.network_outputs(torch.rand(4, 3, 28, 28))
    with pytest.raises(ValueError, match="this batch has no labels: give class indices"):
        ours.discriminator_loss(seen)
