"""The error for everything that a user can put right."""

from __future__ import annotations


class UsageError(ValueError):
    """A setting, an input or a file cannot be used; the message names it, its value and the remedy in one line.

    The command line prints exactly these errors, and those of the operating system, without a traceback. Raise it in
    your own losses, schemes and callbacks for the same effect.

    Example:
        >>> raise UsageError("temperature=-1.0 must be a finite number above 0, e.g. 4.0")
        Traceback (most recent call last):
        kd_lightning.core.errors.UsageError: temperature=-1.0 must be a finite number above 0, e.g. 4.0
    """
