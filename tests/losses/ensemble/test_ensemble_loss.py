"""Combined logits against the means of the distributions written out, and one loss for each teacher's features."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning import OfflineDistiller, Term, losses
from kd_lightning.callbacks import Linear, TemperatureSchedule
from kd_lightning.losses import (
    EnsembleLoss,
    FeatureEnsembleLoss,
    KDLoss,
    LogitMSELoss,
    SoftCrossEntropyLoss,
    TaskLoss,
    arithmetic_mean,
    geometric_mean,
)
from kd_lightning.networks import Ensemble
from tests import toys
from tests.losses import naive
from tests.losses.case import Case
from tests.losses.plain import STUDENT, TWO_TEACHERS, Plain, hint, kd


class Listed(nn.Module):
    """Adapter for a loss that takes a list of several teachers' features: it takes them stacked."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        return self.loss(student, [*teacher.unbind(min(1, teacher.dim() - 1))], target)


CASES = {
    "EnsembleLoss": Case(lambda **given: EnsembleLoss(KDLoss(**given)), teacher=(6, 3, 10)),
    "EnsembleLoss of geometric means": Case(
        lambda **given: EnsembleLoss(KDLoss(**given), geometric_mean, [1.0, 2.0, 4.0]), teacher=(6, 3, 10)
    ),
    "FeatureEnsembleLoss": Case(
        lambda: Listed(FeatureEnsembleLoss([KDLoss(), SoftCrossEntropyLoss(), KDLoss()])),
        teacher=(6, 3, 10),
        minimum="not zero",
        splits_teachers=True,
    ),
}

TEMPERATURES = [0.1, 1.0, 4.0, 20.0, 50.0]


