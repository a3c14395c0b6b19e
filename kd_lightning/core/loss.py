"""DistillationLoss: the base class of all losses, with the traits that a loss declares."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

UNLABELED = -100
"""The label of a sample without one, to every loss, whatever a term's ``ignore_index`` is."""

LabelKind = Literal["classes", "multilabel", "values"]
"""Exclusive classes, classes that can hold together, or real values."""


class DistillationLoss(nn.Module):
    """A loss that a `Term` calls as ``loss(student, teacher, target)``, with the traits that the term reads.

    Any ``nn.Module`` with that signature can stand in a term. This class spells out the attributes that are read, each
    with the default that holds for a module without it. Set them on the class, or before a term is built.

    Example:
        >>> class SquaredDifference(DistillationLoss):
        ...     takes_rows = True
        ...
        ...     def forward(self, student, teacher, target=None):
        ...         return (student - teacher).square().mean()
        >>> SquaredDifference.takes_rows, SquaredDifference.compares_samples
        (True, False)
    """

    needs_target: bool = False
    """It cannot be computed without the label that its term addresses."""
    compares_samples: bool = False
    """It relates samples to each other, so that a term gathers the batch of all processes first."""
    differentiates_input: bool = False
    """It takes derivatives by the network's input."""
    takes_rows: bool | None = None
    """Logits of tokens or pixels reach it as rows (M, C); None: only where the term addresses ``"logits"``."""
    takes_maps: bool = False
    """It compares maps (N, C, H, W), which therefore never become rows."""
    softmax_over_classes: bool = False
    """It compares distributions over classes that exclude each other, so that no other kind of label fits it."""
    has_soft_targets: bool = False
    """Its gradient acts on the logits as that of the labels does, times weight and temperature: the two are compared
    in the first step (`kd_lightning.core.drowned_task`)."""
    takes_probabilities: bool = False
    """Probabilities are meant for its logits, so that these are not refused at the first step."""
    is_adversarial: bool = False
    """It has a discriminator that a scheme trains with a separate optimizer."""
    skips_unlabeled: bool = False
    """It averages over the samples with a label; those of class index -100 are left out."""
    label_kind: LabelKind | None = None
    """The kind of label that it takes as its target; a task loss declares it, and metrics follow it."""


def loss_trait(loss: nn.Module, name: str) -> Any:
    """Read a declared attribute of any module that is used as a loss.

    Example:
        >>> loss_trait(nn.MSELoss(), "needs_target")
        False
    """
    return getattr(loss, name, getattr(DistillationLoss, name))
