"""An attentive ensemble: how far each teacher, or rule, is to be trusted is a matter of the sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError, WidthError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_temperature, upcast
from kd_lightning.losses.common.classes import check_classes
from kd_lightning.losses.response.kd import kd_loss


def attentive_ensemble_loss(
    student: Tensor, teacher: Tensor, confidence: Tensor, target: Tensor, temperature: float = 4.0
) -> Tensor:
    """The student learns the mixture that the confidences make of the teachers, the confidences which mixture is right.

    L = T^2 KL(q^T || softmax(z_S / T)) - log q^1_y, averaged, with q^T = sum_k a_k softmax(z_k / T); in the first term
    q is held fixed, as a teacher is, and the second is the confidences' own

    Xuemeng Song, Fuli Feng, Xianjing Han, Xin Yang, Wei Liu, Liqiang Nie: Neural Compatibility Modeling with Attentive
    Knowledge Distillation. SIGIR 2018 (arXiv:1805.00313). There, rules teach what goes with what, an attention over the
    sample's representation says how far each is to be trusted, and it learns from the task's own loss, a ranking; of
    classes it is cross-entropy.

    Args:
        student: Logits (N, C).
        teacher: Logits of K teachers, (N, K, C).
        confidence: a (N, K), which sums to 1.
        target: Class indices (N,).
        temperature: T > 0.

    Raises:
        UsageError: The shapes do not fit, or T is not a finite number above 0.

    Example:
        >>> teacher = torch.tensor([[[4.0, 0.0], [0.0, 4.0]]])
        >>> confidence = torch.tensor([[1.0, 0.0]])
        >>> attentive_ensemble_loss(torch.tensor([[4.0, 0.0]]), teacher, confidence, torch.tensor([0]), 1.0)
        tensor(0.0181)
    """
    check_temperature(temperature)
    if teacher.dim() != 3 or student.dim() != 2 or teacher.shape[::2] != student.shape or not teacher.shape[1]:
        raise UsageError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} must be (N, C) and "
            "(N, K, C) with the same N >= 1 and C >= 2: let an Ensemble teach"
        )
    check_classes(student, target)
    mixture = temperature * _log_mixture(teacher, temperature, confidence.detach())
    return kd_loss(student, mixture, temperature) + functional.nll_loss(
        _log_mixture(teacher, 1.0, confidence), target.long()
    )


class AttentiveEnsembleLoss(DistillationLoss):
    """The attentive ensemble (Song et al. 2018, arXiv:1805.00313): see `attentive_ensemble_loss`.

    a(x) = softmax_k(w^T tanh(W [F(x), e_k])), with the sample's features F and an embedding e_k of each teacher that is
    learned. Rules are teachers like any other: `kd_lightning.networks.ConstantPrior`.

    Its term addresses ``student: [logits, <layer>]``, whose layer gives F, flattened, and an `Ensemble`'s logits.

    Args:
        teachers: K.
        features: Values of F a sample.
        width: Of the attention's hidden layer, and of the embeddings.
        temperature: T > 0.

    Raises:
        UsageError: There are fewer than two teachers, or T is not a finite number above 0; at a call: the features have
            another width, or as for the function.
    """

    needs_target = True

    def __init__(self, teachers: int, features: int, width: int = 32, temperature: float = 4.0) -> None:
        super().__init__()
        if teachers < 2:
            raise UsageError(f"teachers={teachers}: an attention chooses among at least 2")
        self.teachers = teachers
        self.features = features
        self.temperature = check_temperature(temperature)
        self.embeddings = nn.Parameter(torch.randn(teachers, width))
        self.hidden = nn.Linear(features + width, width)
        self.score = nn.Linear(width, 1, bias=False)

    def confidence(self, features: Tensor) -> Tensor:
        """How far each teacher is trusted for each sample, (N, K), of features (N, ...)."""
        features = features.flatten(1)
        if features.shape[1] != self.features:
            raise WidthError("student", features.shape[1], self.features, layer=1)
        n, k = len(features), self.teachers
        pairs = torch.cat(  # n = samples, k = teachers
            (features.to(self.hidden.weight.dtype).unsqueeze(1).expand(n, k, -1), self.embeddings.expand(n, k, -1)), 2
        )
        return upcast(self.score(self.hidden(pairs).tanh()).squeeze(2)).softmax(dim=1)

    def forward(self, student: list[Tensor], teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of the student's logits and features, and of teachers' logits (N, K, C)."""
        if len(student) != 2:
            raise UsageError(f"{len(student)} layers of the student: its term's student is [logits, <layer>]")
        logits, features = student
        return attentive_ensemble_loss(logits, teacher, self.confidence(features), target, self.temperature)


def _log_mixture(teacher: Tensor, temperature: float, confidence: Tensor) -> Tensor:
    """Log q^T, (N, C), without a probability that could vanish."""
    shares = confidence.clamp(min=torch.finfo(confidence.dtype).tiny).log().unsqueeze(2)
    return (shares + functional.log_softmax(upcast(teacher) / temperature, dim=2)).logsumexp(dim=1)
