"""Read a file of weights as data, never as code, and refuse in one line what is no such file."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.hashing import hash_tensors

_SUFFIXES = {".ckpt", ".pt", ".pth", ".safetensors"}


class WeightsError(UsageError):
    """A file of weights that cannot be used: one line with the file, what is wrong with it, and the remedy."""


@dataclass(frozen=True)
class WeightsFile:
    """What a file of weights holds.

    Attributes:
        path: Where it was read.
        tensors: The tensors by name, on the CPU.
        student: How the student in it is built, ``{"class_path": ..., "init_args": ...}``, if the file says so.
        inference_network_name: Dotted name of the inference network in it, if it is a checkpoint.
    """

    path: Path
    tensors: dict[str, Tensor]
    student: dict[str, Any] | None
    inference_network_name: str = "student"


def read_weights(path: str | PathLike[str], whose: Literal["teacher", "student"]) -> WeightsFile:
    """Read a Lightning checkpoint, a state dict saved by ``torch.save`` or a safetensors file; the content decides.

    A file ``<path>.sha256`` beside it (``sha256sum``'s format) must agree with it, as must the hash of the tensors
    that our own exports carry. Nothing in the file is executed or imported.

    Args:
        path: A local file.
        whose: Which network's weights are wanted, for the message when they have not been trained yet.

    Raises:
        WeightsError: The file is missing, a folder, empty, truncated, changed since it was written, a web page, a
            git-LFS pointer, a pickle of more than tensors and plain values, or no state dict.
    """
    if "://" in str(path):
        raise WeightsError(f"{path}: weights are read from local files only: download it, and name the file")
    path = Path(path).expanduser()
    head = _first_bytes(path, whose)
    _verify(path)
    if path.suffix == ".safetensors" or head[8:9] == b"{":  # eight bytes of length, then JSON
        return _read_safetensors(path)
    return _read_torch(path, head)


def _first_bytes(path: Path, whose: str) -> bytes:
    """The first bytes of a regular file that is not empty and is none of the usual impostors."""
    if not path.exists():
        raise WeightsError(f"{path}: no such file{_what_is_there(path, whose)}")
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix in _SUFFIXES)
        there = f"name a file in it: {_some(inside)}" if inside else "it holds no checkpoint"
        raise WeightsError(f"{path}: is a folder, not a file: {there}")
    if not path.is_file():
        raise WeightsError(f"{path}: is no regular file: name a checkpoint, a state dict or a safetensors file")
    try:
        with path.open("rb") as stream:
            head = stream.read(256)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be opened: {error.strerror}") from None
    if not head:
        raise WeightsError(f"{path}: is empty: whatever wrote it was cut off; write or download it again")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: is a git-LFS pointer, not the weights themselves: fetch them with `git lfs pull`")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise WeightsError(f"{path}: is a web page (HTML), perhaps one that reports an error: download the file again")
    return head


def _what_is_there(path: Path, whose: str) -> str:
    """What to say of a missing file: the nearest names beside it, or that its run has not been trained."""
    beside = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
    weights = [name for name in beside if Path(name).suffix in _SUFFIXES]
    if path.suffix == ".ckpt" and not weights:
        return f", and no checkpoint in {path.parent}: train the {whose} first, or name the file of one that is trained"
    if not beside:
        return f", and no folder {path.parent}" if not path.parent.is_dir() else f", and {path.parent} is empty"
    return f"; the nearest in {path.parent}: {_some(get_close_matches(path.name, beside) or weights)}"


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _verify(path: Path) -> None:
    beside = path.with_name(path.name + ".sha256")
    if not beside.is_file():
        return
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if beside.read_text(encoding="utf-8", errors="replace").split()[:1] != [found]:
        raise WeightsError(
            f"{path}: is not the file that {beside.name} was written for (its sha256 is {found[:12]}...): "
            f"it is damaged or was replaced; write it again, or delete {beside.name} if that was on purpose"
        )


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            about: Any = json.loads((file.metadata() or {}).get("kd_lightning", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise WeightsError(f"{path}: is no whole safetensors file ({reason}): write or download it again") from None
    if not tensors:
        raise WeightsError(f"{path}: holds no weights: save the network's `state_dict()`")
    about = about if isinstance(about, dict) else {}
    if about and about.get("sha256") != hash_tensors(tensors):
        raise WeightsError(f"{path}: its tensors are not those that were exported: it is damaged; export it again")
    return WeightsFile(path, tensors, plain_network(about))


def _read_torch(path: Path, head: bytes) -> WeightsFile:
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise WeightsError(f"{path}: is truncated (its end is missing): write or download it again")
    try:
        if not head.startswith((b"PK", b"\x80")):
            raise UsageError("neither an archive nor a pickle")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises depends on where the damage is
        if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise WeightsError(
                f"{path}: holds the Python object {named[1]}, which could run code, so it is not opened: "
                "save the network's `state_dict()` instead, best as safetensors"
            ) from None
        raise WeightsError(
            f"{path}: is damaged, or is no checkpoint, state dict or safetensors file: "
            "write it again with `torch.save(network.state_dict(), path)`"
        ) from None
    state: Any = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(
            f"{path}: holds a {type(content).__name__} with no weights: save the network's `state_dict()`"
        )
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise WeightsError(
                f"{path}: is no state dict (its {name!r} is a {type(value).__name__}, not a tensor): "
                "save the network's `state_dict()`"
            )
    name = content.get("inference_network")
    name = name if isinstance(name, str) else "student"
    return WeightsFile(path, dict(state), plain_network(content.get("hyper_parameters"), name), name)


def plain_network(hyper_parameters: object, name: str = "student") -> dict[str, Any] | None:
    """How a network is built, if a run's hyper-parameters say so: a dict with a ``class_path`` at a dotted name.

    Example:
        >>> plain_network({"student": {"class_path": "kd_lightning.networks.StudentConvNet"}})
        {'class_path': 'kd_lightning.networks.StudentConvNet'}
        >>> plain_network({"peers": [{"class_path": "a.B"}, {"class_path": "a.C"}]}, "peers.1")
        {'class_path': 'a.C'}
    """
    found: Any = hyper_parameters
    for key in name.split("."):
        if isinstance(found, list):
            found = found[int(key)] if key.isdecimal() and int(key) < len(found) else None
        elif isinstance(found, dict):
            found = found.get("init_args", found).get(key)
    return found if isinstance(found, dict) and isinstance(found.get("class_path"), str) else None
