from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from kd_lightning import Term
from kd_lightning.losses import KDLoss, LeastSquaresAdversarialLoss, TaskLoss
from kd_lightning.networks import Discriminator
from kd_lightning.schemes import OnlineAdversarialDistiller
from tests import toys
from tests.schemes.online.test_mutual import kl, without_dropout
from tests.schemes.two_player_steps import follows, sgd

WIDTHS = [8, 12, 16]


def networks() -> list[nn.Module]:
    return [toys.network(width, seed=width) for width in WIDTHS]


def ring(widths: list[int]) -> list[Term]:
    torch.manual_seed(3)
    following = [*widths[1:], widths[0]]
    return [
        Term(LeastSquaresAdversarialLoss(Discriminator(wide, 12), nn.Linear(own, wide)), 0.3, student="4", teacher="4")
        for own, wide in zip(widths, following, strict=True)
    ]


def common() -> dict[str, Term]:
    kd = Term(KDLoss(temperature=3.0), weight=0.7)
    return {"task": Term(TaskLoss(), weight=0.5, teacher=None), "kd": kd}


def learner() -> OnlineAdversarialDistiller:
    student, *peers = networks()
    return OnlineAdversarialDistiller(student, peers, common(), ring(WIDTHS))


CASES = {"online_adversarial": lambda: toys.Case(learner())}


@pytest.mark.parametrize("count", [2, 3])
def test_three_steps_are_those_of_a_plain_loop(count, tmp_path):
    built = without_dropout(networks())[:count]
    adversaries = ring(WIDTHS[:count])
    copies = [copy.deepcopy(term.loss) for term in adversaries]
    student, *peers = copy.deepcopy(built)
    ours = OnlineAdversarialDistiller(student, peers, common(), adversaries, optimizer=sgd, discriminator_optimizer=sgd)

    def moves(x, y):
        hidden = [network[:5](x) for network in built]
        z = [network[5:](h) for network, h in zip(built, hidden, strict=True)]
        after = [(k + 1) % count for k in range(count)]
        told = sum(
            (1 - copies[k].discriminator(hidden[after[k]].detach()).sigmoid()).square().mean()
            + copies[k].discriminator(copies[k].connector(hidden[k]).detach()).sigmoid().square().mean()
            for k in range(count)
        )

        def networks_move():
            misled = {
                f"adversarial_{k}": (1 - copies[k].discriminator(copies[k].connector(hidden[k])).sigmoid())
                .square()
                .mean()
                for k in range(count)
            }
            return {
                "task": sum(functional.cross_entropy(each, y) for each in z),
                "kd": sum(kl(z[k], z[after[k]], 3.0) for k in range(count)),
            } | misled

        return told, networks_move

    names = ["student", *(f"peers.{i}" for i in range(count - 1))]
    connectors = {f"terms.adversarial_{k}.loss.connector": copies[k].connector for k in range(count)}
    follows(
        ours,
        dict(zip(names, built, strict=True)) | connectors,
        {f"terms.adversarial_{k}.loss.discriminator": copies[k].discriminator for k in range(count)},
        moves,
        {"task": 0.5, "kd": 0.7} | {f"adversarial_{k}": 0.3 for k in range(count)},
        tmp_path,
    )


def test_the_next_network_is_held_fixed():
    ours = learner()
    without_dropout([ours])
    x = torch.rand(16, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    losses = ours.compute_losses((x, torch.arange(16) % 10))
    own, following = (
        torch.autograd.grad(losses["adversarial_0"], next(network.parameters()), retain_graph=True, allow_unused=True)[
            0
        ]
        for network in (ours.student[2:], ours.peers[0][2:])
    )
    assert own.any()
    assert following is None


def test_arguments_that_do_not_fit_are_refused():
    student, *peers = networks()
    with pytest.raises(ValueError, match="peers is empty"):
        OnlineAdversarialDistiller(student, [], common(), ring(WIDTHS)[:1])
    with pytest.raises(ValueError, match="2 adversaries for 3 networks: give one for each"):
        OnlineAdversarialDistiller(student, peers, common(), ring(WIDTHS)[:2])
    with pytest.raises(ValueError, match="adversarial_0 is a KDLoss, which has no discriminator"):
        OnlineAdversarialDistiller(student, peers, common(), [Term(KDLoss())] * 3)
    with pytest.raises(ValueError, match="share parameters"):
        OnlineAdversarialDistiller(student, [student, peers[0]], common(), ring(WIDTHS))
