"""An attentive ensemble: an attention weights teachers, or rules, for each sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError, WidthError
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses.common.checks import check_temperature, upcast
from kd_lightning.losses.common.classes import NO_CLASS, check_classes, labeled_mean
from kd_lightning.losses.response.kd import kd_loss


def attentive_ensemble_loss(
    student: Tensor, teacher: Tensor, confidence: Tensor, target: Tensor, temperature: float = 4.0
) -> Tensor:
    """Distil a mixture of teachers into the student, and train the mixture's weights by the labels.

    L = T^2 KL(q^T || softmax(z_S / T)) - log q^1_y, averaged, with q^T = sum_k a_k softmax(z_k / T)

    In the first term q is detached, as a teacher is; the second trains the confidences a.

    Xuemeng Song, Fuli Feng, Xianjing Han, Xin Yang, Wei Liu, Liqiang Nie: Neural Compatibility Modeling with Attentive
    Knowledge Distillation. SIGIR 2018 (arXiv:1805.00313). In the paper the teachers are matching rules, an attention
    over the sample's representation gives the confidence in each, and it is trained by the task loss, a ranking loss;
    for classes that is cross-entropy.

    Args:
        student: Logits (N, C).
        teacher: Logits of K teachers, (N, K, C).
        confidence: The weights a, (N, K), whose rows sum to 1.
        target: Class indices (N,); those of -100, without a label, are left out of the second term.
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
    task = functional.nll_loss(_log_mixture(teacher, 1.0, confidence), target.long(), reduction="none")
    return kd_loss(student, mixture, temperature) + labeled_mean(task, target)


class AttentiveEnsembleLoss(DistillationLoss):
    """Attentive ensemble (Song et al. 2018, arXiv:1805.00313); see `attentive_ensemble_loss`.

    a(x) = softmax_k(w^T tanh(W [F(x), e_k])), with the sample's features F and a learned embedding e_k of each teacher.
    A rule is a teacher with constant logits: `kd_lightning.networks.ConstantPrior`.

    Its term addresses ``student: [logits, <layer>]``, where the layer gives F (flattened), and an `Ensemble`'s logits.

    Args:
        teachers: K, the number of teachers.
        features: Width of F, flattened.
        width: Width of the attention's hidden layer and of the embeddings.
        temperature: T > 0.

    Raises:
        UsageError: There are fewer than two teachers, or T is not a finite number above 0; at a call: the features have
            another width, or the shapes of logits and target do not fit.
    """

    needs_target = True

    def __init__(self, teachers: int, features: int, width: int = 32, temperature: float = 4.0) -> None:
        super().__init__()
        if teachers < 2:
            raise UsageError(f"teachers={teachers} must be at least 2: the attention chooses among teachers")
        self.teachers = teachers
        self.features = features
        self.temperature = check_temperature(temperature)
        self.embeddings = nn.Parameter(torch.randn(teachers, width))
        self.hidden = nn.Linear(features + width, width)
        self.score = nn.Linear(width, 1, bias=False)

    def confidence(self, features: Tensor) -> Tensor:
        """Compute each teacher's weight for each sample, (N, K), from features (N, ...)."""
        features = features.flatten(1)
        if features.shape[1] != self.features:
            raise WidthError("student", features.shape[1], self.features, layer=1)
        n, k = len(features), self.teachers
        pairs = torch.cat(  # n = samples, k = teachers
            (features.to(self.hidden.weight.dtype).unsqueeze(1).expand(n, k, -1), self.embeddings.expand(n, k, -1)), 2
        )
        return upcast(self.score(self.hidden(pairs).tanh()).squeeze(2)).softmax(dim=1)

    def forward(self, student: list[Tensor], teacher: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of the student's logits and features, and of the teachers' logits (N, K, C)."""
        if len(student) != 2:
            raise UsageError(
                f"the term lists {len(student)} layers of the student, not 2: set student: [logits, <layer>]"
            )
        logits, features = student
        return attentive_ensemble_loss(logits, teacher, self.confidence(features), target, self.temperature)


def _log_mixture(teacher: Tensor, temperature: float, confidence: Tensor) -> Tensor:
    """Compute log q^T, (N, C), in log space, so that no probability underflows."""
    shares = confidence.clamp(min=torch.finfo(confidence.dtype).tiny).log().unsqueeze(2)
    logs = functional.log_softmax(upcast(teacher) / temperature, dim=2).clamp(min=NO_CLASS)
    return (shares + logs).logsumexp(dim=1)  # of finite numbers, else the gradient is NaN
