"""Look-up of names, and the nearest right names for the message about a wrong one. Loads torch only for networks."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

from kd_lightning.core.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


def nearest(wrong: str, names: Iterable[str], most: int = 8) -> str:
    """List the names most like a wrong one, or the first of all where none is like it.

    Example:
        >>> nearest("conv.4", ["conv.0", "conv.2", "classifier"])
        'conv.2, conv.0'
        >>> nearest("x", ["conv.0", "conv.2"])
        'conv.0, conv.2'
    """
    names = list(names)
    return ", ".join(get_close_matches(wrong, names, n=3, cutoff=0.3) or names[:most])


def did_you_mean(wrong: str, names: Iterable[str]) -> str:
    """Format the name most like a wrong one as the end of a message; empty if none is like it.

    Example:
        >>> did_you_mean("wieght", ["weight", "loss"])
        "; did you mean 'weight'?"
    """
    close = get_close_matches(wrong, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def suggestion(wrong: str, names: Iterable[str]) -> str:
    """Format the name most like a wrong one, or else all names if they are at most 12, as the end of a message.

    Example:
        >>> suggestion("wieght", ["weight", "loss"])
        "; did you mean 'weight'?"
        >>> suggestion("size", ["weight", "loss"])
        "; there are 'loss', 'weight'"
    """
    names = sorted(set(names))
    if end := did_you_mean(wrong, names):
        return end
    verb = "is" if len(names) == 1 else "are"
    return f"; there {verb} {', '.join(map(repr, names))}" if 0 < len(names) <= 12 else ""


def choose(name: str, names: Iterable[str], what: str) -> str:
    """Return a name that is one of several.

    Raises:
        UsageError: It is none of them (the nearest are given).

    Example:
        >>> choose("kdd", ["kd", "task"], "there is no term {name} to schedule")
        Traceback (most recent call last):
        kd_lightning.core.errors.UsageError: there is no term 'kdd' to schedule; the nearest names are kd
    """
    names = list(names)
    if name in names:
        return name
    raise UsageError(f"{what.format(name=repr(name))}; the nearest names are {nearest(name, names)}")


def find_network(module: nn.Module, name: str, purpose: str) -> nn.Module:
    """Return a network in a module by its dotted name, a teacher that the module holds outside its tree included.

    Args:
        module: The module.
        name: The network's name; an empty one is the module itself.
        purpose: The purpose for the message, as in "to compile".

    Raises:
        UsageError: There is none of that name (the nearest names are given).

    Example:
        >>> from torch import nn
        >>> find_network(nn.Sequential(nn.Linear(4, 2)), "0", "to compile")
        Linear(in_features=4, out_features=2, bias=True)
    """
    try:
        return module.get_submodule(name)
    except AttributeError:
        names = network_names(module)
    raise UsageError(
        f"{type(module).__name__} has no network {name!r} {purpose}; the nearest names are {nearest(name, names)}"
    )


def network_names(module: nn.Module) -> list[str]:
    """List the dotted names of all networks in a module, of a teacher that it holds outside its tree included."""
    from torch import nn

    names = [name for name, _ in module.named_modules(remove_duplicate=False) if name]
    for attribute, held in vars(module).items():
        if isinstance(held, nn.Module):
            names += [f"{attribute}.{name}".rstrip(".") for name, _ in held.named_modules(remove_duplicate=False)]
    return names
