"""One line for an error that ends a process, and the exit code for it."""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

from kd_lightning.core.errors import UsageError

LIBRARIES = ("torch", "lightning", "lightning_fabric", "pytorch_lightning")
GLOO = ("gloo/transport", "gloo::", "pair closure")
"""Parts of the messages of gloo, whose errors have no type of their own."""


def is_user_error(error: BaseException) -> bool:
    """Return True for an error whose message is for the user: ours, Lightning's or the system's. Others are bugs."""
    return isinstance(error, UsageError | OSError) or type(error).__name__ == "MisconfigurationException"


def one_line(error: BaseException) -> str:
    """Return the message of an error without its line breaks, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def is_of_another_process(error: BaseException) -> bool:
    """Tell if an operation between processes failed because another process has ended or does not answer."""
    is_of_torch = any(kind.__name__ == "DistError" for kind in type(error).__mro__)  # by name: torch loads slowly
    return is_of_torch or any(part in str(error) for part in GLOO)


def describe(error: BaseException) -> str:
    """Describe an error in one line: a user's by its message, any other with its type and the place of its origin.

    Example:
        >>> describe(UsageError("temperature=-1.0 must be above 0"))
        'temperature=-1.0 must be above 0'
        >>> describe(ZeroDivisionError("division by zero"))
        'ZeroDivisionError: division by zero'
    """
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if is_of_another_process(error):
        problem = "did not answer in time" if "Timed out" in str(error) or "timeout" in str(error) else "has ended"
        cause = re.sub(r"^\[\S*\] |\. This is typically .*", "", one_line(error))  # gloo's path and advice
        return f"stopped, because another process {problem} ({shortened(cause)})"
    if is_user_error(error):
        return one_line(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(part in LIBRARIES for part in Path(frame.filename).parts)]
    origin = f" ({own[-1].filename}:{own[-1].lineno}, in {own[-1].name})" if own else ""
    message = one_line(error)
    named = message if message == type(error).__name__ else f"{type(error).__name__}: {message}"
    return f"{shortened(named)}{origin}"


def shortened(text: str, limit: int = 300) -> str:
    """Cut a text that is too long for one line."""
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


def exit_code(error: BaseException) -> int:
    """Return the exit code of a process that an error ends: 130 after Ctrl-C, 2 after a user's mistake, else 1."""
    return 130 if isinstance(error, KeyboardInterrupt) else 2 if is_user_error(error) else 1


def wants_traceback() -> bool:
    """Tell if the user asks for tracebacks, by ``KD_LIGHTNING_TRACEBACK=1`` in the environment."""
    return bool(os.environ.get("KD_LIGHTNING_TRACEBACK"))
