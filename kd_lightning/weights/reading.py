"""Read files of weights as data, never as code; any other file is refused in one line."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kd_lightning.core.errors import UsageError
from kd_lightning.core.hashing import hash_tensors
from kd_lightning.core.lookup import nearest
from kd_lightning.core.packaged import PREFIX, packaged_path

_SUFFIXES = {".ckpt", ".pt", ".pth", ".safetensors"}


class WeightsError(UsageError):
    """A file of weights cannot be used; the message is one line with the file, its fault and the remedy."""


@dataclass(frozen=True)
class WeightsFile:
    """The content of a file of weights.

    Attributes:
        path: The file's path.
        tensors: The tensors by name, on the CPU.
        student: The hyper-parameters that build its student, ``{"class_path": ..., "init_args": ...}``, if it has them.
        inference_network_name: Dotted name of a checkpoint's inference network.
    """

    path: Path
    tensors: dict[str, Tensor]
    student: dict[str, Any] | None
    inference_network_name: str = "student"


def read_weights(path: str | PathLike[str], whose: Literal["teacher", "student"]) -> WeightsFile:
    """Read a Lightning checkpoint, a state dict saved by ``torch.save`` or a safetensors file, recognized by content.

    The hash in a file ``<path>.sha256`` beside it (``sha256sum``'s format) must match, and so must the hash of the
    tensors in an export of `export_student`. Nothing in the file is executed or imported.

    Args:
        path: A local file, or the name of packaged weights: ``packaged:mnist/teacher-0``.
        whose: The network, for the message about a run that has not been trained yet.

    Raises:
        WeightsError: The file is missing, a directory, empty, truncated, changed since it was written, a web page, a
            git-LFS pointer, a pickle of more than tensors and plain values, or has no state dict.
    """
    if not isinstance(path, str | PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]  # unannotated code
        raise WeightsError(f"{path!r} is no path of the {whose}'s weights: name a checkpoint of a trained network")
    if str(path).startswith(PREFIX):
        path = packaged_path(str(path))
    if "://" in str(path):
        raise WeightsError(f"{path}: weights are read from local files only: download it, and name the file")
    path = Path(path).expanduser()
    head = _first_bytes(path, whose)
    _verify(path)
    if path.suffix == ".safetensors" or head[8:9] == b"{":  # eight bytes of length, then JSON
        return _read_safetensors(path)
    return _read_torch(path, head)


def _first_bytes(path: Path, whose: str) -> bytes:
    """Read the first bytes of a file; refuse directories, empty files, web pages and git-LFS pointers."""
    if not path.exists():
        raise WeightsError(f"{path}: no such file{_nearest_files(path, whose)}")
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix in _SUFFIXES)
        there = f"name a file in it: {_some(inside)}" if inside else "it contains no checkpoint"
        raise WeightsError(f"{path}: is a directory, not a file: {there}")
    if not path.is_file():
        raise WeightsError(f"{path}: is not a regular file: name a checkpoint, a state dict or a safetensors file")
    try:
        with path.open("rb") as stream:
            head = stream.read(256)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be opened: {error.strerror}") from None
    if not head:
        raise WeightsError(f"{path}: is empty, as after an interrupted write: write or download it again")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: is a git-LFS pointer, not the weights themselves: fetch them with `git lfs pull`")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise WeightsError(f"{path}: is a web page (HTML), perhaps an error page: download the file again")
    return head


def _nearest_files(path: Path, whose: str) -> str:
    """End the message about a missing file: the nearest names beside it, or the run to train first."""
    beside = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
    weights = [name for name in beside if Path(name).suffix in _SUFFIXES]
    if path.suffix == ".ckpt" and not weights:
        return f", and no checkpoint in {path.parent}: train the {whose} first, or name the checkpoint of a trained one"
    if not beside:
        return f", and no directory {path.parent}" if not path.parent.is_dir() else f", and {path.parent} is empty"
    return f"; the nearest in {path.parent}: {nearest(path.name, weights or beside, most=3)}"


def _some(names: list[str], most: int = 3) -> str:
    """Join the first names, and count the others."""
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
            f"it is corrupt or was replaced; write it again, or delete {beside.name} if it was replaced intentionally"
        )


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            about: Any = json.loads((file.metadata() or {}).get("kd_lightning", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise WeightsError(
            f"{path}: is corrupt or truncated safetensors ({reason}): write or download it again"
        ) from None
    if not tensors:
        raise WeightsError(f"{path}: has no weights: save the network's `state_dict()`")
    about = about if isinstance(about, dict) else {}
    if about and about.get("sha256") != hash_tensors(tensors):
        raise WeightsError(f"{path}: its tensors differ from the exported ones: it is corrupt; export it again")
    return WeightsFile(path, tensors, plain_network(about))


def check_archive(path: Path) -> None:
    """Compare the checksums in a file of ``torch.save`` with its content, which ``torch.load`` does not.

    Each entry of the archive has a CRC-32, which finds every single changed bit of its content. Files of other formats
    have none, and pass.

    Raises:
        WeightsError: The file is truncated, or one of its entries has changed since it was written.
    """
    if not _is_archive(path):
        return
    if not zipfile.is_zipfile(path):
        raise WeightsError(f"{path}: is truncated (its end is missing): write or download it again")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_entries(path, archive.infolist())
            damaged = archive.testzip()
    except WeightsError:
        raise
    except Exception as error:  # a corrupt archive may raise any error
        raise corrupt(path, str(error) or type(error).__name__) from None
    if damaged is not None:
        raise corrupt(path, f"the checksum of its entry {damaged} does not match")


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse entries that ``torch.save`` never writes: compressed or overlapping ones, and paths out of the archive."""
    wrong = ""
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        wrong = "compressed entries"
    elif sum(entry.file_size for entry in entries) > path.stat().st_size:
        wrong = "entries that overlap"
    elif names := [
        name for name in (entry.filename for entry in entries) if ".." in name.split("/") or name[:1] == "/"
    ]:
        wrong = f"the entry {names[0][:60]!r}"
    if wrong:
        raise WeightsError(
            f"{path}: has {wrong}, which `torch.save` never writes: save the network's `state_dict()` again"
        )


def check_version(content: object, path: str | PathLike[str]) -> None:
    """Refuse a run's checkpoint of a release of Lightning that cannot be: Lightning would try to migrate it.

    Args:
        content: The content of the file; one without a version passes.
        path: The file, for the message.

    Raises:
        WeightsError: The version is not that of a release from 2.0 on.

    Example:
        >>> check_version({"pytorch-lightning_version": "0.0.1"}, "last.ckpt")
        Traceback (most recent call last):
        kd_lightning.weights.reading.WeightsError: last.ckpt: claims to be of Lightning '0.0.1', and only checkpoints...
    """
    version = content.get("pytorch-lightning_version") if isinstance(content, Mapping) else None
    if version is not None and not re.fullmatch(r"(?:[2-9]|[1-9]\d)\.\d{1,4}[\w.+]{0,40}", str(version)):
        raise WeightsError(
            f"{path}: claims to be of Lightning {str(version)[:40]!r}, and only checkpoints of Lightning 2 or later "
            "are resumed: name a last.ckpt or best.ckpt of a run"
        )


def corrupt(path: str | PathLike[str], reason: str) -> WeightsError:
    """Build the error for a file of ``torch.save`` that is damaged."""
    return WeightsError(
        f"{path}: is corrupt ({' '.join(reason.split())[:100]}): "
        "use another checkpoint of the run, or write or download it again"
    )


def _is_archive(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"PK"


def _read_torch(path: Path, head: bytes) -> WeightsFile:
    if head.startswith(b"PK"):
        check_archive(path)
    try:
        if not head.startswith((b"PK", b"\x80")):
            raise UsageError("neither an archive nor a pickle")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt file may raise any error
        if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise WeightsError(
                f"{path}: contains the Python object {named[1]}, which could run code, so it is not opened: "
                "save the network's `state_dict()` instead, preferably as safetensors"
            ) from None
        raise WeightsError(
            f"{path}: is corrupt, or not a checkpoint, state dict or safetensors file: "
            "write it again with `torch.save(network.state_dict(), path)`"
        ) from None
    state: Any = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not is_state_dict(state) and (inner := dict(_state_dicts(content, ""))):
        state = {prefix + name: tensor for prefix, tensors in inner.items() for name, tensor in tensors.items()}
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(f"{path}: has a {type(content).__name__} without weights: save the network's `state_dict()`")
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise WeightsError(
                f"{path}: is not a state dict (its {name!r} is a {type(value).__name__}, not a tensor): "
                "save the network's `state_dict()`"
            )
    name = content.get("inference_network")
    name = name if isinstance(name, str) else "student"
    return WeightsFile(path, dict(state), plain_network(content.get("hyper_parameters"), name), name)


def is_state_dict(value: object) -> bool:
    """Tell if a value is a mapping of names to tensors, and not empty."""
    if not isinstance(value, Mapping) or not value:
        return False
    items = cast("Mapping[object, object]", value).items()
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in items)


def _state_dicts(content: object, prefix: str, depth: int = 3) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield the state dicts inside of nested dicts, with the keys that lead to them as a prefix.

    Those under numbers are an optimizer's.
    """
    if is_state_dict(content):
        yield prefix, cast("Mapping[str, Tensor]", content)
    elif isinstance(content, Mapping) and depth:
        for key, value in cast("Mapping[object, object]", content).items():
            if isinstance(key, str):
                yield from _state_dicts(value, f"{prefix}{key}.", depth - 1)


def plain_network(hyper_parameters: object, name: str = "student") -> dict[str, Any] | None:
    """Find the description of a network in a run's hyper-parameters: a dict with a ``class_path`` at a dotted name.

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
