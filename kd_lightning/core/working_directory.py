"""The working directory as a place of modules, behind everything that is installed. Loads no torch."""

from __future__ import annotations

import sys
from pathlib import Path


def import_from_working_directory(folder: str | Path | None = None) -> None:
    """Let a ``class_path`` name a class of a module in a directory; no module there replaces an installed one.

    The directory comes last in ``sys.path``: a ``random.py`` or ``torch.py`` in it stays unseen. Processes that
    ``multiprocessing`` spawns inherit the path; a process that was started elsewhere calls this by itself.

    Args:
        folder: The directory; the working directory if not given.

    Example:
        >>> import_from_working_directory("/tmp")
        >>> sys.path.pop() == str(Path("/tmp").resolve())
        True
    """
    path = str(Path(folder or ".").resolve())
    if path not in sys.path:
        sys.path.append(path)
