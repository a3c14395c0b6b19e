"""One line for the user, in place of a traceback or a page of usage."""

from __future__ import annotations

import linecache
import os
import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import NoReturn


class Complaint(ValueError):
    """Something that the user gave is wrong: one line that names the place, what is wrong with it, and the remedy."""


class Parser(ArgumentParser):
    """Complains in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raises the complaint."""
        if message.startswith("unrecognized arguments: "):
            wrong = message.split()[2].partition("=")[0]
            message = f"there is no option {wrong}{nearest(wrong, self._option_string_actions)}"
        raise Complaint(f"{self.prog.rpartition(' ')[2]}: {message}")


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
        ...     raise Complaint("trainer.max_epoch: did you mean max_epochs?")
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
    """Whether an error was raised to tell the user something, by us, Lightning or the system; the others are bugs."""
    if isinstance(error, (Complaint, OSError)) or type(error).__name__ == "MisconfigurationException":
        return True
    *_, (frame, line) = [(None, 0), *traceback.walk_tb(error.__traceback__)]
    if frame is None or not str(frame.f_globals.get("__name__")).startswith("kd_lightning"):
        return False
    return linecache.getline(frame.f_code.co_filename, line).strip().startswith("raise ")


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
