"""Every scheme and callback that a run is made of, found in the tests' tree: `CASES` of the test files beside them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from torch import nn

from tests import toys

ROOT = Path(__file__).parent
FOLDERS = ("schemes", "callbacks")


def cases() -> dict[str, Callable[[], toys.Case]]:
    """A fresh run of each kind, by name."""
    found = {name: _plain(build) for name, build in toys.LEARNERS.items()}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("test_*.py")):
            if "CASES" in path.read_text(encoding="utf-8"):
                found |= import_module(".".join(("tests", *path.relative_to(ROOT).with_suffix("").parts))).CASES
    return found


def one_of_each_folder() -> list[str]:
    """The first case of each folder of schemes or callbacks."""
    first: dict[str, str] = {}
    for name, build in cases().items():
        first.setdefault(build.__module__.rpartition(".")[0], name)
    return list(first.values())


def _plain(build: Callable[[], object]) -> Callable[[], toys.Case]:
    return lambda: toys.Case(build())


def without_cross_sample_layers(network: nn.Module) -> nn.Module:
    """BatchNorm made the identity and dropout switched off: what is left sees each sample by itself."""
    if isinstance(teacher := vars(network).get("teacher"), nn.Module):  # held outside the tree
        without_cross_sample_layers(teacher)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, nn.Identity())
    return network
