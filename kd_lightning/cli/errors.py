"""One line for the user, in place of a traceback or a page of usage."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import NoReturn

from kd_lightning.cli.argparse_internals import option_strings
from kd_lightning.core.errors import UsageError


class Parser(ArgumentParser):
    """Complains in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raises the complaint."""
        if message.startswith("unrecognized arguments: "):
            wrong = message.split()[2].partition("=")[0]
            message = f"there is no option {wrong}{nearest(wrong, option_strings(self))}"
        raise UsageError(f"{self.prog.rpartition(' ')[2]}: {message}")


class Stopped(Exception):
    """A run was stopped from outside, in good order.

    Args:
        message: What happened, and how to go on.
        code: The exit code: 128 and the number of the signal.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def in_one_line(command: Callable[[], int]) -> int:
    """Runs a command; what the user can put right costs one line on stderr and the exit code 2.

    A bug keeps its traceback, and with ``KD_LIGHTNING_TRACEBACK=1`` in the environment everything does.

    Args:
        command: Returns the exit code.

    Returns:
        Its exit code; 2 after a complaint; 130 after Ctrl-C.

    Example:
        >>> def command() -> int:
        ...     raise UsageError("trainer.max_epoch: did you mean max_epochs?")
        >>> in_one_line(command)
        2
    """
    rank = os.environ.get("LOCAL_RANK", "0")
    name = "kd-lightning" if rank == "0" else f"kd-lightning (process {rank})"
    try:
        return command()
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except Stopped as stop:
        print(f"{name}: {stop}", file=sys.stderr)
        return stop.code
    except Exception as error:
        if os.environ.get("KD_LIGHTNING_TRACEBACK") or not on_purpose(error):
            raise
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        return 2


def on_purpose(error: BaseException) -> bool:
    """True for an error that tells the user something, from us, Lightning or the system; the others are bugs."""
    return isinstance(error, UsageError | OSError) or type(error).__name__ == "MisconfigurationException"


def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def nearest(wrong: str, right: Iterable[str]) -> str:
    """Ends a complaint: the right name that looks most like the wrong one, or all of them if there are few.

    Example:
        >>> nearest("wieght", ["weight", "loss"])
        "; did you mean 'weight'?"
        >>> nearest("size", ["weight", "loss"])
        "; there are 'loss', 'weight'"
    """
    names = sorted(set(right))
    if suggestion := did_you_mean(wrong, names):
        return suggestion
    verb = "is" if len(names) == 1 else "are"
    return f"; there {verb} {', '.join(map(repr, names))}" if 0 < len(names) <= 12 else ""


def did_you_mean(wrong: str, right: Iterable[str]) -> str:
    """Ends a complaint: the right name that looks most like the wrong one, if any does."""
    close = get_close_matches(wrong, right, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
