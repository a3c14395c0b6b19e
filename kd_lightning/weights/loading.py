"""Load weights from a file into a network: a frozen teacher, or a trained student."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from kd_lightning.core.freezing import WEIGHTS_FILE, exclude_from_state_dict, freeze
from kd_lightning.core.lookup import nearest
from kd_lightning.core.torch_internals import uncompiled
from kd_lightning.weights.names import tied_names, with_tied, without_wrappers
from kd_lightning.weights.reading import WeightsError, WeightsFile, read_weights
from kd_lightning.weights.rebuilding import rebuild


def load_teacher(network: nn.Module, checkpoint: str | PathLike[str], prefix: str | None = None) -> nn.Module:
    """Load a trained teacher: every key must match; the network is frozen and excluded from state dicts.

    Args:
        network: The network, built as for its training; its weights are replaced.
        checkpoint: A local Lightning checkpoint, state dict (``torch.save``) or safetensors file, or the name of
            packaged weights, ``packaged:mnist/teacher-0``.
        prefix: Prefix of the network's keys in the file, e.g. ``student``, or the end of one prefix alone.
            By default the one prefix is found under which the file has exactly the network's keys: ``student.``,
            ``module.model.``, none or another. A state dict inside another dict, as in ``{"model": ..., "epoch": 3}``,
            has the keys that lead to it as prefix.

    Returns:
        The same network, under ``freeze`` and ``exclude_from_state_dict``.

    Raises:
        WeightsError: The file cannot be read, does not fit the network, or has weights that are not finite.

    Example:
        >>> load_teacher(nn.Linear(4, 2), "runs/mnist/teacher/bets.ckpt")
        Traceback (most recent call last):
        kd_lightning.weights.reading.WeightsError: runs/mnist/teacher/bets.ckpt: no such file...
    """
    _load(network, read_weights(checkpoint, "teacher"), prefix)
    vars(network)[WEIGHTS_FILE] = str(checkpoint)
    return exclude_from_state_dict(freeze(network))


def load_student(
    path: str | PathLike[str],
    network: nn.Module | None = None,
    name: str | None = None,
    classes: Collection[type[nn.Module]] = (),
) -> nn.Module:
    """Load the student of a checkpoint or of an export; no teacher's file is needed.

    Args:
        path: A local checkpoint of a `Learner`, which names its inference network (``student`` in most), a file of
            ``export_student``, or the name of packaged weights, ``packaged:mnist/teacher-0``.
        network: The network to fill. By default it is built from the hyper-parameters in the file, of the classes of
            `kd_lightning.networks`, ``torch.nn`` and `classes` alone: loading a file imports nothing.
        name: Another network of the checkpoint than the inference network, e.g. ``peers.0``; needs `network`.
        classes: Your own classes that the file may name, with any arguments: name those that only build a network.

    Returns:
        The student, in eval mode and not frozen: call ``train()`` to train it further.

    Raises:
        WeightsError: The file cannot be read, has no hyper-parameters of the student, names another class, or does not
            fit it.

    Example:
        >>> load_student("https://example.org/student.ckpt")
        Traceback (most recent call last):
        kd_lightning.weights.reading.WeightsError: https://example.org/student.ckpt: weights are read from...
    """
    file = read_weights(path, "student")
    if name is None:
        tensors = strip_prefix(f"{file.inference_network_name}.", file.tensors) or file.tensors
    elif not (tensors := strip_prefix(f"{name}.", file.tensors)):
        networks = sorted({start.rstrip(".") for key in file.tensors for start, _ in _splits(key)} - {""}, key=len)
        raise WeightsError(f"{file.path}: has no network {name!r}; {_nearest(name, networks)}")
    elif network is None:
        raise WeightsError(f"{file.path}: pass {name!r} as `network`: a file can build the inference network alone")
    student = rebuild(file, classes) if network is None else network
    _load(student, WeightsFile(file.path, tensors, None), prefix=None)
    return student.eval()


def strip_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, under their names without it.

    Example:
        >>> list(strip_prefix("student.", {"student.weight": torch.zeros(1), "teacher.weight": torch.zeros(1)}))
        ['weight']
    """
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _load(network: nn.Module, file: WeightsFile, prefix: str | None) -> None:
    network = uncompiled(network)
    own: dict[str, Tensor] = network.state_dict()
    if not own:
        raise WeightsError(
            f"{file.path}: {type(network).__name__} has no weights to load: name the network they belong to"
        )
    tied = tied_names(network)
    if prefix is None:
        file = replace(file, tensors=without_wrappers(file.tensors, own))
        prefix = _find_prefix(own, file, tied)
        tensors = strip_prefix(prefix, file.tensors)
    else:
        prefix = _whole_prefix(prefix, file)
        tensors = without_wrappers(strip_prefix(prefix, file.tensors), own)
    tensors = with_tied(tensors, tied, type(network).__name__, file.path)
    _check_names(network, own, tensors, prefix, file)
    for name, tensor in tensors.items():
        _check_tensor(network, name, tensor, own[name], file.path)
    network.load_state_dict(tensors)


