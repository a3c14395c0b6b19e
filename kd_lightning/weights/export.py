"""The student alone, as a file to deploy: safetensors that says how to rebuild it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

import kd_lightning
from kd_lightning.core.errors import UsageError
from kd_lightning.core.hashing import hash_tensors
from kd_lightning.weights.loading import strip_prefix
from kd_lightning.weights.reading import WeightsError, plain_network, read_weights


def export_student(module: nn.Module, path: str | PathLike[str]) -> Path:
    """Write a student as safetensors, and its sha256 beside it; ``load_student`` reads it back.

    Args:
        module: A ``Learner``, whose ``student`` is written with the hyper-parameters that rebuild it where they are
            known; or a network, which ``load_student`` will ask for again as ``network``.
        path: The file to write, ``*.safetensors``; one that exists is replaced, in one step.

    Returns:
        The path.

    Raises:
        UsageError: The name is no ``*.safetensors``, or a LightningModule has no ``student``.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     export_student(nn.Linear(4, 2), f"{folder}/student.safetensors").name
        'student.safetensors'
    """
    from lightning.pytorch import LightningModule  # here, so that an export of a file does not wait for it

    if not isinstance(module, LightningModule):
        return _write(module.state_dict(), None, path)
    name = getattr(module, "inference_network_name", "student")
    try:
        network = module.get_submodule(name)
    except AttributeError:
        raise UsageError(f"{type(module).__name__} has no network named `{name}`: export the network itself") from None
    return _write(network.state_dict(), plain_network(dict(module.hparams), name), path)


def export(checkpoint: str, output: str) -> Path:
    """Write the student of a Lightning checkpoint as safetensors; neither its teacher nor its class is needed.

    Args:
        checkpoint: A checkpoint of ours: the student's keys start with ``student.``.
        output: The file to write, ``*.safetensors``; one that exists is replaced, in one step.

    Returns:
        The path written.

    Raises:
        WeightsError: The checkpoint cannot be read or holds no student.
        UsageError: The name of the output is no ``*.safetensors``.

    Example:
        >>> export("runs/mnist/distilled/bets.ckpt", "student.safetensors")
        Traceback (most recent call last):
        kd_lightning.weights.reading.WeightsError: runs/mnist/distilled/bets.ckpt: no such file...
    """
    file = read_weights(checkpoint, "student")
    name = file.inference_network_name
    tensors = strip_prefix(f"{name}.", file.tensors)
    if not tensors:
        first = next(iter(file.tensors))
        raise WeightsError(f"{file.path}: holds no student: no key starts with '{name}.', the first is {first!r}")
    return _write(tensors, file.student, output)


def _write(state: Mapping[str, Tensor], student: dict[str, Any] | None, path: str | PathLike[str]) -> Path:
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise UsageError(f"output {str(path)!r}: name it *.safetensors, the format that is written")
    # A copy of each, for safetensors takes neither tied tensors nor other layouts than the contiguous one.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    about = {"version": kd_lightning.__version__, "sha256": hash_tensors(tensors), "student": student}
    content = save(tensors, {"kd_lightning": json.dumps(about)})  # one entry: safetensors writes several in any order
    beside = path.with_name(path.name + ".sha256")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.unlink(missing_ok=True)  # first, so that an interruption leaves no hash beside a file that it is not of
    _replace(path, content)
    _replace(beside, f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode())
    return path


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that whoever looks sees the old one or the whole new one, even after a crash."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
