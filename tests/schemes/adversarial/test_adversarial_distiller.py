from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.cli import ReduceLROnPlateau as PlateauOfLightning
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from kd_lightning import OfflineDistiller, Term, UsageError
from kd_lightning.losses import AdversarialLoss, KDLoss, TaskLoss
from kd_lightning.networks import Discriminator
from kd_lightning.schemes import AdversarialDistiller
from kd_lightning.schemes.adversarial.player_clipping import PlayerClipping
from tests import toys
from tests.schemes.online.test_mutual import kl, without_dropout
from tests.schemes.two_player_steps import follows, sgd


def pair() -> list[nn.Module]:
    return [toys.network(8, seed=1), toys.network(16, seed=2)]


def terms(smoothing: float = 0.1) -> dict[str, Term]:
    torch.manual_seed(3)
    logits = AdversarialLoss(Discriminator(10, width=12, classes=10), classes=10, smoothing=smoothing)
    features = AdversarialLoss(Discriminator(16, width=12), nn.Linear(8, 16))
    return {
        "task": Term(TaskLoss(), weight=0.5, teacher=None),
        "kd": Term(KDLoss(temperature=3.0), weight=0.5),
        "logits": Term(logits, weight=0.3),
        "features": Term(features, weight=0.2, student="4", teacher="4"),
    }


def learner(**changes) -> AdversarialDistiller:
    student, teacher = pair()
    return AdversarialDistiller(student, teacher, terms(), **changes)


def scheduled() -> AdversarialDistiller:
    return learner(lr_scheduler=lambda optimizer: StepLR(optimizer, 3, gamma=0.5), lr_interval="step")


CASES = {"adversarial": lambda: toys.Case(learner()), "adversarial_scheduled": lambda: toys.Case(scheduled())}


def bce(logits: torch.Tensor, real: float) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))


def test_three_steps_are_those_of_a_plain_loop(tmp_path):
    student, teacher = without_dropout(pair())
    named = terms()
    d, d_features, connector = (
        copy.deepcopy(module)
        for module in (
            named["logits"].loss.discriminator,
            named["features"].loss.discriminator,
            named["features"].loss.connector,
        )
    )
    ours = AdversarialDistiller(
        copy.deepcopy(student), copy.deepcopy(teacher), named, optimizer=sgd, discriminator_optimizer=sgd
    )
    teacher.eval().requires_grad_(False)

    def moves(x, y):
        hidden = student[:5](x)
        z = student[5:](hidden)
        with torch.no_grad():
            t_hidden = teacher[:5](x)
            t = teacher[5:](t_hidden)
        fake, real = d(z.detach()), d(t)
        f_fake, f_real = d_features(connector(hidden).detach()), d_features(t_hidden)
        smoothed = functional.binary_cross_entropy_with_logits(fake[:, 0], torch.full((16,), 0.1))
        told = bce(real[:, 0], 1.0) + smoothed + sum(functional.cross_entropy(v[:, 1:], y) for v in (fake, real))
        told = told + bce(f_real, 1.0) + bce(f_fake, 0.0)

        def networks():
            verdict = d(z)
            return {
                "task": functional.cross_entropy(z, y),
                "kd": kl(z, t, 3.0),
                "logits": bce(verdict[:, 0], 1.0) + functional.cross_entropy(verdict[:, 1:], y),
                "features": bce(d_features(connector(hidden)), 1.0),
            }

        return told, networks

    follows(
        ours,
        {"student": student, "terms.features.loss.connector": connector},
        {"terms.logits.loss.discriminator": d, "terms.features.loss.discriminator": d_features},
        moves,
        {"task": 0.5, "kd": 0.5, "logits": 0.3, "features": 0.2},
        tmp_path,
    )


def test_the_teacher_stays_and_gradients_are_the_players_own(tmp_path):
    ours = learner()
    before = toys.weights(ours.teacher)
    toys.trainer(tmp_path).fit(ours, toys.data())
    assert toys.same(toys.weights(ours.teacher), before)
    assert not [key for key in ours.state_dict() if key.startswith("teacher")]
    learning, discriminating = (
        {id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in ours.trainer.optimizers
    )
    assert not learning & discriminating
    assert discriminating == {id(p) for network in ours.discriminators() for p in network.parameters()}


@pytest.mark.parametrize(("interval", "moves"), [("step", 12), ("epoch", 3)])
def test_schedulers_move_for_both_players(interval, moves, tmp_path):
    ours = learner(lr_scheduler=lambda optimizer: StepLR(optimizer, 1, gamma=0.9), lr_interval=interval)
    toys.trainer(tmp_path).fit(ours, toys.data())
    for optimizer in ours.trainer.optimizers:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.9**moves)


def test_arguments_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no term has a discriminator: .* or use OfflineDistiller"):
        AdversarialDistiller(*pair(), toys.terms())
    network = toys.network()
    with pytest.raises(ValueError, match="share parameters"):
        AdversarialDistiller(network, network, terms())
    ours = learner()
    ours.trainer = toys.trainer(tmp_path, strategy="ddp", devices=1)
    with pytest.raises(ValueError, match="set strategy='ddp_find_unused_parameters_true'"):
        ours.setup("fit")


def test_a_plateau_follows_its_monitor_or_says_what_is_missing(tmp_path):
    def plateau(optimizer, **changes):
        return PlateauOfLightning(
            optimizer, **{"monitor": "val/acc", "mode": "max", "patience": 0, "threshold": 2.0} | changes
        )

    ours = learner(lr_scheduler=plateau)
    toys.trainer(tmp_path, max_epochs=3).fit(ours, toys.data(val_size=16))
    assert [each.param_groups[0]["lr"] for each in ours.trainer.optimizers] == pytest.approx([1e-5, 1e-5])
    with pytest.raises(UsageError, match=r"monitor='val/acc'\) follows what nothing logs: monitor one of train/"):
        toys.trainer(tmp_path, max_epochs=1).fit(learner(lr_scheduler=plateau), toys.data())
    for changes, message in (
        ({"lr_interval": "step"}, "set lr_interval='epoch'"),
        ({"lr_scheduler": lambda optimizer: ReduceLROnPlateau(optimizer, "max")}, "use lightning.pytorch.cli.Reduce"),
    ):
        for build in (learner, lambda **given: OfflineDistiller(*pair(), toys.terms(), **given)):
            with pytest.raises(UsageError, match=message):
                build(**{"lr_scheduler": plateau} | changes).configure_optimizers()


def test_accumulation_by_a_callback_is_refused_and_clipping_is_given_back(tmp_path):
    with pytest.raises(UsageError, match=r"GradientAccumulationScheduler: AdversarialDistiller updates its players"):
        toys.trainer(tmp_path, GradientAccumulationScheduler({1: 2})).fit(learner(), toys.data())

    class Fails(Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError("in the midst")

    run = toys.trainer(tmp_path, Fails(), gradient_clip_val=0.1, gradient_clip_algorithm="value")
    with pytest.raises(RuntimeError, match="midst"):
        run.fit(learner(), toys.data())
    assert run.gradient_clip_val == 0.1
    assert not [each for each in run.callbacks if isinstance(each, PlayerClipping)]
