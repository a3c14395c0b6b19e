"""Errors of the command line: one line on stderr instead of a traceback or a page of usage."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from typing import NoReturn

from kd_lightning.cli.argparse_internals import option_strings
from kd_lightning.core.errors import UsageError
from kd_lightning.core.failures import is_user_error, one_line, wants_traceback
from kd_lightning.core.lookup import suggestion


class Parser(ArgumentParser):
    """An argparse parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise a `UsageError` that names the command, and the nearest option for an unknown one."""
        if message.startswith("unrecognized arguments: "):
            wrong = message.split()[2].partition("=")[0]
            message = f"there is no option {wrong}{suggestion(wrong, option_strings(self))}"
        raise UsageError(f"{self.prog.rpartition(' ')[2]}: {message}")


class RunStopped(Exception):
    """A signal stopped a run, which saved its state first.

    Args:
        message: The cause, and the command that resumes the run.
        code: The exit code: 128 plus the number of the signal.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def report_errors(command: Callable[[], int]) -> int:
    """Run a command, and print a user's mistake as one line on stderr.

    A bug keeps its traceback; with ``KD_LIGHTNING_TRACEBACK=1`` in the environment every error does.

    Args:
        command: Returns the exit code.

    Returns:
        Its exit code; 2 after a user's mistake; 130 after Ctrl-C.

    Example:
        >>> def command() -> int:
        ...     raise UsageError("trainer.max_epoch: did you mean max_epochs?")
        >>> report_errors(command)
        2
    """
    rank = os.environ.get("LOCAL_RANK", "0")
    name = "kd-lightning" if rank == "0" else f"kd-lightning (process {rank})"
    try:
        return command()
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except RunStopped as stop:
        print(f"{name}: {stop}", file=sys.stderr)
        return stop.code
    except Exception as error:
        if wants_traceback() or not is_user_error(error):
            raise
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        return 2
