"""The YAML files: which there are, where they lie, and what is written in one. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from kd_lightning.cli.errors import nearest
from kd_lightning.core.errors import UsageError

_HERE = Path(__file__).parents[1]
SHIPPED = next((folder for folder in (_HERE / "configs", _HERE.parent / "configs") if folder.is_dir()), _HERE)
"""Inside the package when it was installed, beside it in a checkout."""

NO_METHODS = ("compare", "parts")
"""Folders of files that are no methods: comparisons, and pieces to lay on top of a method."""


class Method(NamedTuple):
    """A shipped YAML file that trains something."""

    name: str
    """Its path without the ending: ``response/kd``."""
    about: str
    """The first line of its header: what it is, by whom, where it was published."""
    path: Path


class Setting(NamedTuple):
    """One thing that a YAML file or an option sets."""

    path: tuple[str, ...]
    """Its keys from the top, ``init_args`` and the like included; an index in a list is a key as well."""
    value: str | None
    """As it is written; None for a mapping or a list."""
    where: str
    """``configs/response/kd.yaml:12``, or nothing for an option."""


def methods() -> list[Method]:
    """What is there, from the tree itself."""
    found: list[Method] = []
    for path in sorted(SHIPPED.rglob("*.yaml")):
        relative = path.relative_to(SHIPPED).with_suffix("")
        if relative.parts[0] not in NO_METHODS:
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            found.append(Method(relative.as_posix(), first.lstrip("# "), path))
    return found


def find_config(name: str) -> Path:
    """The YAML file of that name: in the working folder, or else among the shipped ones.

    Args:
        name: A path; the shipped files are found with and without the leading ``configs/``.

    Raises:
        UsageError: There is no such file.
    """
    if not name:
        raise UsageError("--config: name a YAML file")
    path = Path(name).expanduser()
    for candidate in (path, SHIPPED / name, SHIPPED / name.removeprefix("configs/")):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        there = ", ".join(sorted(file.name for file in path.glob("*.yaml"))) or "no YAML file"
        raise UsageError(f"--config {name}: is a folder, not a file: it holds {there}")
    shipped = [f"configs/{file.relative_to(SHIPPED).as_posix()}" for file in SHIPPED.rglob("*.yaml")]
    beside = [str(file) for file in path.parent.glob("*.yaml")]
    raise UsageError(f"--config {name}: no such file{nearest(name, [*beside, *shipped])}")


def read_settings(path: Path) -> list[Setting]:
    """Everything that a YAML file sets, in its order.

    Raises:
        UsageError: The file cannot be read, is not YAML, is no mapping, or sets a key twice.
    """
    import yaml  # here, so that `methods` and `--help` do not wait for it

    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is no text in UTF-8, so no YAML file") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}{line}: is not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None

    def walk(node: yaml.Node, keys: tuple[str, ...], line: int) -> Iterator[Setting]:
        where = f"{path}:{line}"
        if len(keys) > 50:
            raise UsageError(f"{where}: {'.'.join(keys[:3])}... is nested without end: an alias refers to itself")
        if isinstance(node, yaml.ScalarNode):
            yield Setting(keys, node.value, where)
            return
        yield Setting(keys, None, where)
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                yield from walk(item, (*keys, str(index)), item.start_mark.line + 1)
            return
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                name = ".".join((*keys, key.value))
                raise UsageError(f"{path}:{line}: {name} is set twice, first in line {seen[key.value]}: remove one")
            seen[key.value] = line
            yield from walk(value, (*keys, str(key.value)), line)

    if not isinstance(root, yaml.MappingNode):
        raise UsageError(
            f"{path}: {'is empty' if root is None else 'holds no mapping'}: write `model: ...`, `data: ...`"
        )
    return list(walk(root, (), 1))


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` on top of `base`, which stays as it is: mappings key by key, anything else replaced.

    Where `changes` names another ``class_path``, the old ``init_args`` go, for they are not the new class's.

    Example:
        >>> merge({"data": {"seed": 1, "size": 9}}, {"data": {"seed": 2}})
        {'data': {'seed': 2, 'size': 9}}
        >>> merge({"class_path": "Adam", "init_args": {"fused": True}}, {"class_path": "SGD", "init_args": {"lr": 0.1}})
        {'class_path': 'SGD', 'init_args': {'lr': 0.1}}
    """
    merged = dict(base)
    if changes.get("class_path", base.get("class_path")) != base.get("class_path"):
        merged.pop("init_args", None)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = merge(cast("dict[str, Any]", old), cast("dict[str, Any]", value)) if both else value
    return merged


def main(args: Sequence[str]) -> int:
    """``kd-lightning methods``: lists them; with a name, prints that method's YAML."""
    known = methods()
    if not args:
        width = max(len(method.name) for method in known)
        print("\n".join(f"{method.name:{width}}  {method.about}" for method in known))
        return 0
    if len(args) > 1:
        raise UsageError(f"methods {' '.join(args)}: name one method, or none to list them all")
    named = [m for m in known if m.name == args[0]] or [m for m in known if m.path.stem == args[0]]
    if len(named) == 1:
        print(named[0].path.read_text(encoding="utf-8"), end="")
        return 0
    if named:
        raise UsageError(f"methods {args[0]}: there are several: {', '.join(method.name for method in named)}")
    names = {name for method in known for name in (method.name, method.path.stem)}
    raise UsageError(f"methods {args[0]}: there is no such method{nearest(args[0], names)}")
