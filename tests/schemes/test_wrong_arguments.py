"""Arguments of schemes and terms that cannot be meant are one line at construction."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning import Classifier, OfflineDistiller, Term, UsageError
from kd_lightning.losses import AdversarialLoss, KDLoss, OneHotLoss, TaskLoss
from kd_lightning.networks import ConvNet, Discriminator, Generator, TeacherConvNet
from kd_lightning.schemes import (
    CSKD,
    KDCL,
    AdversarialDistiller,
    DataFreeDistiller,
    FewShotDistiller,
    MutualLearning,
    NaiveEnsemble,
    SyntheticInputsDistiller,
)
from tests import toys


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5))


def kd() -> dict[str, Term]:
    return {"kd": Term(KDLoss(2.0))}


def adversarial(**given: Any) -> Any:
    loss = AdversarialLoss(Discriminator(5))
    return AdversarialDistiller(**{"student": network(), "teacher": network(), "terms": {"a": Term(loss)}} | given)


def data_free(**given: Any) -> Any:
    generator_terms = {"one_hot": Term(OneHotLoss(), student=None)}
    defaults = {"student": network(), "teacher": network(), "generator": Generator((3, 4, 4)), "terms": kd()}
    return DataFreeDistiller(**defaults | {"generator_terms": generator_terms} | given)


def synthetic(**given: Any) -> Any:
    defaults = {"student": network(), "teacher": network(), "generator": Generator((3, 4, 4)), "terms": kd()}
    return SyntheticInputsDistiller(**defaults | {"discriminator": network()} | given)


def mutual(**given: Any) -> Any:
    return MutualLearning(**{"student": network(), "peers": [network()], "terms": kd()} | given)


SCHEMES: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "offline": (
        lambda **given: OfflineDistiller(**{"student": network(), "teacher": network(), "terms": kd()} | given),
        ["student", "teacher"],
    ),
    "classifier": (lambda **given: Classifier(**{"student": network()} | given), ["student"]),
    "class-wise": (lambda **given: CSKD(**{"student": network(), "terms": kd()} | given), ["student"]),
    "few shots": (
        lambda **given: FewShotDistiller(
            **{"student": ConvNet(4), "teacher": ConvNet(8), "layers": ["conv.0"]} | given
        ),
        ["student", "teacher"],
    ),
    "peers": (mutual, ["student"]),
    "adversarial": (adversarial, ["student", "teacher"]),
    "data-free": (data_free, ["student", "teacher", "generator"]),
    "synthetic": (synthetic, ["student", "teacher", "generator"]),
}


@pytest.mark.parametrize("wrong", [None, "resnet18", [network()], nn.Linear], ids=["None", "text", "list", "class"])
@pytest.mark.parametrize(("build", "argument"), [(build, name) for build, names in SCHEMES.values() for name in names])
def test_what_is_no_network_is_refused_by_its_argument(build, argument, wrong):
    shown = repr(wrong) if wrong is None or isinstance(wrong, str) else f"a {type(wrong).__name__}"
    with pytest.raises(UsageError, match=f"^(network ')?{argument}'? is {shown}, not a network: give"):
        build(**{argument: wrong})


@pytest.mark.parametrize("scheme", [MutualLearning, partial(KDCL, combine=NaiveEnsemble())])
def test_a_peer_that_is_no_network_is_refused_by_its_number(scheme):
    with pytest.raises(UsageError, match=r"^peers\[1\] is 'resnet18', not a network"):
        scheme(network(), [network(), "resnet18"], kd())


class NoDraw(nn.Module):
    def forward(self, noise: Tensor) -> Tensor:
        return noise


@pytest.mark.parametrize("build", [data_free, synthetic])
def test_a_generator_that_cannot_draw_its_noise_is_refused(build):
    with pytest.raises(UsageError, match=r"generator: NoDraw has no method draw\(n, device\)"):
        build(generator=NoDraw())


def test_a_grey_generator_before_networks_of_colour_is_one_line(tmp_path):
    learner = data_free(generator=Generator((1, 28, 28)), student=ConvNet(4), teacher=TeacherConvNet())
    with pytest.raises(UsageError, match=r"ConvNet cannot take its input \(4, 1, 28, 28\).*in_channels"):
        toys.trainer(tmp_path, max_epochs=1).fit(learner, toys.Loader([{"index": torch.arange(4)}]))


# ---- losses


class OfTwo(nn.Module):
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().mean()


class OfAny(nn.Module):
    def forward(self, *outputs: Any) -> Tensor:
        return outputs[0].square().mean()


class Named(nn.Module):
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return scale * (student - teacher).square().mean()


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.MSELoss(), nn.CrossEntropyLoss(), OfTwo()])
def test_a_loss_of_other_arguments_is_refused(loss):
    takes = r"\(student, teacher\)" if isinstance(loss, OfTwo) else r"\(input, target\)"
    message = rf"called as loss\(student, teacher, target\), and {type(loss).__name__}\.forward takes {takes}"
    with pytest.raises(UsageError, match=message):
        Term(loss)


@pytest.mark.parametrize("loss", [OfAny(), Named(), KDLoss(2.0), TaskLoss(), torch.compile(Named(), backend="eager")])
def test_a_loss_that_takes_more_is_taken(loss):
    assert Term(loss).loss is loss
