"""A warning, once a run, of soft targets whose gradient drowns that of the labels.

Terms of other losses are not compared: with features and relations, and with losses that normalize the logits, the
gradient of the first step may be 700 times that of the labels in the best of students (docs/temperature.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from kd_lightning.core.autograd_graph import graph_nodes
from kd_lightning.core.loss import loss_trait
from kd_lightning.core.term import Term

LIMIT = 10.0
"""The gradient of the terms, in multiples of that of the labels, above which a run is warned.

Measured with SGD at a rate of 0.01 (docs/temperature.md): 6 times is the best of all, 15 times costs 23 points.
"""
GOOD = 3.0
"""The multiple that the remedy aims at."""


def can_compare_gradients(trainer: Trainer) -> bool:
    """Tell if the first step may run additional backward passes: a resumed run had them, and shards allow none."""
    return trainer.ckpt_path is None and isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)


def soft_terms(terms: Mapping[str, Term]) -> dict[str, Term]:
    """Choose the terms of soft targets that have a weight."""
    return {name: term for name, term in terms.items() if term.weight and loss_trait(term.loss, "has_soft_targets")}


def warn_of_drowned_task(task: Tensor, terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
    """Compare the gradients of the first step, in two backward passes, and warn where the labels hardly count.

    A task loss of a weight below 1 is compared as if it had weight 1, as a small weight of the labels is a choice, and
    a large weight of the others is what makes the steps too long.

    Args:
        task: The loss of the labels.
        terms: The losses of soft targets by name, times their weights; none is no reason to warn.
        weights: Their weights.

    Example:
        >>> import warnings
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of_drowned_task(weight.sum(), {"kd": 60 * weight.sum()}, {"kd": 60.0})
        >>> str(caught[0].message)[:67]
        "the gradient of term 'kd' (norm 60) is 60 times that of the labels "
    """
    parameters = _leaves(task)
    if not terms or not parameters:
        return
    of_task = _norm(task, parameters)
    of_terms = _norm(sum(terms.values(), torch.zeros((), device=task.device)), parameters)
    if not of_task or not of_terms or of_terms <= LIMIT * of_task:
        return
    named = "terms " if len(terms) > 1 else "term "
    named += ", ".join(repr(name) for name in terms)
    ratio = of_terms / of_task
    lower = ", ".join(f"{name} {weights[name] * GOOD / ratio:.2g}" for name in terms)
    rank_zero_warn(
        f"the gradient of {named} (norm {of_terms:.3g}) is {ratio:.0f} times that of the labels ({of_task:.3g}) in the "
        f"first step: the labels hardly count, and without Adam's scaling the steps are as much longer. Lower the "
        f"weights, to {lower} for {GOOD:.0f} times, or the learning rate (docs/temperature.md has a recipe)"
    )


def _norm(loss: Tensor, parameters: Sequence[Tensor]) -> float | None:
    """Return the norm of a loss's gradient; None where its graph allows one backward pass alone, as compiled ones."""
    if not loss.requires_grad:
        return None
    try:
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    except RuntimeError:
        return None
    gradients: list[Tensor | None] = list(found)
    norms = [gradient.detach().float().norm() for gradient in gradients if gradient is not None]
    return torch.stack(norms).norm().item() if norms else 0.0


def _leaves(loss: Tensor) -> list[Tensor]:
    """List the parameters that a loss is computed from."""
    leaves = [getattr(node, "variable", None) for node in graph_nodes(loss)]
    return [leaf for leaf in leaves if isinstance(leaf, torch.nn.Parameter)]
