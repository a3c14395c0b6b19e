"""Checks that a term can teach: its loss is a scalar with the student's graph, of the samples and labels it gets."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kd_lightning.core.activations import Activations
from kd_lightning.core.autograd_graph import graph_nodes
from kd_lightning.core.errors import TooFewSamplesError, UsageError
from kd_lightning.core.label_kinds import are_distributions
from kd_lightning.core.loss import loss_trait
from kd_lightning.core.term import Term, names
from kd_lightning.core.torch_internals import is_of_convolution

MORE_SAMPLES = "set drop_last=True of the training loader, or a batch_size that leaves more"


def check_can_teach(name: str, term: Term, student: Activations, loss: Any) -> None:
    """Check that a loss is a scalar that the student can learn from.

    Raises:
        UsageError: It is not, with the term and the layer.
    """
    if not isinstance(loss, Tensor) or loss.dim():
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UsageError(
            f"term {name!r}: {type(term.loss).__name__} gave {found}, not a scalar: let its forward average over the "
            "batch"
        )
    layers = names(term.student)
    if layers and not any(student[layer].requires_grad for layer in layers):
        raise UsageError(
            f"term {name!r} cannot teach the student: {', '.join(layers)} of the student requires no gradient "
            "(frozen layers, no_grad, detach() or a reentrant checkpoint): address a layer that learns, or "
            "give the term weight 0"
        )
    derives = loss_trait(term.loss, "differentiates_input")  # whose graph need not go through the outputs
    if layers and not (
        loss.requires_grad if derives else _is_computed_from(loss, [student[layer] for layer in layers])
    ):
        raise UsageError(
            f"term {name!r} cannot teach the student: {type(term.loss).__name__} gave a value without the graph of "
            f"{', '.join(layers)} (detach(), no_grad, .data or .item() in its forward): compute it from the tensors "
            "that it is given"
        )
    for layer in layers if term.class_dim is None and term.makes_rows() else ():
        if student[layer].dim() == 3 and is_of_convolution(student[layer]):
            raise UsageError(
                f"term {name!r}: {layer} of the student, {tuple(student[layer].shape)}, is the output of a "
                "convolution, which has its classes before the positions: set class_dim=1 of the term for (N, C, L), "
                "or class_dim=-1 if it is (N, L, C) nevertheless"
            )


def check_single_sample(
    name: str, term: Term, student: Activations, teacher: Activations | None, labels: Mapping[str, Tensor]
) -> None:
    """Check that a term can be computed of the one sample that the last batch of an epoch has.

    Raises:
        UsageError: Its loss compares samples with each other, or has a BatchNorm.
    """
    count = len(next(iter(student.values())))
    if not loss_trait(term.loss, "compares_samples") or count < 2:
        return

    def first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: value[:1] if len(value) == count else value for key, value in tensors.items()}

    devices = {value.device for value in student.values() if value.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(devices):
        try:
            copy.deepcopy(term)(first(student), None if teacher is None else first(teacher), first(labels))
        except ValueError as error:
            if isinstance(error, TooFewSamplesError) or "more than 1 value per channel" in str(error):
                raise UsageError(
                    f"the last batch of an epoch has 1 sample, and term {name!r} ({type(term.loss).__name__}) needs at "
                    f"least 2: {MORE_SAMPLES}"
                ) from error


def check_kind_of_label(name: str, term: Term, student: Activations, labels: Mapping[str, Tensor]) -> None:
    """Check that a loss over classes that exclude each other is not used beside labels that can hold together.

    Raises:
        UsageError: It is, with the term and the loss to use.
    """
    if not loss_trait(term.loss, "softmax_over_classes") or not isinstance(term.student, str):
        return
    outputs, label = student[term.student], labels.get(term.target) if isinstance(term.target, str) else None
    if not isinstance(label, Tensor) or label.shape != outputs.shape or label.dim() not in (2, 3):
        return
    if not are_distributions(label):
        raise UsageError(
            f"term {name!r}: {type(term.loss).__name__} compares distributions over classes that exclude each other, "
            f"and the rows of the label {tuple(label.shape)} do not sum to 1: for labels that can hold together use "
            "BernoulliKDLoss and BinaryTaskLoss, for real values LogitMSELoss and RegressionTaskLoss"
        )


def _is_computed_from(loss: Tensor, tensors: list[Tensor]) -> bool:
    """Tell if one of the tensors is part of a loss's graph."""
    wanted = {tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None}
    leaves = {id(tensor) for tensor in tensors if tensor.grad_fn is None and tensor.requires_grad}
    return any(node in wanted or id(getattr(node, "variable", None)) in leaves for node in graph_nodes(loss))
