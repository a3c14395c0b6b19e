"""Knowledge in the teacher's parameters: a student that starts with some of its teacher's layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd_lightning.core.errors import UsageError


@torch.no_grad()
def copy_layers(student: nn.Module, teacher: nn.Module, layers: dict[str, str]) -> nn.Module:
    """Copies chosen layers of a teacher into a student, which goes on from there.

    Victor Sanh, Lysandre Debut, Julien Chaumond, Thomas Wolf: DistilBERT, a distilled version of BERT: smaller, faster,
    cheaper and lighter. 2019 (arXiv:1910.01108), whose student starts with every second layer of its teacher.

    Args:
        student: The network that learns, changed in place.
        teacher: The network to copy from; it stays as it is.
        layers: The teacher's layer by the student's: dotted names of submodules, with everything in them, or of single
            parameters.

    Returns:
        The student.

    Raises:
        UsageError: There is no such layer, it holds nothing to copy, or what it holds has other names or shapes.

    Example:
        >>> student = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
        >>> teacher = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        >>> bool((copy_layers(student, teacher, {"0": "0"})[0].weight == teacher[0].weight).all())
        True
    """
    if not layers:
        raise UsageError("layers is empty: name the teacher's layer for each of the student's that starts with it")
    for to, source in layers.items():
        ours, theirs = _tensors(student, to, "student"), _tensors(teacher, source, "teacher")
        shapes = [{name: tuple(tensor.shape) for name, tensor in side.items()} for side in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"layers: the student's {to!r} holds {shapes[0]} and the teacher's {source!r} {shapes[1]}: only layers "
                "of the same shapes can be inherited"
            )
        for name, tensor in ours.items():
            tensor.copy_(theirs[name])
    return student


def _tensors(network: nn.Module, name: str, side: str) -> dict[str, Tensor]:
    """Parameters and buffers of a layer, or one parameter: not its state dict, as a teacher left out has none."""
    everything = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers())
    found = {key[len(name) :]: tensor for key, tensor in everything.items() if f"{key}.".startswith(f"{name}.")}
    if not found:
        there = list(dict.fromkeys(key.rpartition(".")[0] for key in everything))
        raise UsageError(f"layers: the {side} has nothing to inherit under {name!r}; there are {', '.join(there)}")
    return found