def logits(teachers: int = 3, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Return student logits (5, C) and teacher logits (5, K, C)."""
    generator = torch.Generator().manual_seed(0)
    student, *stacked = scale * torch.randn(1 + teachers, 5, 7, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), torch.stack(stacked, dim=1)


def mean_of_distributions(rows: list[list[float]], temperature: float, weights: list[float]) -> list[float]:
    """sum_k w_k p_k(c) / sum_k w_k."""
    soft = [naive.softmax(row, temperature) for row in rows]
    return [math.fsum(w * p[c] for w, p in zip(weights, soft, strict=True)) / sum(weights) for c in range(len(rows[0]))]


def geometric_mean_of_distributions(rows: list[list[float]], temperature: float, weights: list[float]) -> list[float]:
    """prod_k p_k(c)^w_k, normalised."""
    log_soft = [naive.log_softmax(row, temperature) for row in rows]
    powers = [
        math.fsum(w * p[c] for w, p in zip(weights, log_soft, strict=True)) / sum(weights) for c in range(len(rows[0]))
    ]
    return naive.softmax(powers)


MEANS = {arithmetic_mean: mean_of_distributions, geometric_mean: geometric_mean_of_distributions}


def naive_kd(student: Tensor, teacher: Tensor, mean, temperature, weights, teacher_temperature=None) -> float:
    total = 0.0
    for s, rows in zip(student.tolist(), teacher.tolist(), strict=True):
        p, log_q = mean(rows, teacher_temperature or temperature, weights), naive.log_softmax(s, temperature)
        total += math.fsum(p_c * (math.log(p_c) - q_c) for p_c, q_c in zip(p, log_q, strict=True) if p_c > 0)
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("combine", MEANS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("weights", [None, [1.0, 1.0, 1.0], [0.2, 5.0, 1.0]])
def test_the_soft_targets_are_the_mean_of_the_teachers_distributions(combine, temperature, weights):
    student, teacher = logits()
    expected = naive_kd(student, teacher, MEANS[combine], temperature, weights or [1.0, 1.0, 1.0])
    loss = EnsembleLoss(KDLoss(temperature), combine, weights)(student, teacher)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("combine", MEANS)
def test_weights_of_each_sample_give_that_samples_mean(combine):
    _, teacher = logits()
    weights = torch.rand(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights /= weights.sum(dim=1, keepdim=True)
    soft = (combine(teacher, 2.0, weights) / 2.0).softmax(dim=1)
    for found, rows, shares in zip(soft.tolist(), teacher.tolist(), weights.tolist(), strict=True):
        assert found == pytest.approx(MEANS[combine](rows, 2.0, shares), rel=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_two_means_differ_where_teachers_disagree_and_agree_where_they_agree(temperature):
    student, teacher = logits()
    arithmetic, geometric = EnsembleLoss(KDLoss(temperature)), EnsembleLoss(KDLoss(temperature), geometric_mean)
    assert abs(arithmetic(student, teacher) - geometric(student, teacher)) > 1e-4
    agreed = teacher[:, :1].expand(-1, 3, -1) + torch.tensor([[0.0], [1.0], [-2.0]])  # a shift is no disagreement
    alone = naive.kd(student.detach(), teacher[:, 0], temperature)
    for loss in (arithmetic, geometric):
        assert loss(student, agreed).item() == pytest.approx(alone, rel=1e-9)


def test_the_mean_of_distributions_is_not_that_at_another_temperature():
    _, teacher = logits()
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    at_1, at_4 = (arithmetic_mean(teacher, temperature, weights).div(4).softmax(dim=1) for temperature in (1.0, 4.0))
    assert (at_1 - at_4).abs().max() > 0.05


@pytest.mark.parametrize("combine", MEANS)
def test_teachers_are_combined_at_the_wrapped_losss_temperature(combine):
    student, teacher = logits()
    uniform = [1.0, 1.0, 1.0]
    loss = EnsembleLoss(KDLoss(2.0, teacher_temperature=6.0), combine)
    expected = naive_kd(student, teacher, MEANS[combine], 2.0, uniform, teacher_temperature=6.0)
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-9)
    loss = EnsembleLoss(KDLoss(2.0), combine)
    loss.temperature = 5.0
    assert loss.loss.temperature == loss.temperature == 5.0
    expected = naive_kd(student, teacher, MEANS[combine], 5.0, uniform)
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-9)


class Seen(Callback):
    """Return the logged loss of each step, and the loss of its batch at a given temperature."""

    def __init__(self) -> None:
        self.temperatures: list[float] = []
        self.losses: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.temperatures.append(trainer.callback_metrics["temperature/kd"].item())
        self.losses.append((trainer.callback_metrics["train/kd"].item(), self.expected))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        student, teacher = nn.functional.linear(batch[0], pl_module.student.weight), pl_module.teacher(batch[0])
        args = (student.detach().double(), teacher.double(), mean_of_distributions)
        self.expected = naive_kd(*args, 8.0 - trainer.global_step, [1.0, 1.0])


def test_a_schedule_changes_its_temperature_which_is_logged(tmp_path):
    teacher = Ensemble([nn.Linear(4, 5), nn.Linear(4, 5)])
    terms = {"kd": Term(EnsembleLoss(KDLoss(3.0)))}
    learner = OfflineDistiller(nn.Linear(4, 5, bias=False), teacher, terms)
    schedule, seen = TemperatureSchedule(Linear(8.0, 1.0, duration=7)), Seen()
    batches = [(x, torch.zeros(6, dtype=torch.long)) for x in 3 * torch.randn(4, 6, 4)]
    trainer = toys.trainer(tmp_path, schedule, seen, max_epochs=1)
    trainer.fit(learner, toys.Loader(batches))
    assert seen.temperatures == [8.0, 7.0, 6.0, 5.0]
    for found, expected in seen.losses:
        assert found == pytest.approx(expected, rel=1e-4)


class Kept(nn.Module):
    """A loss without a temperature that records its arguments."""

    def forward(self, student, teacher, target=None):
        self.seen = (student, teacher, target)
        return student.sum()


def test_for_a_loss_without_temperature_teachers_are_combined_at_1():
    student, teacher = logits()
    target = torch.arange(5)
    loss = EnsembleLoss(Kept())
    loss(student, teacher, target)
    assert not hasattr(loss, "temperature")
    seen_student, seen_teacher, seen_target = loss.loss.seen
    assert seen_student is student
    assert seen_target is target
    for found, rows in zip(seen_teacher.exp().tolist(), teacher.tolist(), strict=True):
        assert found == pytest.approx(mean_of_distributions(rows, 1.0, [1.0, 1.0, 1.0]), rel=1e-12)
    loss(student, teacher.half())
    torch.testing.assert_close(loss.loss.seen[1].double(), seen_teacher, rtol=0, atol=0.02)
    halves = EnsembleLoss(Kept(), geometric_mean)
    halves(student, teacher.half())
    torch.testing.assert_close(halves.loss.seen[1], teacher.half().float().sum(dim=1) / 3, rtol=1e-6, atol=1e-6)
    expected = (student - teacher.sum(dim=1) / 3).square().mean()
    torch.testing.assert_close(EnsembleLoss(LogitMSELoss(), geometric_mean)(student, teacher), expected)


def test_any_function_can_combine_teachers():
    student, teacher = logits()

    def surest(logits, temperature, weights):
        """Choose the teacher with the largest probability at T, independent of its weight."""
        assert temperature == 3.0
        assert weights.tolist() == pytest.approx([0.5, 0.25, 0.25])
        sure = (logits / temperature).softmax(dim=2).amax(dim=2).argmax(dim=1)
        return logits[torch.arange(len(logits)), sure]

    loss = EnsembleLoss(SoftCrossEntropyLoss(3.0), surest, [2.0, 1.0, 1.0])
    total = 0.0
    for s, rows in zip(student.tolist(), teacher.tolist(), strict=True):
        p = max((naive.softmax(row, 3.0) for row in rows), key=max)
        total -= math.fsum(p_c * q_c for p_c, q_c in zip(p, naive.log_softmax(s, 3.0), strict=True))
    assert loss(student, teacher).item() == pytest.approx(9.0 * total / 5, rel=1e-9)


def test_it_has_the_traits_of_the_wrapped_loss():
    class Relational(nn.Module):
        compares_samples = True

    assert not EnsembleLoss(KDLoss()).needs_target
    assert not EnsembleLoss(KDLoss()).compares_samples
    assert EnsembleLoss(TaskLoss()).needs_target
    assert EnsembleLoss(Relational()).compares_samples
    assert FeatureEnsembleLoss([KDLoss(), TaskLoss()]).needs_target
    assert FeatureEnsembleLoss([KDLoss(), Relational()]).compares_samples
    neither = FeatureEnsembleLoss([KDLoss(), KDLoss()])
    assert not neither.needs_target
    assert not neither.compares_samples


@pytest.mark.parametrize("remade", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_shares_nothing_with_the_original(remade):
    student, teacher = logits()
    loss = EnsembleLoss(KDLoss(2.0), geometric_mean, [1.0, 2.0, 3.0])
    other = remade(loss)
    assert torch.equal(other(student, teacher), loss(student, teacher))
    other.temperature = 9.0
    assert loss.temperature == 2.0


def test_tokens_and_pixels_are_rows_of_stacked_logits():
    generator = torch.Generator().manual_seed(0)
    student, *teachers = torch.randn(4, 2, 3, 5, generator=generator, dtype=torch.float64)  # (N, L, C)
    labels = torch.tensor([[1, 2, -100], [0, -100, -100]])
    loss = EnsembleLoss(KDLoss(2.0))
    found = Term(loss)({"logits": student}, {"logits": torch.stack(teachers, dim=1)}, {"target": labels})
    kept = labels != -100
    rows = torch.stack([teacher[kept] for teacher in teachers], dim=1)
    assert found.item() == pytest.approx(naive_kd(student[kept], rows, mean_of_distributions, 2.0, [1.0] * 3), rel=1e-9)
    pixels = [x.transpose(1, 2).unsqueeze(-1) for x in (student, *teachers)]  # (N, C, H, 1)
    again = Term(loss)({"logits": pixels[0]}, {"logits": torch.stack(pixels[1:], dim=1)}, {"target": labels[..., None]})
    assert again.item() == pytest.approx(found.item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("temperature", [0.01, 1.0, 20.0, 1000.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_value_is_finite_and_close_to_float64_in_every_precision(dtype, temperature, scale):
    student, teacher = (x.detach().clamp(-6e4, 6e4).to(dtype).requires_grad_() for x in logits(scale=scale))
    for combine, mean in MEANS.items():
        loss = EnsembleLoss(KDLoss(temperature), combine, [1.0, 1.0, 1.0])(student, teacher)
        gradients = torch.autograd.grad(loss, (student, teacher))
        assert all(gradient.isfinite().all() for gradient in gradients)
        expected = naive_kd(student.detach().double(), teacher.detach().double(), mean, temperature, [1.0] * 3)
        assert loss.item() == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_a_weight_of_zero_has_no_effect_and_no_nan_gradient():
    _, teacher = logits()
    teacher.requires_grad_()
    weights = torch.tensor([0.0, 0.25, 0.75], dtype=torch.float64, requires_grad=True)
    combined = arithmetic_mean(teacher, 2.0, weights)
    without = arithmetic_mean(teacher[:, 1:], 2.0, weights[1:])
    torch.testing.assert_close(combined, without, rtol=1e-12, atol=1e-12)
    gradient, shares = torch.autograd.grad(combined.square().sum(), (teacher, weights))
    assert gradient.isfinite().all()
    assert shares.isfinite().all()
    assert gradient[:, 0].abs().max() < 1e-12


@pytest.mark.parametrize(
    ("student", "teacher"), [((4, 10), (4, 10)), ((4, 10), (4, 3, 9)), ((4, 10), (3, 3, 10)), ((4, 3, 10), (4, 3, 10))]
)
def test_logits_that_are_not_stacked_are_refused_with_the_remedy(student, teacher):
    with pytest.raises(ValueError, match="use an Ensemble as the scheme's teacher") as refusal:
        EnsembleLoss(KDLoss())(torch.zeros(student), torch.zeros(teacher))
    assert f"student logits {student} and teacher logits {teacher}" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("weights", [[], [1.0, 0.0, 1.0], [1.0, -1.0, 1.0], [1.0, math.nan, 1.0], [1.0, math.inf, 1.0]])
def test_weights_that_are_not_above_0_are_refused(weights):
    for build in (
        lambda: EnsembleLoss(KDLoss(), weights=weights),
        lambda: FeatureEnsembleLoss([KDLoss()] * 3, weights),
    ):
        with pytest.raises(ValueError, match="must be finite numbers above 0, one for each teacher"):
            build()


@pytest.mark.parametrize("combine", MEANS)
@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0], [1.0] * 4, [1.0] * 5])
def test_weights_of_another_number_are_refused_and_never_broadcast(combine, weights):
    student, teacher = logits()
    with pytest.raises(ValueError, match=rf"weights \({len(weights)},\) are not one for each of the 3 teachers"):
        EnsembleLoss(KDLoss(), combine, weights)(student, teacher)
    with pytest.raises(ValueError, match="not one for each of the 3 losses"):
        FeatureEnsembleLoss([KDLoss(), KDLoss(), KDLoss()], weights)


# ---- features


class Connected(nn.Module):
    """Squared distance after a connector."""

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.connector = nn.Linear(student_width, teacher_width)

    def forward(self, student, teacher, target=None):
        return (self.connector(student) - teacher).square().mean()


def test_each_teachers_features_have_a_separate_loss_and_connector():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5))
    teacher = Ensemble([nn.Sequential(nn.Linear(4, width), nn.Linear(width, 5)) for width in (6, 8)])
    loss = FeatureEnsembleLoss([Connected(3, 6), Connected(3, 8)], weights=[1.0, 3.0])
    terms = {"hint": Term(loss, student="0", teacher=["members.0.0", "members.1.0"])}
    learner = OfflineDistiller(student, teacher, terms)
    learned = {name for name, parameter in learner.named_parameters() if parameter.requires_grad}
    assert {name for name in learned if "connector" in name} == {
        f"terms.hint.loss.losses.{k}.connector.{part}" for k in (0, 1) for part in ("weight", "bias")
    }
    x = torch.randn(7, 4)
    found = learner.compute_losses(x)["hint"]
    distances = [
        (own.connector(student[0](x)) - member[0](x)).square().mean()
        for own, member in zip(loss.losses, teacher.members, strict=True)
    ]
    torch.testing.assert_close(found, 0.25 * distances[0] + 0.75 * distances[1])
    found.backward()
    assert all(own.connector.weight.grad.any() for own in loss.losses)


def test_the_students_layer_can_differ_for_each_teacher():
    a, b = torch.randn(2, 6, 5, dtype=torch.float64)
    s, t = torch.randn(2, 6, 5, dtype=torch.float64)
    found = FeatureEnsembleLoss([LogitMSELoss(), KDLoss(2.0)])([a, s], [b, t])
    assert found.item() == pytest.approx(((a - b).square().mean().item() + naive.kd(s, t, 2.0)) / 2, rel=1e-9)


def test_each_loss_gets_the_labels():
    student, target = torch.randn(3, 5), torch.tensor([1, 4, 0])
    found = FeatureEnsembleLoss([TaskLoss(), LogitMSELoss()])(student, [student, student + 2], target)
    expected = (nn.functional.cross_entropy(student, target) + 4) / 2
    torch.testing.assert_close(found, expected)


def test_features_of_another_number_than_losses_are_refused():
    loss, x = FeatureEnsembleLoss([LogitMSELoss(), LogitMSELoss()]), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="losses is empty"):
        FeatureEnsembleLoss([])
    with pytest.raises(
        ValueError, match="2 losses cannot compare a tensor of the student with a list of 3 of the teachers"
    ):
        loss(x, [x, x, x])
    with pytest.raises(
        ValueError, match="2 losses cannot compare a tensor of the student with a tensor of the teachers"
    ):
        loss(x, x)
    with pytest.raises(
        ValueError, match="2 losses cannot compare a list of 1 of the student with a list of 2 of the teachers"
    ):
        loss([x], [x, x])


def plain_arithmetic_mean(m, s, t, y):
    return F.kl_div(F.log_softmax(s / 4, 1), (t / 4).softmax(2).mean(1), reduction="batchmean") * 16


def plain_geometric_mean(m, s, t, y):
    return kd(m, s, t.mean(1), y)


def plain_hints(m, s, t, y):
    return sum(hint(each, s, x, y) for each, x in zip(m.losses, t, strict=True)) / 2


PLAIN = {
    "EnsembleLoss": Plain(plain_arithmetic_mean, teachers=3, build=lambda: losses.EnsembleLoss(losses.KDLoss())),
    "EnsembleLoss of geometric means": Plain(
        plain_geometric_mean, teachers=3, build=lambda: losses.EnsembleLoss(losses.KDLoss(), losses.geometric_mean)
    ),
    "FeatureEnsembleLoss": Plain(
        plain_hints,
        STUDENT,
        TWO_TEACHERS,
        build=lambda: losses.FeatureEnsembleLoss([losses.HintLoss(32, 128), losses.HintLoss(32, 64)]),
    ),
}


def test_weights_follow_the_number_of_teachers_and_the_type_of_the_logits():
    loss, student = EnsembleLoss(LogitMSELoss()), torch.zeros(2, 3)
    for teachers, dtype in ((2, torch.float32), (3, torch.float32), (3, torch.float64), (2, torch.float64)):
        shown = torch.arange(teachers * 6, dtype=dtype).view(2, teachers, 3)
        for _ in range(2):  # computed once for a type and a number
            wanted = shown.softmax(dim=2).mean(dim=1).log()
            found = loss(student.to(dtype), shown)
            assert found.dtype == dtype
            rounding = 16 * torch.finfo(dtype).eps  # weights of single precision would show in double
            torch.testing.assert_close(found, LogitMSELoss()(student.to(dtype), wanted), rtol=rounding, atol=0)
