from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import Term
from kd_lightning.core.progress import completed_batches
from kd_lightning.losses import (
    BatchNormStatisticsLoss,
    HintLoss,
    ImpressionLoss,
    JSDLoss,
    KDLoss,
    TaskLoss,
    TotalVariationLoss,
)
from kd_lightning.networks import ConvNet
from kd_lightning.schemes import InversionDistiller, PixelInversion
from kd_lightning.schemes.data_free.inversion_targets import DataImpressions, RandomClasses, RecordedActivations
from kd_lightning.schemes.data_free.synthesizer import SynthesisRound
from tests import toys
from tests.schemes.data_free.test_data_free import numbers
from tests.schemes.online.test_mutual import kl
from tests.schemes.two_player_steps import sgd

STATISTICS = ["conv.0.0", "conv.0.1.running_mean", "conv.0.1.running_var"]


def networks() -> list[nn.Module]:
    torch.manual_seed(1)
    student = ConvNet(4, batch_norm=True)
    torch.manual_seed(2)
    teacher = ConvNet(6, batch_norm=True)
    teacher.train()(torch.rand(8, 3, 28, 28))  # so that it remembers something
    return [student, teacher]


def dreamt() -> dict[str, Term]:
    return {
        "class": Term(TaskLoss(), student=None),
        "statistics": Term(BatchNormStatisticsLoss(), student=None, teacher=STATISTICS, weight=10.0),
        "smooth": Term(TotalVariationLoss(), student=None, teacher="input", weight=0.01),
        "compete": Term(JSDLoss(temperature=3.0), weight=-1.0),
    }


SMALL = {"memory_size": 24, "synthesis_batch_size": 8, "synthesis_interval": 2}


def pixels(image_terms: dict[str, Term] | None = None, **changes: Any) -> PixelInversion:
    given = {"image_shape": (3, 28, 28), "synthesis_steps": 2, "jitter": 1} | changes
    return PixelInversion(image_terms or dreamt(), **given)


def learner(synthesizer: PixelInversion | None = None, **changes: Any) -> InversionDistiller:
    terms = {"kd": Term(KDLoss(temperature=3.0)), "task": Term(TaskLoss(), teacher=None, weight=0.1)}
    return InversionDistiller(*networks(), terms, synthesizer or pixels(), **SMALL | changes)


def impressions() -> InversionDistiller:
    terms = {"kd": Term(KDLoss(temperature=3.0))}
    image_terms = {"impression": Term(ImpressionLoss(), student=None)}
    synthesizer = pixels(image_terms, targets=DataImpressions(betas=(1.0, 0.5)), jitter=0)
    return InversionDistiller(*networks(), terms, synthesizer, **SMALL)


def a_round(ours: InversionDistiller, num_images: int, number: int = 0) -> dict[str, Tensor]:
    """What the synthesizer makes in a round of its own."""
    given = SynthesisRound(number, num_images, copy.deepcopy(ours.student).eval(), ours.teacher, ours.bank, None)
    with torch.enable_grad():
        return ours.synthesizer.synthesize(given)


def settle(ours: InversionDistiller) -> None:
    """Rounds of ranks are those of one process: every image starts alike, and so does what it is of.

    In double precision, for the rounding of a sum over equal images has one direction.
    """
    one = ours.synthesizer.build(ours.teacher)
    one["images"] = torch.rand(one["images"].shape, generator=torch.Generator().manual_seed(4)).double()
    one["targets"] = ours.synthesizer.targets(1, ours.teacher)
    ours.double()

    def made(given: SynthesisRound) -> dict[str, Tensor]:
        return {name: value.expand(given.num_images, *value.shape[1:]).clone() for name, value in one.items()}

    ours.synthesizer.synthesize = made  # type: ignore


CASES = {
    "inversion": lambda: toys.Case(learner(), data=numbers, settle=settle),
    "inversion_impressions": lambda: toys.Case(impressions(), data=numbers, settle=settle),
}


