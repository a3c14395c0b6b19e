"""Private names of argparse that this package touches, each under a plain name.

`tests/core/test_lightning_contract.py` asserts each of them by name. Neither torch nor Lightning is loaded here.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from argparse import ArgumentParser


def option_strings(parser: ArgumentParser) -> list[str]:
    """List the options of a parser in their written form, e.g. ``--config``."""
    return list(parser._option_string_actions)


def destinations(parser: ArgumentParser) -> list[str]:
    """List the names of a parser's results, those of positional arguments included."""
    return [action.dest for action in parser._actions]
