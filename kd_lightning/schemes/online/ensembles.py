"""The ensembles of KDCL: how the logits of several networks become those of one teacher."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.distributed import all_gather_with_grad
from kd_lightning.core.errors import UsageError


class LogitEnsemble(nn.Module, ABC):
    """The base class of ensembles: combines the logits of several networks into logits for their teacher.

    `KDCL` calls it at each step with detached logits in float32. A subclass implements `forward`; one whose parameters
    are estimated on held-out data sets `learns_from_validation` and implements `observe` and `update`.
    """

    num_networks: int | None = None
    """The number of networks that it combines; None for any number."""
    learns_from_validation: bool = False
    """`KDCL` calls `observe` with every validation batch and `update` at the end of every validation."""

    @abstractmethod
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Combine logits (m, N, C) of m networks, given class indices (N,), into logits (N, C)."""

    def observe(self, logits: Tensor, target: Tensor) -> None:
        """Accumulate statistics of held-out logits (m, N, C) and class indices (N,)."""

    def update(self) -> None:
        """Update the ensemble from what `observe` has accumulated on all ranks, and reset the statistics."""


class NaiveEnsemble(LogitEnsemble):
    """Selects, for each image, the network of least cross-entropy: z_t = z_k, k = argmin_i CE(z_i, y).

    Example:
        >>> logits = torch.tensor([[[0.0, 1.0]], [[2.0, 0.0]]])
        >>> NaiveEnsemble()(logits, torch.tensor([0]))
        tensor([[2., 0.]])
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Select logits (N, C) from those (m, N, C) of the networks by class indices (N,)."""
        losses = margins(logits, target).logsumexp(dim=2)  # (m, N): the cross-entropies, as z_y - z_y = 0
        return logits[losses.argmin(dim=0), torch.arange(len(target), device=logits.device)]


class LinearEnsemble(LogitEnsemble):
    """The convex combination of least cross-entropy: z_t = sum_i a_i z_i, a = argmin CE(sum_i a_i z_i, y), per image.

    The problem, with a_i >= 0 and sum_i a_i = 1, is convex and small, and accelerated mirror descent (Tseng's, in the
    geometry of the entropy) solves it for all images at once. CE = log(1 + exp g) grows with g, the logsumexp of the
    wrong classes' margins. It minimises g, because the gradient of g does not vanish where the networks are right.
    After k steps the loss is within R^2 log(m) / (k + 1)^2 of the least, R being the largest difference of two networks
    in a margin.

    Args:
        steps: The number k of descent steps.

    Raises:
        UsageError: `steps` is below 1.

    Example:
        >>> logits = torch.tensor([[[0.0, 4.0, -4.0]], [[0.0, -4.0, 4.0]]])
        >>> LinearEnsemble()(logits, torch.tensor([0]))
        tensor([[0., 0., 0.]])
    """

    def __init__(self, steps: int = 50) -> None:
        super().__init__()
        if steps < 1:
            raise UsageError(f"steps={steps} must be at least 1")
        self.steps = steps

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Combine logits (m, N, C) into logits (N, C) by class indices (N,)."""
        return torch.einsum("in,inc->nc", self.coefficients(logits, target), logits)

    def coefficients(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the coefficients a_i of each image, (m, N), from logits (m, N, C) and class indices (N,)."""
        margin = margins(logits, target)  # i = network, n = image, c = class
        right = functional.one_hot(target, logits.shape[2]).bool()
        # R of each image; the gradient of g is Lipschitz with constant R^2 / 4 in the 1-norm, so 4 / R^2 is the step
        spread = (margin.amax(dim=0) - margin.amin(dim=0)).amax(dim=1)
        rate = 4 / spread.square().clamp_min(1e-12)
        duals = torch.zeros_like(margin[:, :, 0])  # logarithms, which the softmax maps to the simplex
        mean = mirrored = duals.softmax(dim=0)
        for k in range(self.steps):
            theta = 2 / (k + 2)  # Tseng's weights: the gradient is taken between the mean and the mirrored iterate
            between = (1 - theta) * mean + theta * mirrored
            scores = torch.einsum("in,inc->nc", between, margin)
            wrong = scores.masked_fill(right, -math.inf).softmax(dim=1)
            duals = duals - rate / theta * torch.einsum("nc,inc->in", wrong, margin)  # the gradient of g by a_i
            mirrored = duals.softmax(dim=0)
            mean = (1 - theta) * mean + theta * mirrored
        return mean