def test_images_follow_the_papers_terms_step_by_step():
    """Written out: two steps of Adam on the sum of DeepInversion's terms, with the same jitter."""
    ours = learner().double()  # Adam's first steps follow the sign of a gradient, however near to 0
    student, teacher = copy.deepcopy(ours.student).eval(), copy.deepcopy(ours.teacher)
    torch.manual_seed(7)
    found, targets = a_round(ours, 4).values()
    torch.manual_seed(7)
    wanted = torch.randint(10, (4,))
    images = (torch.randn(4, 3, 28, 28, dtype=torch.float64) * 0.5 + 0.5).clamp(0, 1).requires_grad_()
    optimizer = torch.optim.Adam([images], lr=0.1)
    norm = teacher.conv[0][1]
    for _ in range(2):
        down, right = torch.randint(-1, 2, (2,)).tolist()
        x = torch.roll(images, (down, right), (2, 3))
        before = teacher.conv[0][0](x)
        z, s = teacher(x), student(x)
        loss = functional.cross_entropy(z, wanted)
        loss = loss + 10 * (before.mean((0, 2, 3)) - norm.running_mean).norm()
        loss = loss + 10 * (before.var((0, 2, 3), unbiased=False) - norm.running_var).norm()
        rough = [
            x[:, :, :, 1:] - x[:, :, :, :-1],
            x[:, :, 1:] - x[:, :, :-1],
            x[:, :, 1:, 1:] - x[:, :, :-1, :-1],
            x[:, :, 1:, :-1] - x[:, :, :-1, 1:],
        ]
        loss = loss + 0.01 * sum(each.flatten(1).norm(dim=1).mean() for each in rough)
        p, q = (z / 3).softmax(1), (s / 3).softmax(1)
        m = (p + q) / 2
        js = ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)).mean() / 2
        loss = loss - 9 * js
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    assert torch.equal(targets, wanted)
    torch.testing.assert_close(found, images.detach(), rtol=1e-6, atol=1e-7)
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_the_student_learns_from_the_bank_alone(tmp_path):
    """Written out: each batch's rows of the bank, and a step of the student on them."""
    ours = learner(optimizer=sgd)
    student, teacher = copy.deepcopy(ours.student), copy.deepcopy(ours.teacher)
    seen: list[tuple[Tensor, Tensor]] = []
    rows = ours.choose_rows
    images = ours.bank.column("images")
    ours.choose_rows = lambda batch: (seen.append((rows(batch), images.clone())), seen[-1][0])[1]  # type: ignore
    toys.trainer(tmp_path, max_epochs=1).fit(ours, numbers())
    optimizer = sgd(student.parameters())
    for chosen, bank in seen:
        x = bank[chosen]
        z, t = student(x), teacher(x)
        loss = kl(z, t, 3.0) + 0.1 * functional.cross_entropy(z, ours.bank.targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for key, value in ours.student.state_dict().items():
        torch.testing.assert_close(value, student.state_dict()[key], rtol=1e-4, atol=1e-6)


def test_the_bank_fills_round_by_round_and_then_stays(tmp_path):
    ours = learner(memory_size=20)
    filled: list[tuple[int, int, int]] = []
    rows = ours.choose_rows

    def watched(batch: Any) -> Tensor:
        chosen = rows(batch)
        there = ours.bank.images.flatten(1).any(dim=1).sum().item()
        filled.append((completed_batches(ours.trainer), there, chosen.max().item() + 1))
        return chosen

    ours.choose_rows = watched  # type: ignore
    toys.trainer(tmp_path, max_epochs=2).fit(ours, numbers())
    assert [there for _, there, _ in filled] == [8, 8, 16, 16, 20, 20, 20, 20]
    assert all(largest <= there for _, there, largest in filled)
    assert ours.synthetic_images(4).shape == (4, 3, 28, 28)
    assert torch.equal(ours.synthetic_images(4), ours.bank.images[16:])


def test_the_losses_of_a_step_do_not_change_the_bank():
    ours, batch = learner(), {"image": torch.rand(6, 3, 28, 28), "index": torch.arange(6)}
    with pytest.raises(ValueError, match="the bank has no images before on_train_batch_start"):
        ours.compute_losses(batch)
    ours.on_train_batch_start(batch, 0)
    assert ours.student.training
    before = copy.deepcopy(ours.bank.state_dict())
    drawn = torch.get_rng_state()
    first, second = (ours.compute_losses(batch) for _ in range(2))
    assert {name: loss.item() for name, loss in first.items()} == {name: loss.item() for name, loss in second.items()}
    assert toys.same(ours.bank.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_images_reach_their_targets():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 10))
    image_terms = {"class": Term(TaskLoss(), student=None)}
    synthesizer = pixels(image_terms, synthesis_steps=40, jitter=0)
    ours = InversionDistiller(ConvNet(4), teacher, {"kd": Term(KDLoss())}, synthesizer)
    images, targets = a_round(ours, 16).values()
    assert functional.cross_entropy(teacher(images), targets) < 0.1
    assert images.min() >= 0
    assert images.max() <= 1


def test_images_stay_in_the_normalized_range_of_each_channel():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.5]
    synthesizer = pixels({"class": Term(TaskLoss(), student=None)}, image_shape=(3, 8, 8), mean=mean, std=std)
    synthesizer.synthesis_steps = 30
    ours = InversionDistiller(ConvNet(4), teacher, {"kd": Term(KDLoss())}, synthesizer, 32, 32)
    images = a_round(ours, 32)["images"]
    for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
        assert images[:, channel].min().item() == pytest.approx((0 - m) / s)
        assert images[:, channel].max().item() == pytest.approx((1 - m) / s)
    ours.bank.add_round(0, {"images": images})
    ours.rounds = 1
    pictures = ours.synthetic_images(16)
    torch.testing.assert_close(pictures.aminmax(), (torch.tensor(0.0), torch.tensor(1.0)))


