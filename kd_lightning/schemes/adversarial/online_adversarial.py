"""Online adversarial distillation: peers in a ring, each with a discriminator that separates it from the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.activations import Activations, logits, tap
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.term import Term, names
from kd_lightning.losses import AdversarialLoss
from kd_lightning.schemes.adversarial.two_players import TwoPlayerLearner
from kd_lightning.schemes.online.peers import detached


class PeerOutputs(NamedTuple):
    """The activations of all networks for one batch, the student's first."""

    networks: list[Activations]
    labels: dict[str, Tensor]


class OnlineAdversarialDistiller(TwoPlayerLearner[PeerOutputs]):
    """Train peers together: each from the labels, from the next one's outputs, and by misleading a discriminator.

    L_k = CE(z_k, y) + T^2 KL(softmax(z_{k+1} / T) || softmax(z_k / T)) + (1 - D_k(F_k))^2

    L_{D_k} = (1 - D_k(F_{k+1}))^2 + D_k(F_k)^2

    for each of K networks in a ring, with everything of network k + 1 held fixed. With two networks each teaches the
    other.

    Inseop Chung, SeongUk Park, Jangho Kim, Nojun Kwak: Feature-map-level Online Adversarial Knowledge Distillation.
    ICML 2020 (arXiv:2002.01775). The paper has T = 3. It minimises the losses on features and on logits with separate
    optimizers; here a network has one step on both. It maps both sides to one width by a layer of either network; here
    the connector of `AdversarialLoss` maps network k to the width of the next one.

    A term without a teacher is summed over the networks, a term with a teacher over the ring. The other arguments are
    those of `TwoPlayerLearner`.

    Args:
        student: The first of the networks, and the one that is evaluated and exported.
        peers: The others, of any architectures.
        terms: The losses of all networks, by name, with the same addresses.
        adversaries: A term for each network, the student first: an `AdversarialLoss` of its layer (``student``) and the
            next one's (``teacher``). Their losses are ``adversarial_0``, ``adversarial_1``, ...

    Raises:
        UsageError: There is no peer, there are not as many adversaries as networks, or networks share parameters.

    Example:
        >>> from kd_lightning.losses import LeastSquaresAdversarialLoss, TaskLoss
        >>> from kd_lightning.networks import ConvDiscriminator, StudentConvNet
        >>> learner = OnlineAdversarialDistiller(
        ...     StudentConvNet(),
        ...     [StudentConvNet()],
        ...     terms={"task": Term(TaskLoss(), teacher=None)},
        ...     adversaries=[
        ...         Term(LeastSquaresAdversarialLoss(ConvDiscriminator(32)), student="conv.3", teacher="conv.3")
        ...         for _ in range(2)
        ...     ],
        ... )
        >>> sorted(learner.compute_losses((torch.zeros(2, 3, 28, 28), torch.tensor([3, 7]))))
        ['adversarial_0', 'adversarial_1', 'task']
    """

    def __init__(
        self,
        student: nn.Module,
        peers: Sequence[nn.Module],
        terms: dict[str, Term],
        adversaries: Sequence[Term],
        optimizer: OptimizerCallable = torch.optim.Adam,
        discriminator_optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        named = {f"adversarial_{k}": term for k, term in enumerate(adversaries)}
        super().__init__(student, terms | named, optimizer, discriminator_optimizer, lr_scheduler, lr_interval, metrics)
        if not peers:
            raise UsageError("peers is empty: give the student at least one network to learn with")
        if len(adversaries) != len(peers) + 1:
            raise UsageError(f"{len(adversaries)} adversaries for {len(peers) + 1} networks: give one for each")
        for name, term in named.items():
            if not isinstance(term.loss, AdversarialLoss):
                kind = type(term.loss).__name__
                raise UsageError(f"{name} is a {kind}, which has no discriminator: give an AdversarialLoss")
        self.peers = nn.ModuleList(peers)
        self.common = list(terms)
        self.adversaries = list(named)
        parameters = [parameter for network in self.networks().values() for parameter in network.parameters()]
        if len(set(parameters)) < len(parameters):
            raise UsageError("two of the networks share parameters, so that they could not differ: copy one of them")
        self.evaluated_networks = list(self.networks())

    def networks(self) -> dict[str, nn.Module]:
        """Return the student and its peers, by their names in this module."""
        return {"student": self.student} | {f"peers.{i}": peer for i, peer in enumerate(self.peers)}

    def evaluated_logits(self, inputs: Any) -> dict[str, Tensor]:
        """Compute the logits of each network."""
        return {name: logits(network, inputs) for name, network in self.networks().items()}

    def discriminators(self) -> list[nn.Module]:
        """Return the discriminators, one for each network."""
        return [cast("AdversarialLoss", self.terms.all()[name].loss).discriminator for name in self.adversaries]

    def network_outputs(self, batch: Any) -> PeerOutputs:
        """Run each network, and record the layers that its own terms address."""
        split = self.split_batch(batch)
        networks = list(self.networks().values())
        common = [self.terms.all()[name] for name in self.common]
        seen: list[Activations] = []
        for k, network in enumerate(networks):
            own, before = (self.terms.all()[self.adversaries[i]] for i in (k, k - 1))  # the ring: -1 is the last
            layers = names(own.student) + names(before.teacher)
            layers += [layer for term in common for layer in names(term.student) + names(term.teacher)]
            seen.append(tap(network, split.student, dict.fromkeys(layers)))
        return PeerOutputs(seen, split.labels)

    def discriminator_loss(self, outputs: PeerOutputs) -> Tensor:
        """Compute the sum of the discriminators' losses."""
        found: list[Tensor] = []
        for name, (own, following) in zip(self.adversaries, _ring(outputs.networks), strict=True):
            term = self.terms.all()[name]
            found.append(term(own, following, outputs.labels, measure=term.loss.discriminator_loss))  # pyright: ignore
        return torch.stack(found).sum()

    def losses(self, outputs: PeerOutputs) -> dict[str, Tensor]:
        """Compute the common terms, summed over networks or ring, and each network's own term."""
        ring, terms = _ring(outputs.networks), self.terms.all()
        found = {
            name: torch.stack([terms[name](own, following, outputs.labels) for own, following in ring]).sum()
            for name in self.common
        }
        for name, (own, following) in zip(self.adversaries, ring, strict=True):
            found[name] = terms[name](own, following, outputs.labels)
        return found


def _ring(networks: list[Activations]) -> list[tuple[Activations, Activations]]:
    """Pair the activations of each network with those of the next one, detached."""
    return [(own, detached(networks[(k + 1) % len(networks)])) for k, own in enumerate(networks)]
