"""A student that starts with a copy of some of its teacher's layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd_lightning.core.errors import UsageError


@torch.no_grad()
def copy_layers(student: nn.Module, teacher: nn.Module, layers: dict[str, str]) -> nn.Module:
    """Copy chosen layers of a teacher into a student, as its initial weights.

    Victor Sanh, Lysandre Debut, Julien Chaumond, Thomas Wolf: DistilBERT, a distilled version of BERT: smaller, faster,
    cheaper and lighter. 2019 (arXiv:1910.01108), whose student starts with every second layer of its teacher.

    Args:
        student: The student, changed in place.
        teacher: The network to copy from; it is not changed.
        layers: The teacher's layer by the student's: dotted names of submodules, copied whole, or of single parameters.

    Returns:
        The student.

    Raises:
        UsageError: There is no such layer, it has no parameters or buffers, or their names or shapes differ.

    Example:
        >>> student = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
        >>> teacher = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        >>> bool((copy_layers(student, teacher, {"0": "0"})[0].weight == teacher[0].weight).all())
        True
    """
    if not layers:
        raise UsageError("layers is empty: map each of the student's layers to the teacher's layer to copy")
    for to, source in layers.items():
        ours, theirs = _tensors(student, to, "student"), _tensors(teacher, source, "teacher")
        shapes = [{name: tuple(tensor.shape) for name, tensor in side.items()} for side in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"layers: the student's {to!r} has {shapes[0]} and the teacher's {source!r} {shapes[1]}: only layers "
                "of the same shapes can be copied"
            )
        for name, tensor in ours.items():
            tensor.copy_(theirs[name])
    return student


def _tensors(network: nn.Module, name: str, side: str) -> dict[str, Tensor]:
    """Find the parameters and buffers of a layer, or one parameter; an excluded teacher's state dict has none."""
    everything = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers())
    found = {key[len(name) :]: tensor for key, tensor in everything.items() if f"{key}.".startswith(f"{name}.")}
    if not found:
        there = list(dict.fromkeys(key.rpartition(".")[0] for key in everything))
        raise UsageError(f"layers: the {side} has nothing to copy under {name!r}; there are {', '.join(there)}")
    return found
