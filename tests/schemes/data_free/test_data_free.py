from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import Term
from kd_lightning.data import MNIST, NoiseDataModule
from kd_lightning.losses import (
    ActivationLoss,
    InformationEntropyLoss,
    KDLoss,
    LogitL1Loss,
    OneHotLoss,
    TaskLoss,
)
from kd_lightning.networks import Generator
from kd_lightning.schemes import DataFreeDistiller
from tests import toys
from tests.schemes.adversarial.test_synthetic import settle
from tests.schemes.online.test_mutual import kl, without_dropout
from tests.schemes.two_player_steps import sgd


def networks(classes: int = 0) -> list[nn.Module]:
    pair = [toys.network(8, seed=1), toys.network(16, seed=2)]
    torch.manual_seed(3)
    return [*pair, Generator((3, 28, 28), latent=6, width=4, classes=classes)]


def of_the_teacher() -> dict[str, Term]:
    return {
        "one_hot": Term(OneHotLoss(), student=None),
        "activation": Term(ActivationLoss(), student=None, teacher="4", weight=0.1),
        "entropy": Term(InformationEntropyLoss(), student=None, weight=5.0),
    }


def of_both() -> dict[str, Term]:
    return {"differ": Term(LogitL1Loss(), weight=-1.0), "named": Term(TaskLoss(), teacher=None)}


def learner(generator_terms: dict[str, Term], classes: int = 0, **changes: Any) -> DataFreeDistiller:
    return DataFreeDistiller(*networks(classes), {"kd": Term(KDLoss(temperature=3.0))}, generator_terms, **changes)


def numbers(augmentation: Any = None, train_size: int = 64, **changes: Any) -> NoiseDataModule:
    given = {"num_channels": 3, "batch_size": 16, "steps_per_epoch": train_size // 16}
    return NoiseDataModule(MNIST(), **given | changes)


CASES = {
    "data_free": lambda: toys.Case(learner(of_the_teacher()), data=numbers, settle=settle),
    "data_free_adversarial": lambda: toys.Case(learner(of_both(), classes=10), data=numbers, settle=settle),
}


def l1(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).abs().mean()


def dafl(student: nn.Module, teacher: nn.Module, images: Tensor) -> Tensor:
    """The generator's three terms, from the paper's text."""
    features = teacher[:5](images)
    logits = teacher[5:](features)
    mean = logits.softmax(1).mean(0)
    one_hot = functional.cross_entropy(logits, logits.argmax(1))
    return one_hot - 0.1 * features.abs().mean() + 5 * (mean * mean.log10()).sum()


METHODS = {
    "dafl": (of_the_teacher, {}, dafl),
    "dfad": (
        lambda: {"differ": Term(LogitL1Loss(), weight=-1.0)},
        {"student_steps": 5},
        lambda student, teacher, images: -l1(student(images), teacher(images)),
    ),
    "zskt": (
        lambda: {"differ": Term(KDLoss(temperature=1.0), weight=-1.0)},
        {"generator_steps": 2, "student_steps": 3, "same_noise": True},
        lambda student, teacher, images: (
            -(teacher(images).softmax(1) * (teacher(images).log_softmax(1) - student(images).log_softmax(1))).sum()
            / len(images)
        ),
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_three_batches_are_those_of_a_plain_loop(method: str, tmp_path):
    terms, changes, judgement = METHODS[method]
    built = [network.double() for network in without_dropout(networks())]
    moves = {"generator_steps": 1, "student_steps": 1} | changes
    changes = changes | {"optimizer": sgd, "generator_optimizer": sgd}
    terms = {"generator_terms": terms(), "terms": {"kd": Term(KDLoss(temperature=3.0))}}
    ours = DataFreeDistiller(*copy.deepcopy(built), **terms, **changes)
    student, teacher, generator = built
    teacher.eval().requires_grad_(False)

    drawing = torch.Generator().manual_seed(9)
    drawn: list[Tensor] = []
    ours.generator.draw = lambda n, device: (
        drawn.append(torch.randn(n, 6, generator=drawing, dtype=torch.float64)),
        drawn[-1:],
    )[1]  # type: ignore
    toys.trainer(tmp_path, max_epochs=1, limit_train_batches=3, precision="64-true").fit(ours, numbers())

    optimizers = [sgd(network.parameters()) for network in (generator, student)]
    noise = iter(drawn)
    for _ in range(3):
        kept = next(noise)
        for _ in range(moves["generator_steps"]):
            images = generator(kept if "same_noise" in changes else next(noise))
            optimizers[0].zero_grad()
            judgement(student, teacher, images).backward()
            optimizers[0].step()
        for _ in range(moves["student_steps"]):
            with torch.no_grad():
                images = generator(kept if "same_noise" in changes else next(noise))
            optimizers[1].zero_grad()
            kl(student(images), teacher(images), 3.0).backward()
            optimizers[1].step()
    assert not [*noise]
    for name, network in (("student", student), ("generator", generator)):
        truth = network.state_dict()
        for key, value in ours.get_submodule(name).state_dict().items():
            torch.testing.assert_close(value, truth[key], rtol=1e-9, atol=1e-12, msg=f"{name}.{key}: ".__add__)


def test_the_student_does_not_run_where_no_generator_term_needs_it():
    ours = learner(of_the_teacher())
    ours.student.register_forward_hook(lambda *_: pytest.fail("it was"))
    ours.generator_losses(ours.synthetic_images(4), {})


def test_a_generator_that_does_not_move_draws_as_it_was_built(tmp_path):
    ours = learner(of_the_teacher(), generator_steps=0)
    before = {name: value.clone() for name, value in ours.generator.named_parameters()}
    student = copy.deepcopy(ours.student.state_dict())
    trainer = toys.trainer(tmp_path)
    trainer.fit(ours, numbers())
    assert all(torch.equal(value, before[name]) for name, value in ours.generator.named_parameters())
    assert not toys.same(ours.student.state_dict(), student)
    assert trainer.callback_metrics["train/generator"] == 0


def test_losses_of_generator_and_student_are_logged(tmp_path):
    trainer = toys.trainer(tmp_path)
    trainer.fit(learner(of_both(), classes=10), numbers())
    logged = trainer.callback_metrics
    assert {"train/kd", "train/loss", "train/generator/differ", "train/generator/named"} <= set(logged)
    total = logged["train/generator/named"] - logged["train/generator/differ"]
    assert logged["train/generator"].item() == pytest.approx(total.item(), rel=1e-5)


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="generator_steps=-1 must be at least 0 and student_steps=0 at least 1"):
        learner(of_the_teacher(), generator_steps=-1, student_steps=0)
    with pytest.raises(ValueError, match="terms is empty"):
        learner({})
    network = toys.network()
    with pytest.raises(ValueError, match="share parameters"):
        DataFreeDistiller(network, network, Generator((3, 28, 28)), {"kd": Term(KDLoss())}, of_the_teacher())
    with pytest.raises(ValueError, match="a OneHotLoss term has no layer to compare: set its student or its teacher"):
        Term(OneHotLoss(), student=None, teacher=None)
    with pytest.raises(ValueError, match="cannot infer the batch size"):
        learner(of_the_teacher()).compute_losses({})