def _splits(key: str) -> Iterator[tuple[str, str]]:
    """Yield every split of a key into a prefix and a name: ``a.b`` is ("", "a.b") or ("a.", "b")."""
    parts = key.split(".")
    return ((".".join([*parts[:i], ""]), ".".join(parts[i:])) for i in range(len(parts)))


def _find_prefix(own: Mapping[str, Tensor], file: WeightsFile, tied: Mapping[str, str]) -> str:
    matches = Counter(prefix for key in file.tensors for prefix, name in _splits(key) if name in own)
    needed = {tied.get(name, name) for name in own}
    whole = [
        prefix for prefix in matches if {tied.get(name, name) for name in strip_prefix(prefix, file.tensors)} == needed
    ]
    if len(whole) > 1:
        raise WeightsError(
            f"{file.path}: has {len(whole)} networks with these keys, under {', '.join(sorted(whole))}: "
            "choose one with `prefix`"
        )
    # Without a complete one, the prefix with most of the names gives the best message about the missing ones.
    return whole[0] if whole else max(matches, key=matches.__getitem__, default="")


def _whole_prefix(prefix: str, file: WeightsFile) -> str:
    """Find a given prefix in the file, or the only longer one that ends with it: ``student.classifier``."""
    prefix = prefix if not prefix or prefix.endswith(".") else prefix + "."
    if any(key.startswith(prefix) for key in file.tensors):
        return prefix
    there = sorted({start for key in file.tensors for start, _ in _splits(key)} - {""}, key=len)
    longer = [start for start in there if start.endswith(f".{prefix}")]
    if len(longer) != 1:
        raise WeightsError(f"{file.path}: has no key under the prefix {prefix!r}; {_nearest(prefix, there)}")
    return longer[0]


def _check_names(
    network: nn.Module, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], prefix: str, file: WeightsFile
) -> None:
    if own.keys() == tensors.keys():
        return
    missing, unexpected = [name for name in own if name not in tensors], [name for name in tensors if name not in own]
    wrong = [
        f"{len(names)} {what}, the first {names[0]!r}"
        for what, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    hint = f" ({_nearest(missing[0], unexpected or list(tensors))})" if missing else ""
    raise WeightsError(
        f"{file.path}: its keys{f' under {prefix!r}' if prefix else ''} are not those of {type(network).__name__}: "
        f"{' and '.join(wrong)}{hint}: build the saved network, or give the prefix of its keys as `prefix`"
    )


def _check_tensor(network: nn.Module, name: str, tensor: Tensor, own: Tensor, path: Path) -> None:
    here = type(network).__name__
    if tensor.shape != own.shape:
        raise WeightsError(
            f"{path}: {name} has shape {tuple(tensor.shape)} in the file and {tuple(own.shape)} in {here}: "
            "build the network with the file's widths and number of classes"
        )
    if tensor.is_floating_point() != own.is_floating_point():
        raise WeightsError(
            f"{path}: {name} is {tensor.dtype} in the file and {own.dtype} in {here}: save it as {own.dtype}"
        )
    value = tensor.to(own)
    # A mask of -inf that the network is built with is intended.
    if bad := int((~torch.isfinite(value) & (value != own)).sum()):
        raise WeightsError(
            f"{path}: {bad} of the {value.numel()} values of {name} are not finite: "
            "the run that wrote it diverged; use an earlier checkpoint"
        )


def _nearest(name: str, names: list[str]) -> str:
    return f"the nearest in the file: {nearest(name, names, most=2) or 'none'}"
