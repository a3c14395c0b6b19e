"""Three steps of two players, written out: what each test of a two-player scheme holds its learner to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from tests import toys
from tests.schemes.online.test_mutual import batches

CLIP = 0.5
"""Norm that the gradients of each optimizer are clipped to."""


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def halved(optimizer: torch.optim.Optimizer) -> StepLR:
    return StepLR(optimizer, 1, gamma=0.5)


def clip(optimizer: torch.optim.Optimizer) -> float:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, CLIP).item()


def follows(
    learner: Any,
    ours: dict[str, nn.Module],
    theirs: dict[str, nn.Module],
    moves: Callable[[Tensor, Tensor], tuple[Tensor, Callable[[], dict[str, Tensor]]]],
    weights: dict[str, float],
    folder: Any,
) -> None:
    """The learner's three steps are those of a plain loop, clipped and scheduled for each optimizer by itself.

    `moves` gives the discriminators' loss of a batch, and what computes the networks' losses once they have moved;
    `ours` names the copies of networks that learn by the second, `theirs` the discriminators, by their names in the
    learner.
    """
    logged: list[dict[str, float]] = []
    told: list[float] = []
    learner.log_dict = lambda values, **_: logged.append({k: float(v) for k, v in values.items()})
    learner.log = lambda name, value, **_: told.append(float(value)) if name == "train/discriminator" else None
    learner.build_lr_scheduler, learner.lr_interval = halved, "step"
    toys.trainer(folder, max_epochs=1, gradient_clip_val=CLIP).fit(learner, batches())
    optimizers = [sgd([p for n in side.values() for p in n.parameters()]) for side in (ours, theirs)]
    schedulers, norms = [halved(optimizer) for optimizer in optimizers], []
    for step, (x, y) in enumerate(batches()):
        torch.manual_seed(step)
        discriminators, networks = moves(x, y)
        optimizers[1].zero_grad()
        discriminators.backward(retain_graph=True)
        norms.append(clip(optimizers[1]))
        optimizers[1].step()
        losses = networks()
        optimizers[0].zero_grad()
        torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()
        norms.append(clip(optimizers[0]))
        optimizers[0].step()
        for scheduler in schedulers:
            scheduler.step()
        seen = {name.removeprefix("train/"): value for name, value in logged[step].items() if "train/" in name}
        assert seen == pytest.approx({name: loss.item() for name, loss in losses.items()}, rel=1e-4, abs=1e-6)
        assert told[step] == pytest.approx(discriminators.item(), rel=1e-4)
    assert max(norms) > CLIP  # else nothing was clipped
    for name, network in (ours | theirs).items():
        truth = network.state_dict()
        for key, value in learner.get_submodule(name).state_dict().items():
            where = f"{name}.{key}: "
            torch.testing.assert_close(value, truth[key], rtol=1e-4, atol=1e-6, msg=where.__add__)