class MinLogitEnsemble(LogitEnsemble):
    """The least margin of each class over the networks: z_t,c = min_i (z_i,c - z_i,y).

    Its cross-entropy is at most that of the best network.

    Example:
        >>> logits = torch.tensor([[[1.0, 2.0, -3.0]], [[0.0, -4.0, 4.0]]])
        >>> MinLogitEnsemble()(logits, torch.tensor([0]))
        tensor([[ 0., -4., -4.]])
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Combine logits (m, N, C) into logits (N, C) by class indices (N,)."""
        return margins(logits, target).amin(dim=0)


class GeneralEnsemble(LogitEnsemble):
    """The combination of least squared error on held-out data: z_t = sum_i w_i z_i, with sum_i w_i = 1.

    C_ij = sum_n (p_i(x_n) - t_n) . (p_j(x_n) - t_n) over the validation images, p the softmax at T = 1 and t one-hot;
    w_k = sum_j (C^-1)_kj / sum_ij (C^-1)_ij. A weight may be negative.

    The paper measures C on held-out data after each epoch. Here every validation does; before the first one the
    weights are equal. The errors are those of probabilities, while the logits are combined, as in the linear form:
    with a negative weight, a combination of probabilities would not be a distribution. A millionth of C's mean diagonal
    is added to its diagonal, so that networks with the same errors get the same weight. While the networks have nearly
    the same errors, weights of both signs may be large (4.3 and -3.9, measured after 100 steps): validate once the
    networks differ, with long epochs.

    Args:
        num_networks: The number of networks, the student included.

    Raises:
        UsageError: There are fewer than two networks.

    Example:
        >>> ensemble = GeneralEnsemble(num_networks=2)
        >>> ensemble.observe(torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]]), torch.tensor([0]))
        >>> ensemble.update()
        >>> ensemble.weights
        tensor([ 1.1565, -0.1565])
    """

    learns_from_validation = True
    weights: Tensor
    correlation: Tensor

    def __init__(self, num_networks: int) -> None:
        super().__init__()
        if num_networks < 2:
            raise UsageError(f"num_networks={num_networks} must be at least 2")
        self.num_networks = num_networks
        self.register_buffer("weights", torch.full((num_networks,), 1 / num_networks))
        self.register_buffer("correlation", torch.zeros(num_networks, num_networks), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Combine logits (m, N, C) into logits (N, C); the class indices (N,) are not used."""
        return torch.einsum("i,inc->nc", self.weights, logits)

    def observe(self, logits: Tensor, target: Tensor) -> None:
        """Add the errors of held-out logits (m, N, C) to the correlations C."""
        errors = logits.softmax(dim=2) - functional.one_hot(target, logits.shape[2])
        self.correlation += torch.einsum("inc,jnc->ij", errors, errors)  # i, j = networks, n = image, c = class

    def update(self) -> None:
        """Compute the weights from the correlations of all ranks, and reset them."""
        correlation = all_gather_with_grad(self.correlation.unsqueeze(0)).sum(dim=0).cpu().double()
        correlation.diagonal().add_(1e-6 * correlation.diagonal().mean() + 1e-30)
        shares = torch.linalg.solve(correlation, torch.ones_like(correlation[0]))
        self.weights.copy_(shares / shares.sum())
        self.correlation.zero_()


def margins(logits: Tensor, target: Tensor) -> Tensor:
    """Compute z_i,c - z_i,y, each class's logit less that of the right class, for logits (m, N, C)."""
    return logits - logits.gather(2, target.expand(len(logits), -1).unsqueeze(2))
