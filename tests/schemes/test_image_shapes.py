"""Schemes that make images, and grafting, on images of several shapes, in colour and in grey."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kd_lightning import Term
from kd_lightning.data import MNIST, ColouredDigits, NoiseDataModule, ResidentDataModule
from kd_lightning.data.sources.base import LabeledImages, Source
from kd_lightning.losses import (
    ActivationRecordLoss,
    BatchNormStatisticsLoss,
    ImpressionLoss,
    InformationEntropyLoss,
    KDLoss,
    LogitL1Loss,
    OneHotLoss,
    TaskLoss,
)
from kd_lightning.networks import ConvDiscriminator, ConvNet, Generator, GraftedStudent
from kd_lightning.schemes import (
    DataFreeDistiller,
    DatasetDistillation,
    GeneratorInversion,
    GraftingDistiller,
    InversionDistiller,
    PixelInversion,
    PseudoExamplesDistiller,
    PseudoExampleSynthesis,
    SyntheticInputsDistiller,
)
from kd_lightning.schemes.data_free.inversion_targets import DataImpressions, RecordedActivations
from tests import toys

SHAPES = {"colour": (3, 32, 32), "grey": (1, 28, 28)}
Shape = tuple[int, int, int]
KD = {"kd": Term(KDLoss(temperature=3.0))}
OF_CLASS = {"class": Term(TaskLoss(), student=None)}
STATISTICS = ["conv.0.0", "conv.0.1.running_mean", "conv.0.1.running_var"]
BLOCKS = [["conv.0", "conv.1"], ["conv.2", "conv.3"], ["conv.4", "conv.5", "pool", "flatten", "classifier"]]


class Few(Source):
    """The first 64 test images of a source, to train and to test on."""

    num_classes = 10

    def __init__(self, source: Source) -> None:
        self.source = source
        self.image_shape = source.image_shape

    def train(self) -> LabeledImages:
        return LabeledImages(*(tensor[:64] for tensor in self.source.test()))

    def test(self) -> LabeledImages:
        return self.train()


@cache
def source(colour: bool) -> Few:
    """Read once: the coloured digits are drawn at each reading."""
    few = Few(ColouredDigits() if colour else MNIST())
    images, labels = few.train()
    few.train = lambda: LabeledImages(images.clone(), labels.clone())  # type: ignore
    return few


def networks(shape: Shape) -> list[nn.Module]:
    torch.manual_seed(0)
    pair = [ConvNet(width, in_channels=shape[0], batch_norm=True) for width in (4, 6)]
    pair[1].train()(torch.rand(16, *shape))  # so that its BatchNorm has statistics
    return pair


def generator(shape: Shape, **changes: Any) -> Generator:
    return Generator(shape, latent=6, width=4, **changes)


def of_bank(synthesizer: Any, shape: Shape, kind: type[InversionDistiller] = InversionDistiller, **more: Term) -> Any:
    return kind(*networks(shape), KD | more, synthesizer, memory_size=16, synthesis_batch_size=8, synthesis_interval=2)


def dafl(shape: Shape, folder: Path) -> Any:
    terms = {
        "one_hot": Term(OneHotLoss(), student=None),
        "entropy": Term(InformationEntropyLoss(), student=None, weight=5.0),
    }
    return DataFreeDistiller(*networks(shape), generator(shape), KD, terms)


def dfad(shape: Shape, folder: Path) -> Any:
    standard = ([0.4] * shape[0], [0.2] * shape[0])
    terms = {"differ": Term(LogitL1Loss(), weight=-1.0)}
    return DataFreeDistiller(*networks(shape), generator(shape, standardise=standard), KD, terms, student_steps=2)


def zskt(shape: Shape, folder: Path) -> Any:
    terms = {"differ": Term(KDLoss(temperature=1.0), weight=-1.0)}
    return DataFreeDistiller(*networks(shape), generator(shape), KD, terms, student_steps=2, same_noise=True)


def deepinversion(shape: Shape, folder: Path) -> Any:
    terms = OF_CLASS | {"statistics": Term(BatchNormStatisticsLoss(), student=None, teacher=STATISTICS)}
    return of_bank(PixelInversion(terms, shape, synthesis_steps=2), shape)


def zskd(shape: Shape, folder: Path) -> Any:
    terms = {"impression": Term(ImpressionLoss(), student=None)}
    return of_bank(PixelInversion(terms, shape, DataImpressions(), synthesis_steps=2), shape)


def metadata(shape: Shape, folder: Path) -> Any:
    save_file({"logits.mean": torch.zeros(10, 10), "logits.deviation": torch.ones(10, 10)}, folder / "s.safetensors")
    terms = {"record": Term(ActivationRecordLoss(), student=None, teacher=["logits"])}
    targets = RecordedActivations(folder / "s.safetensors", ["logits"])
    return of_bank(PixelInversion(terms, shape, targets, synthesis_steps=2), shape)


def cmi(shape: Shape, folder: Path) -> Any:
    synthesizer = GeneratorInversion(OF_CLASS, generator(shape), features=["conv.5"], synthesis_steps=2, width=5)
    return of_bank(synthesizer, shape)


def pseudo_examples(shape: Shape, folder: Path) -> Any:
    synthesizer = PseudoExampleSynthesis(shape, synthesis_steps=2)
    return of_bank(synthesizer, shape, PseudoExamplesDistiller, task=Term(TaskLoss(), teacher=None))


def dataset_distillation(shape: Shape, folder: Path) -> Any:
    terms = {"task": Term(TaskLoss(), teacher=None)}
    return DatasetDistillation(ConvNet(4, in_channels=shape[0]), terms, shape, steps=2)


def synthetic(shape: Shape, folder: Path) -> Any:
    discriminator = ConvDiscriminator(shape[0], width=4)
    return SyntheticInputsDistiller(*networks(shape), generator(shape), discriminator, KD)


def grafting(shape: Shape, folder: Path) -> Any:
    student, teacher = networks(shape)
    return GraftingDistiller(GraftedStudent(student, BLOCKS, 4, 6), teacher, BLOCKS, block_steps=1, net_steps=1)


WITHOUT_DATA = (dafl, dfad, zskt, deepinversion, zskd, metadata, cmi)
WITH_DATA = (pseudo_examples, dataset_distillation, synthetic, grafting)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("build", [*WITHOUT_DATA, *WITH_DATA], ids=lambda build: build.__name__)
def test_images_of_any_shape_are_made_and_learned_from(build: Callable[..., Any], shape: str, tmp_path: Path):
    images = source(shape == "colour")
    if build in WITHOUT_DATA:
        data: Any = NoiseDataModule(images, batch_size=8, steps_per_epoch=4)
    else:
        data = ResidentDataModule(images, batch_size=8, val_size=0)
    learner = build(SHAPES[shape], tmp_path)
    before = toys.weights(learner.student)
    toys.trainer(tmp_path, max_epochs=1, limit_train_batches=4).fit(learner, data)
    assert not toys.same(before, toys.weights(learner.student))
    (measured,) = toys.trainer(tmp_path).test(learner, data, verbose=False)
    assert 0 <= measured["test/acc"] <= 1
    if make := getattr(learner, "synthetic_images", None):
        check_channels(make(4), SHAPES[shape])
    if build is synthetic:
        learner.generator.eval()
        check_channels(learner.generator(*learner.generator.draw(4, learner.device)).detach(), SHAPES[shape])


def check_channels(made: torch.Tensor, shape: Shape) -> None:
    """Images have the shape, and no two of their channels are alike."""
    assert made.shape == (4, *shape)

    for one in range(shape[0]):
        for other in range(one):
            assert (made[:, one] - made[:, other]).abs().mean() > 1e-3


def test_the_coloured_digits_have_channels_that_differ():
    digits = source(colour=True).train().images.float() / 255
    assert digits.shape == (64, 3, 32, 32)
    assert (digits[:, 0] - digits[:, 1]).abs().mean() > 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_images_of_another_shape_are_refused_in_one_line(shape: str, tmp_path: Path):
    other = SHAPES["grey" if shape == "colour" else "colour"]
    data = ResidentDataModule(source(shape == "colour"), batch_size=8, val_size=0)
    for build in (synthetic, pseudo_examples):
        with pytest.raises(ValueError, match=r"image_shape") as caught:
            toys.trainer(tmp_path, max_steps=1).fit(build(other, tmp_path), data)
        assert "\n" not in str(caught.value)
