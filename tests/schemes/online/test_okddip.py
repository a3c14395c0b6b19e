from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.schemes import OKDDip
from tests import toys
from tests.schemes.online.test_mutual import batches, conv, follows, kl, sgd, terms, without_dropout


def networks() -> list[nn.Module]:
    """A leader of another architecture, and three peers."""
    return [conv(seed=9), *(toys.network(8, seed=seed) for seed in (1, 2, 3))]


def okddip(built: list[nn.Module], layer: str = "4", features: int = 8, **changes) -> OKDDip:
    torch.manual_seed(4)
    return OKDDip(built[0], built[1:], terms(temperature=3.0), layer=layer, features=features, **changes)


CASES = {"okddip": lambda: toys.Case(okddip(networks()))}


def targets(z: list[Tensor], h: list[Tensor], query: Tensor, key: Tensor) -> list[Tensor]:
    """t_a = sum_b alpha_ab z_b, image by image."""
    made = []
    for a in range(len(z)):
        rows = []
        for n in range(len(z[0])):
            scores = torch.stack([(query @ h[a][n]) @ (key @ h[b][n]) for b in range(len(z))])
            alpha = scores.exp() / scores.exp().sum()
            rows.append(sum(alpha[b] * z[b][n] for b in range(len(z))))
        made.append(torch.stack(rows))
    return made


def soft(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL, with gradients through the target."""
    p = (teacher / temperature).softmax(1)
    return temperature**2 * (p * (p.log() - (student / temperature).log_softmax(1))).sum() / len(student)


@pytest.mark.parametrize("layer", ["4", "pooled maps"])
def test_three_steps_are_those_of_a_plain_loop(layer, tmp_path):
    """The peers' logits and features are detached in the targets, through which only L and E learn."""
    built = without_dropout(networks() if layer == "4" else [toys.network(8, seed=9), *map(conv, (1, 2, 3))])
    learner = (
        okddip(copy.deepcopy(built), projection=3, optimizer=sgd)
        if layer == "4"
        else okddip(copy.deepcopy(built), layer="2", features=4, projection=3, optimizer=sgd)
    )
    query, key = copy.deepcopy(learner.query), copy.deepcopy(learner.key)

    def losses(x, y):
        z = [network(x) for network in built]
        fixed = [each.detach() for each in z[1:]]
        if layer == "4":  # all up to the classifier
            h = [functional.relu(peer[3](peer[2](peer[1](peer[0](x))))) for peer in kept(built[1:])]
        else:
            h = [functional.relu(peer[1](peer[0](x))).mean((2, 3)) for peer in kept(built[1:])]
        taught = targets(fixed, [each.detach() for each in h], query.weight, key.weight)
        kd = [soft(own, target, 3.0) for own, target in zip(z[1:], taught, strict=True)]
        leader = kl(z[0], sum(fixed) / 3, 3.0)
        return {"task": sum(functional.cross_entropy(each, y) for each in z), "kd": sum(kd) + leader}

    follows(learner, built, losses, {"task": 0.5, "kd": 0.7}, tmp_path, extra=(query, key))
    for ours, theirs in ((learner.query, query), (learner.key, key)):
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-7)


def kept(peers: list[nn.Module]) -> list[nn.Module]:
    """Copy the peers, so that recording features does not update the BatchNorm statistics twice."""
    return copy.deepcopy(peers)


def test_every_peer_has_its_own_target_and_only_the_projections_learn_through_it():
    learner = okddip(without_dropout(networks()))
    assert learner.query.weight.shape == learner.key.weight.shape == (1, 8)  # an eighth
    (batch, *_) = batches().batches
    seen: list[Tensor] = []
    learner.terms["kd"].loss.register_forward_hook(lambda _, args, __: seen.append(args[1]))
    learner.compute_losses(batch)
    leader, *peers = seen
    assert not leader.requires_grad
    assert all(not torch.allclose(peers[i], peers[j]) for i in range(3) for j in range(i))
    torch.stack(peers).square().sum().backward()
    moved = {name.split(".")[0] for name, p in learner.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"query", "key"}


def test_invalid_peers_widths_and_layers_raise():
    built = networks()
    with pytest.raises(ValueError, match="give at least two"):
        okddip(built[:2])
    with pytest.raises(ValueError, match="features=0 and projection=1 must be at least 1"):
        okddip(built, features=0)
    with pytest.raises(ValueError, match="features=8 and projection=0 must be at least 1"):
        okddip(built, projection=0)
    with pytest.raises(ValueError, match=r"layer '4' of a peer has the output \(16, 8\), which is not \(N, 7, ...\)"):
        okddip(built, features=7).compute_losses(batches().batches[0])
    with pytest.raises(ValueError, match="has no layer 'relu'"):
        okddip(built, layer="relu").compute_losses(batches().batches[0])
