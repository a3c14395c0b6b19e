"""The formulas of all losses on logits, of probabilities and without floors, for float64.

Each is written as in the loss's docstring. Nothing guards against rounding, and no small number is added anywhere: on
finite logits float64 needs neither. A logit of minus infinity is a probability of 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kd_lightning import losses
from tests.losses.every import CASES

Form = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Called with student, teacher, class indices and the temperature."""


@dataclass(frozen=True)
class Formula:
    form: Form
    build: Callable[..., nn.Module]
    """Builds the loss, with the `temperature` as an argument if it has one."""
    teachers: int = 0
    """For losses of several teachers: their number."""


def softmax(z: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    return (z / temperature).softmax(dim=-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of each row: a class of probability 0 contributes nothing."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(dim=-1)


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """-log softmax(z)_y of each row."""
    return -softmax(z).gather(-1, y.unsqueeze(-1)).squeeze(-1).log()


def kd(s: Tensor, t: Tensor, y: Tensor, temperature: float | Tensor) -> Tensor:
    return temperature**2 * kl(softmax(t, temperature), softmax(s, temperature)).mean()


def soft_cross_entropy(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    return -(temperature**2) * torch.xlogy(softmax(t, temperature), softmax(s, temperature)).sum(dim=1).mean()


def kl_mae(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    apart = (softmax(s, temperature) - softmax(t, temperature)).abs().mean()
    return kd(s, t, y, temperature) / 2 + apart / 2


def jsd(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    q, p = softmax(s, temperature), softmax(t, temperature)
    return temperature**2 * (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)).mean() / 2


def standardised(z: Tensor) -> Tensor:
    counts = z.isfinite()
    n = counts.sum(dim=1, keepdim=True)
    mean = torch.where(counts, z, 0).sum(dim=1, keepdim=True) / n
    variance = torch.where(counts, z - mean, 0).square().sum(dim=1, keepdim=True) / (n - 1)
    return (z - mean) / variance.sqrt()


def logit_standardization(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    return kd(standardised(s), standardised(t), y, temperature)


def dkd(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    labeled = nn.functional.one_hot(y, s.shape[1]).bool()
    others = [softmax(z[~labeled].view(len(z), -1), temperature) for z in (t, s)]
    own = [softmax(z, temperature)[labeled] for z in (t, s)]
    rest = [softmax(z, temperature).masked_fill(labeled, 0).sum(dim=1) for z in (t, s)]
    binary = [torch.stack(pair, dim=1) for pair in zip(own, rest, strict=True)]
    return temperature**2 * (kl(*binary) + 8 * kl(*others)).mean()


def pearson_distance(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """1 - corr(a, b), or 1/2 where b does not vary, such as a class that the teacher masks."""
    a, b = (x - x.mean(dim=dim, keepdim=True) for x in (a, b))
    constant = ~b.any(dim=dim)
    lengths = a.square().sum(dim=dim).sqrt() * b.square().sum(dim=dim).sqrt()
    return (1 - (a * b).sum(dim=dim) / lengths.masked_fill(constant, 1)).masked_fill(constant, 0.5)


def dist(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    q, p = softmax(s, temperature), softmax(t, temperature)
    return temperature**2 * (pearson_distance(q, p, 1).mean() + pearson_distance(q, p, 0).mean())


def ctkd(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    return kd(s, t, y, 1 + 20 * torch.ones((), dtype=s.dtype).sigmoid())


def tf_kd(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    virtual = torch.full_like(s, 0.01 / (s.shape[1] - 1)).scatter(1, y.unsqueeze(1), 0.99)
    return kd(s, virtual.log(), y, temperature)


def wsld(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    weights = 1 - torch.exp(-cross_entropy(s, y) / cross_entropy(t, y)).detach()
    return temperature**2 * (weights * kl(softmax(t, temperature), softmax(s, temperature))).mean()


def agreeing_kd(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    agree = s.argmax(dim=1) == t.argmax(dim=1)
    return temperature**2 * kl(softmax(t, temperature), softmax(s, temperature))[agree].sum() / len(s)


def ca_mkd(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    errors = cross_entropy(t, y.unsqueeze(1).expand(t.shape[:2]))
    shares = (1 - softmax(errors)) / (t.shape[1] - 1)
    mixture = (shares.unsqueeze(2) * softmax(t, temperature)).sum(dim=1)
    return temperature**2 * kl(mixture, softmax(s, temperature)).mean()


def arithmetic(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    return temperature**2 * kl(softmax(t, temperature).mean(dim=1), softmax(s, temperature)).mean()


def geometric(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    product = (softmax(t, temperature) ** t.new_tensor([1 / 7, 2 / 7, 4 / 7]).unsqueeze(1)).prod(dim=1)
    return temperature**2 * kl(product / product.sum(dim=1, keepdim=True), softmax(s, temperature)).mean()


def feature_ensemble(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    first, second, third = t.unbind(1)
    return (kd(s, first, y, 4.0) + soft_cross_entropy(s, second, y, 4.0) + kd(s, third, y, 4.0)) / 3


CONFIDENCE = (0.5, 0.3, 0.2)


class AttentiveEnsemble(nn.Module):
    """The attentive ensemble's loss with given confidences."""

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        confidence = student.new_tensor(CONFIDENCE).expand(len(student), -1)
        return losses.attentive_ensemble_loss(student, teacher, confidence, target, self.temperature)


def attentive_ensemble(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    def mixture(at: float) -> Tensor:
        return (t.new_tensor(CONFIDENCE).unsqueeze(1) * softmax(t, at)).sum(dim=1)

    task = -mixture(1.0).gather(1, y.unsqueeze(1)).log().mean()
    return temperature**2 * kl(mixture(temperature), softmax(s, temperature)).mean() + task


def modality_graph(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    similarities = (s.unsqueeze(1) * t).sum(dim=2) / (s.unsqueeze(1).norm(dim=2) * t.norm(dim=2))
    return 10 * (2 / 3 * (1 - similarities)).sum(dim=1).mean()


def bernoulli_kd(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    p, q = (torch.stack(((z / temperature).sigmoid(), (-z / temperature).sigmoid()), dim=-1) for z in (t, s))
    return temperature**2 * kl(p, q).mean()


def binary_task(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    return -torch.where(labels_that_hold(s, y) == 1, s.sigmoid().log(), (-s).sigmoid().log()).mean()


def labels_that_hold(s: Tensor, y: Tensor) -> Tensor:
    """Return a label (N, C) for a loss that takes labels that can hold together."""
    return nn.functional.one_hot(y, s.shape[1]) | nn.functional.one_hot((y + 1) % s.shape[1], s.shape[1])


class BinaryTask(losses.BinaryTaskLoss):
    """The task loss of labels that can hold together, made of class indices."""

    def forward(self, student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
        return super().forward(student, teacher, labels_that_hold(student, target))


def frequencies(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    mean = softmax(s).mean(dim=0)
    return torch.xlogy(mean, mean).sum() / torch.tensor(10.0, dtype=s.dtype).log()


def of(name: str, form: Form, teachers: int = 0) -> Formula:
    return Formula(form, CASES[name].build or getattr(losses, name), teachers)


FORMULAS: dict[str, Formula] = {
    "KDLoss": of("KDLoss", kd),
    "SoftCrossEntropyLoss": of("SoftCrossEntropyLoss", soft_cross_entropy),
    "KLMAELoss": of("KLMAELoss", kl_mae),
    "JSDLoss": of("JSDLoss", jsd),
    "JSDLoss, reverse": Formula(
        lambda s, t, y, at: kd(t, s, y, at), lambda temperature=1.0: losses.JSDLoss(temperature, 1.0)
    ),
    "LogitStandardizationKDLoss": of("LogitStandardizationKDLoss", logit_standardization),
    "DKDLoss": of("DKDLoss", dkd),
    "DISTLoss": of("DISTLoss", dist),
    "CTKDLoss": of("CTKDLoss", ctkd),
    "TfKDLoss": of("TfKDLoss", tf_kd),
    "WSLDLoss": of("WSLDLoss", wsld),
    "AgreeingKDLoss": of("AgreeingKDLoss", agreeing_kd),
    "CAMKDLoss": of("CAMKDLoss", ca_mkd, 3),
    "EnsembleLoss": of("EnsembleLoss", arithmetic, 3),
    "EnsembleLoss of geometric means": of("EnsembleLoss of geometric means", geometric, 3),
    "FeatureEnsembleLoss": of("FeatureEnsembleLoss", feature_ensemble, 3),
    "AttentiveEnsembleLoss": Formula(attentive_ensemble, AttentiveEnsemble, 3),
    "ModalityGraphLoss": Formula(modality_graph, lambda classes: losses.ModalityGraphLoss(3, classes, alpha=0.0), 3),
    "BernoulliKDLoss": of("BernoulliKDLoss", bernoulli_kd),
    "BinaryTaskLoss": Formula(binary_task, BinaryTask),
    "TaskLoss": of("TaskLoss", lambda s, t, y, at: cross_entropy(s, y).mean()),
    "ProbabilityCrossEntropyLoss": of(
        "ProbabilityCrossEntropyLoss", lambda s, t, y, at: cross_entropy(softmax(s), y).mean()
    ),
    "ImpressionLoss": of("ImpressionLoss", lambda s, t, y, at: cross_entropy(s / at, y).mean()),
    "OneHotLoss": of("OneHotLoss", lambda s, t, y, at: cross_entropy(s, s.argmax(dim=1)).mean()),
    "InformationEntropyLoss": of("InformationEntropyLoss", frequencies),
    "ActivationLoss": of("ActivationLoss", lambda s, t, y, at: -s.abs().mean()),
    "LogitMSELoss": of("LogitMSELoss", lambda s, t, y, at: (s - t).square().mean()),
    "LogitL1Loss": of("LogitL1Loss", lambda s, t, y, at: (s - t).abs().mean()),
}
