"""Private names of argparse and jsonargparse that this package touches, each under a plain name.

`tests/core/test_lightning_contract.py` asserts each of them by name. Neither torch nor Lightning is loaded here.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


def option_strings(parser: ArgumentParser) -> list[str]:
    """List the options of a parser in their written form, e.g. ``--config``."""
    return list(parser._option_string_actions)


def destinations(parser: ArgumentParser) -> list[str]:
    """List the names of a parser's results, those of positional arguments included."""
    return [action.dest for action in parser._actions]


@contextmanager
def values_read_by(loader: type[Any]) -> Generator[None]:
    """Let jsonargparse read the text of values with another loader of PyYAML, while the context is open.

    Its `set_loader` does not reach the numbers, whose loader is fixed.
    """
    from jsonargparse import _loaders_dumpers

    before = _loaders_dumpers.yaml_default_loader
    _loaders_dumpers.yaml_default_loader = loader
    try:
        yield
    finally:
        _loaders_dumpers.yaml_default_loader = before
