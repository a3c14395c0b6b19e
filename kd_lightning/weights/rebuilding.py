"""Rebuild the network that a file of weights describes, of classes that build networks and do nothing else."""

from __future__ import annotations

import sys
from collections.abc import Collection, Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules import module as registration
from torch.nn.parameter import is_lazy

from kd_lightning.core.channels import repeat_channels
from kd_lightning.core.errors import UsageError
from kd_lightning.core.failures import one_line, shortened
from kd_lightning.core.renamed import renamed_class
from kd_lightning.weights.reading import WeightsError, WeightsFile

OURS = ("kd_lightning.networks.", "torch.nn.modules.")
"""Beginnings of the modules whose networks a file may name."""
_FILLED = {
    ("kd_lightning.weights.copying", "copy_layers"): "student",
    ("kd_lightning.weights.pruning", "prune"): "student",
    ("kd_lightning.weights.loading", "load_student"): "network",
}
"""Functions that return the network in one of their arguments with other weights, which the file has."""
MOST_PARTS = 100_000
"""Layers and parameters of a network that a file may describe."""


def rebuild(file: WeightsFile, classes: Collection[type[nn.Module]] = ()) -> nn.Module:
    """Build the network of a file's hyper-parameters, with new weights.

    It is built without memory first, so that a file of a few bytes cannot ask for a network of terabytes.

    Args:
        file: A file that was read.
        classes: Classes besides those of `kd_lightning.networks` and ``torch.nn`` that the file may name.

    Raises:
        WeightsError: The file has no hyper-parameters, names another class, or its student cannot be built.
    """
    if file.student is None:
        raise WeightsError(f"{file.path}: has no hyper-parameters to build its student: pass it as `network`")
    try:
        with _limited_parts():
            _check_size(file, classes)
            return _build(file.student, classes)
    except Exception as error:  # a constructor may raise any error
        reason = shortened(one_line(error))
        raise WeightsError(f"{file.path}: its student cannot be built ({reason}): pass it as `network`") from None


def _check_size(file: WeightsFile, classes: Collection[type[nn.Module]]) -> None:
    """Build the network on the meta device, and compare its size with the file's."""
    try:
        with torch.device("meta"):
            draft: object = _build(file.student, classes)
    except UsageError:
        raise
    except Exception:  # a network that cannot be built there, or at all
        return
    if isinstance(draft, nn.Module):
        parts = [*draft.parameters(), *draft.buffers()]
        needed = sum(part.numel() for part in parts if not is_lazy(part))
        there = sum(tensor.numel() for tensor in file.tensors.values())
        if needed > 4 * there + 10**7:
            raise UsageError(f"it would have {needed:,} values, and the file has {there:,}")


@contextmanager
def _limited_parts() -> Generator[None]:
    number = 0

    def count(*_: Any) -> None:
        nonlocal number
        number += 1
        if number > MOST_PARTS:
            raise UsageError(f"it has more than {MOST_PARTS:,} layers and parameters")

    handles = [
        registration.register_module_module_registration_hook(count),
        registration.register_module_parameter_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _build(value: Any, classes: Collection[type[nn.Module]]) -> Any:
    """Build the network of every dict with a ``class_path``; other values are returned unchanged."""
    if isinstance(value, list):
        return [_build(item, classes) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    content = cast("dict[str, Any]", value)
    if "class_path" not in content:
        return {key: _build(item, classes) for key, item in content.items()}
    if unknown := content.keys() - {"class_path", "init_args"}:
        raise UsageError(f"besides class_path and init_args it has {', '.join(map(repr, unknown))}")
    found, arguments = _find(content["class_path"]), content.get("init_args") or {}
    filled = _FILLED.get((getattr(found, "__module__", ""), getattr(found, "__name__", "")))
    if filled in arguments:
        return _build(arguments[filled], classes)
    if found is repeat_channels:
        return repeat_channels(**_build(arguments, classes))
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        new = renamed_class(content["class_path"])
        raise UsageError(f"{content['class_path']} is " + (f"now {new}" if new else "not a class of networks"))
    if not found.__module__.startswith(OURS) and found not in classes:
        raise UsageError(
            f"{content['class_path']} is no network of kd_lightning.networks or torch.nn: if you trust the file, pass "
            "its class in `classes`"
        )
    return found(**_build(arguments, classes))


def _find(class_path: str) -> Any:
    module_name, _, name = class_path.rpartition(".")
    # Looked up and never imported; in `vars`, because `getattr` may import lazily.
    module = sys.modules.get(module_name or "kd_lightning.networks")
    if module is None and module_name.startswith("kd_lightning.networks."):  # the class may have moved since
        module = sys.modules.get("kd_lightning.networks")
    if module is None:
        new = renamed_class(class_path)
        raise UsageError(
            f"{class_path} is now {new}"
            if new
            else f"the module of {class_path} is not imported: import it, and pass its class in `classes`"
        )
    return vars(module).get(name)
