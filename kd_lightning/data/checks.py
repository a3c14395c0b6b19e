"""Checks of the arguments that several data modules share."""

from __future__ import annotations

from kd_lightning.core.errors import UsageError


def check_whole(name: str, value: object, least: int, optional: bool = False) -> None:
    """Raise a UsageError unless a value is a whole number of at least `least`, or None where it is optional.

    Example:
        >>> check_whole("batch_size", 0, least=1)
        Traceback (most recent call last):
        kd_lightning.core.errors.UsageError: batch_size=0 is not a whole number of at least 1
    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name}={value!r} is not a whole number of at least {least}{' or null' if optional else ''}")


MOST_ROWS = 10**9
"""Rows of an epoch whose order is drawn at once: of more, the order alone takes over 8 GB."""


def check_epoch(steps_per_epoch: int | None, batch_size: int) -> None:
    """Raise a UsageError if an epoch of so many batches has more rows than can be drawn at once.

    Example:
        >>> check_epoch(10**12, batch_size=50)
        Traceback (most recent call last):
        kd_lightning.core.errors.UsageError: steps_per_epoch=1000000000000 batches of batch_size=50 are more than 10...
    """
    if steps_per_epoch is not None and steps_per_epoch * batch_size > MOST_ROWS:
        raise UsageError(
            f"steps_per_epoch={steps_per_epoch} batches of batch_size={batch_size} are more than {MOST_ROWS} rows an "
            "epoch: set fewer, and more trainer.max_epochs"
        )


def check_classes(classes: object, num_classes: int) -> None:
    """Raise a UsageError unless `classes` is a list of different classes, at least one, or None for all of them.

    Example:
        >>> check_classes([3, 10], num_classes=10)
        Traceback (most recent call last):
        kd_lightning.core.errors.UsageError: classes=[3, 10] must be different whole numbers from 0 to 9, or null for...
    """
    if classes is None:
        return
    given: list[object] = [*classes] if isinstance(classes, list) else []
    whole = all(type(label) is int and 0 <= label < num_classes for label in given)
    if given and whole and len(set(given)) == len(given):
        return
    raise UsageError(
        f"classes={classes!r} must be different whole numbers from 0 to {num_classes - 1}, or null for all classes"
    )


def check_num_channels(num_channels: int | None, channels: int, where: str) -> None:
    """Raise a UsageError unless images of `channels` channels can become `num_channels`: only grey is repeated.

    Example:
        >>> check_num_channels(3, 1, "MNIST")
        >>> check_num_channels(1, 3, "ColouredDigits")
        Traceback (most recent call last):
        kd_lightning.core.errors.UsageError: num_channels=1, but ColouredDigits has 3 channels, and only one grey...
    """
    if channels != 1 and num_channels not in (None, channels):
        raise UsageError(
            f"num_channels={num_channels}, but {where} has {channels} channels, and only one grey channel is repeated: "
            "leave num_channels out"
        )