def test_impressions_are_of_classes_that_the_teacher_confuses():
    weight = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0]])
    rows = [[row / sum(value**2 for value in other) ** 0.5 for row in other] for other in weight.tolist()]
    cosines = [[sum(a * b for a, b in zip(one, other, strict=True)) for other in rows] for one in rows]
    expected = [[(c - min(row)) / (max(row) - min(row)) for c in row] for row in cosines]
    torch.testing.assert_close(DataImpressions.similarity(weight), torch.tensor(expected))

    teacher = nn.Sequential(nn.Linear(2, 3))
    teacher[0].weight.data = weight
    torch.manual_seed(0)
    drawn = DataImpressions("0", (1.0, 0.1))(20_000, teacher)
    torch.testing.assert_close(drawn.sum(dim=1), torch.ones(20_000))
    # the mean of a Dirichlet is its concentration over the sum of that
    concentration = torch.tensor(expected).clamp(min=1e-3)
    mean = (concentration / concentration.sum(dim=1, keepdim=True)).mean(dim=0)
    torch.testing.assert_close(drawn.mean(dim=0), mean, atol=0.01, rtol=0)
    sharp = DataImpressions("0", (0.01,))(1000, teacher)
    assert sharp.amax(dim=1).mean() > 0.97


def test_recorded_activations_have_the_mean_and_spread_that_were_recorded(tmp_path):
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(3, 2, 2, generator=generator)
    found = {
        "a.mean": torch.tensor([[0.0, 1.0], [5.0, 6.0], [-5.0, 9.0]]),
        "a.factor": factor @ factor.mT,  # symmetric, as a square root is
        "b.mean": torch.full((3, 1), 7.0),
        "b.deviation": torch.full((3, 1), 0.5),
    }
    save_file(found, tmp_path / "found.safetensors")
    save_file(found, tmp_path / "statistics.safetensors")
    assert RecordedActivations(tmp_path / "last.ckpt", ["a"]).statistics.keys() == {"a.mean", "a.factor"}
    torch.manual_seed(0)
    drawn = RecordedActivations(tmp_path / "found.safetensors", ["b", "a"])(60_000, nn.Linear(1, 1))
    assert drawn.shape == (60_000, 3)
    assert drawn[:, 0].mean() == pytest.approx(7.0, abs=0.01)
    assert drawn[:, 0].std() == pytest.approx(0.5, abs=0.01)
    of_classes = torch.stack([m.outer(m) + f @ f.mT for m, f in zip(found["a.mean"], found["a.factor"], strict=True)])
    second = (drawn[:, 1:].mT @ drawn[:, 1:]) / 60_000
    torch.testing.assert_close(second, of_classes.mean(dim=0), rtol=0.03, atol=0.3)
    with pytest.raises(ValueError, match=r"has a, b; layers=\['c'\] must be some of them"):
        RecordedActivations(tmp_path / "found.safetensors", ["c"])
    with pytest.raises(FileNotFoundError, match="is not there: train the teacher with ActivationStatistics first"):
        RecordedActivations(tmp_path / "missing.safetensors", ["a"])


def test_arguments_that_do_not_fit_are_refused():
    for name in SMALL:
        with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
            learner(**{name: 0})
    with pytest.raises(ValueError, match="synthesis_steps=0 must be at least 1"):
        pixels(synthesis_steps=0)
    with pytest.raises(ValueError, match="jitter=28 must be at least 0 and less than the images' size of 28"):
        pixels(jitter=28)
    with pytest.raises(ValueError, match="image_terms: a loss with parameters would not learn them there"):
        pixels({"hint": Term(HintLoss(4, 6), student="conv.1", teacher="conv.1")})
    with pytest.raises(ValueError, match="a batch has no index to choose images by"):
        learner().compute_losses(torch.zeros(4, 3, 28, 28))
    with pytest.raises(ValueError, match=r"betas=\(0.0,\) must be numbers above 0"):
        DataImpressions(betas=(0.0,))
    with pytest.raises(ValueError, match="layer='head' is no linear layer of ConvNet: name the last one"):
        DataImpressions("head")(2, ConvNet(4))
    network = toys.network()
    with pytest.raises(ValueError, match="share parameters"):
        InversionDistiller(network, network, {"kd": Term(KDLoss())}, pixels())
    assert RandomClasses(3)(1000, ConvNet(4)).unique().tolist() == [0, 1, 2]
