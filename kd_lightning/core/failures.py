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
_WORKER_REMEDY = "if memory ran out, lower the loader's num_workers or batch_size"


def is_user_error(error: BaseException) -> bool:
    """Return True for an error whose message is for the user: ours, Lightning's or the system's. Others are bugs."""
    is_of_lightning = type(error).__name__ == "MisconfigurationException"
    return isinstance(error, UsageError | OSError) or is_of_lightning or _is_of_dead_worker(error)


def one_line(error: BaseException) -> str:
    r"""Return the message of an error without its line breaks, or its type if it has none.

    Of an error in a loader's worker, whose message is a traceback, it is the last line.

    Example:
        >>> one_line(OSError("Caught OSError in DataLoader worker process 0.\nTraceback ...\nOSError: no disk"))
        'OSError: no disk (in a worker of a DataLoader)'
    """
    lines = str(error).strip().splitlines()
    if len(lines) > 1 and "in DataLoader worker process" in lines[0]:
        return f"{lines[-1].strip()} (in a worker of a DataLoader)"
    message = " ".join(" ".join(lines).split()) or type(error).__name__
    return f"{message.rstrip('. ')}: {_WORKER_REMEDY}" if _is_of_dead_worker(error) else message


def _is_of_dead_worker(error: BaseException) -> bool:
    """Tell if the system, and no fault of a program, has ended a worker of a loader."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


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
