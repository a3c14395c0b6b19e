"""Export of a student alone: safetensors with the hyper-parameters that rebuild it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

import kd_lightning
from kd_lightning.core.errors import UsageError
from kd_lightning.core.files import atomic_write
from kd_lightning.core.hashing import hash_tensors
from kd_lightning.core.lookup import nearest
from kd_lightning.weights.loading import strip_prefix
from kd_lightning.weights.reading import WeightsError, plain_network, read_weights


def export_student(module: nn.Module, path: str | PathLike[str]) -> Path:
    """Write a student as safetensors, and its sha256 beside it; ``load_student`` reads it back.

    Args:
        module: A ``Learner``, whose inference network is written, with the hyper-parameters that rebuild it where they
            are known; or a network, without them: ``load_student`` then needs it as ``network``.
        path: The file, ``*.safetensors``; an existing one is replaced in one step.

    Returns:
        The path.

    Raises:
        UsageError: The name does not end in ``.safetensors``, a LightningModule has no inference network, or a weight
            is not finite.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     export_student(nn.Linear(4, 2), f"{folder}/student.safetensors").name
        'student.safetensors'
    """
    from lightning.pytorch import LightningModule  # here: an export of a file needs no Lightning

    if not isinstance(module, LightningModule):
        return _write(module.state_dict(), None, path)
    name = getattr(module, "inference_network_name", "student")
    try:
        network = module.get_submodule(name)
    except AttributeError:
        raise UsageError(f"{type(module).__name__} has no network named `{name}`: export the network itself") from None
    return _write(network.state_dict(), plain_network(dict(module.hparams), name), path)


def export_checkpoint(checkpoint: str, output: str, network: str | None = None) -> Path:
    """Write the student of a Lightning checkpoint as safetensors; neither its teacher nor its class is needed.

    Args:
        checkpoint: A checkpoint of a `Learner`, which names its inference network: ``student`` in most.
        output: The file, ``*.safetensors``; an existing one is replaced in one step.
        network: Dotted name of another network of the checkpoint, such as ``backbone`` of a module that is no
            `Learner`; ``load_student`` then needs it as ``network``.

    Returns:
        The path written.

    Raises:
        WeightsError: The checkpoint cannot be read, or has no student or no such network.
        UsageError: The name of the output does not end in ``.safetensors``, or a weight is not finite.

    Example:
        >>> export_checkpoint("runs/mnist/distilled/bets.ckpt", "student.safetensors")
        Traceback (most recent call last):
        kd_lightning.weights.reading.WeightsError: runs/mnist/distilled/bets.ckpt: no such file...
    """
    file = read_weights(checkpoint, "student")
    name = file.inference_network_name if network is None else network
    tensors = strip_prefix(f"{name}.", file.tensors) if name else file.tensors
    if not tensors:
        tops = list(dict.fromkeys(key.partition(".")[0] for key in file.tensors if "." in key))
        if network is None:
            remedy = f"name the network to export with --network, as in --network {tops[0]}" if tops else "name another"
            there = f"its networks are {', '.join(tops[:8])}" if tops else "it has weights of no network"
            raise WeightsError(f"{file.path}: has no student: no key starts with '{name}.', {there}: {remedy}")
        names = {key[:end] for key in file.tensors for end in range(len(key)) if key[end] == "."}
        known = sorted(names, key=lambda each: (each.count("."), each))
        raise WeightsError(f"{file.path}: has no network {name!r}: name one with --network: {nearest(name, known)}")
    is_student = name == file.inference_network_name
    return _write(tensors, file.student if is_student else None, output)


def _write(state: Mapping[str, Tensor], student: dict[str, Any] | None, path: str | PathLike[str]) -> Path:
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise UsageError(f"output {str(path)!r}: name it *.safetensors, the format of the file")
    for name, tensor in state.items():
        # -inf may be a mask, and `load_student` compares it with the network's own
        if tensor.is_floating_point() and not bool((tensor.detach() < math.inf).all()):
            raise UsageError(f"output {str(path)!r}: {name} is not finite: export an earlier checkpoint")
    # Copies: safetensors accepts neither tied tensors nor non-contiguous ones.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    about = {"version": kd_lightning.__version__, "sha256": hash_tensors(tensors), "student": student}
    content = save(
        tensors, {"kd_lightning": json.dumps(about)}
    )  # one entry: safetensors does not fix the order of several
    beside = path.with_name(path.name + ".sha256")
    beside.unlink(missing_ok=True)  # first: an interruption must not leave a hash of another file
    with atomic_write(path) as stream:
        stream.write(content)
    with atomic_write(beside) as stream:
        stream.write(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode())
    return path
