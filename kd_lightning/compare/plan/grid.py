"""`grid:` of a compare file: one variant for each combination of values."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple, cast

from kd_lightning.cli.configs import merge
from kd_lightning.compare.plan.config import Config
from kd_lightning.core.errors import UsageError

MOST = 1000
"""More variants than this are a mistake."""


class Point(NamedTuple):
    """A combination of values."""

    name: str
    """For a directory: ``temperature-2-lr-0.01``."""
    title: str
    """For a row of a table: ``temperature 2, lr 0.01``."""
    overrides: Config
    values: dict[str, Any]
    """By dotted setting."""


def points(where: str, grid: Config) -> Iterator[Point]:
    """Yield every combination of a grid's values, in the order of the file.

    Args:
        where: The file and the place of the grid, for messages.
        grid: Dotted settings, each with a list of values.

    Raises:
        UsageError: A setting has no list of values, or there are too many combinations.

    Example:
        >>> [point.name for point in points("a.yaml", {"model.loss.temperature": [2, 4], "model.lr": [0.1]})]
        ['temperature-2-lr-0.1', 'temperature-4-lr-0.1']
        >>> next(points("a.yaml", {"model.lr": [0.1]})).overrides
        {'model': {'lr': 0.1}}
    """
    combinations = 1
    for setting, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{where}: {setting} is {values!r} and not a list of values, such as [2, 4]")
        combinations *= len(cast("list[Any]", values))
    if combinations > MOST:
        raise UsageError(f"{where}: {combinations:,} combinations are too many: at most {MOST:,} can be run")
    names = _short_names(list(grid))
    for values in product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        overrides: Config = {}
        for setting, value in chosen.items():
            for part in reversed(setting.split(".")):
                value = {part: value}
            overrides = merge(overrides, value)
        parts = [(names[setting], _text(value)) for setting, value in chosen.items()]
        name = "-".join(f"{key}-{_file_text(value)}" for key, value in parts)
        yield Point(name, ", ".join(f"{key} {value}" for key, value in parts), overrides, chosen)


def _short_names(settings: list[str]) -> dict[str, str]:
    """The last part of each dotted setting, or as many as tell it from the others."""
    found: dict[str, str] = {}
    for setting in settings:
        parts = [part for part in setting.split(".") if part != "init_args"]
        others = [other.replace(".init_args", "") for other in settings if other != setting]
        size = next(
            (n for n in range(1, len(parts)) if not any(o.endswith("." + ".".join(parts[-n:])) for o in others)),
            len(parts),
        )
        found[setting] = ".".join(parts[-size:])
    return found


def _text(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        return str(cast("Config", value)["class_path"]).rpartition(".")[2]
    return str(value)


def _file_text(value: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in value).strip("-")
