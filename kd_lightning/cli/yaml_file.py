"""The reader of all YAML files: plain values and the line of each setting, or one line that names the fault.

Tags, merge keys, aliases, numbers and nesting are checked before anything is built, so that no file can run code, fill
the memory or keep the process waiting.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml

from kd_lightning.core.errors import UsageError

MOST_BYTES, MOST_VALUES, MOST_LEVELS, MOST_DIGITS = 2**20, 10_000, 50, 300
"""Limits of a file: its size, its values with every alias expanded, its nesting, and the digits of a number."""

_TAG = "tag:yaml.org,2002:"
_PLAIN = tuple(_TAG + name for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge"))
_INT = r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$"
_EXPONENT = r"[eE][-+]?[0-9]+"
_FLOAT = (
    rf"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:{_EXPONENT})?|[0-9][0-9_]*{_EXPONENT}|\.[0-9_]+(?:{_EXPONENT})?"
    r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)


class Setting(NamedTuple):
    """A setting in a YAML file or an option."""

    path: tuple[str, ...]
    """Its keys from the top, ``init_args`` and the like included; an index in a list is a key as well."""
    value: str | None
    """The value as written; None for a mapping or a list."""
    where: str
    """``configs/response/kd.yaml:12``, or empty for an option."""


class YamlFile(NamedTuple):
    """The content of a YAML file."""

    values: dict[str, Any]
    """Its plain values: text, numbers, true, false and null in mappings and lists, none of which is shared."""
    settings: list[Setting]
    """Every setting with its line, in the file's order; a setting under an alias or a merge key has its anchor's."""


def read_yaml(path: Path) -> YamlFile:
    """Read a YAML file.

    Numbers are those of YAML 1.2: ``1:30`` and ``010`` are text, and so are dates; ``1e-3`` is a number. Keys are text
    or numbers. Anchors, aliases and merge keys are expanded.

    Raises:
        UsageError: The file cannot be read, is not YAML, is no mapping, sets a key twice, has a tag, is nested too
            deeply, or has too many values or too long a number.
    """
    text = _read_text(path)
    try:
        values, settings = parse_yaml(text)
    except YamlFaultError as fault:
        raise UsageError(f"{path}:{fault.line}: {fault.problem}") from None
    if not isinstance(values, dict):
        is_empty = values is None and not settings
        raise UsageError(
            f"{path}: {'is empty' if is_empty else 'contains no mapping'}: write `model: ...`, `data: ...`"
        )
    return YamlFile(
        cast("dict[str, Any]", values), [Setting(each.path, each.value, f"{path}:{each.where}") for each in settings]
    )


def _read_text(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path}: is not a regular file: name a YAML file")
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}): name a readable YAML file") from None
    if len(content) > MOST_BYTES:
        raise UsageError(f"{path}: has more than {MOST_BYTES:,} bytes, so it is no configuration: name a YAML file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: is not UTF-8 text, so not a YAML file: save it as UTF-8") from None


class YamlFaultError(yaml.YAMLError):
    """A fault of a YAML text.

    Args:
        line: Its line, from 1.
        problem: The fault of the line, and the remedy.
    """

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line = line
        self.problem = problem


def parse_yaml(text: str) -> tuple[Any, list[Setting]]:
    r"""Parse a YAML text: its value, and its settings, whose place is the number of a line; both empty for no text.

    Raises:
        YamlFaultError: As `read_yaml` raises.

    Example:
        >>> parse_yaml("base: &b {lr: 1e-3}\nmodel: {<<: *b, time: 1:30}")[0]
        {'base': {'lr': 0.001}, 'model': {'lr': 0.001, 'time': '1:30'}}
        >>> parse_yaml("a: 1\na: 2")
        Traceback (most recent call last):
        kd_lightning.cli.yaml_file.YamlFaultError: line 2: a is set twice, first in line 1: remove one
    """
    try:
        root = _Loader(text).get_single_node()
    except YamlFaultError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        context = f"{error.context}, " if error.context and error.context.startswith("expected") else ""
        problem = f"is not valid YAML: {context}{error.problem or error.context}: correct this line or the one above"
        raise YamlFaultError(mark.line + 1 if mark else 1, problem) from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise YamlFaultError(line, f"is not valid YAML: {' '.join(str(error).split())}: remove it") from None
    settings: list[Setting] = []
    value = None if root is None else _Builder(settings).value(root, (), 1)
    return value, settings


def number_fault(text: str) -> str:
    """Describe a number that no setting can hold; empty for other numbers, and for text.

    Example:
        >>> number_fault("1e400")
        'the number 1e400 is too large: write a smaller one, or .inf'
        >>> number_fault("1e-3")
        ''
    """
    if len(text) > MOST_DIGITS and re.fullmatch(r"[-+]?[\d_.]+(?:[eE][-+]?\d+)?", text):
        return f"the number {text[:12]}... has {len(text):,} digits: write at most {MOST_DIGITS}"
    if not re.fullmatch(r"[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+", text, re.ASCII):
        return ""
    value = float(text.replace("_", ""))
    if math.isinf(value):
        return f"the number {text} is too large: write a smaller one, or .inf"
    if value == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
        return f"the number {text} is too small, and would be 0: write a larger one, or 0"
    return ""


class _Loader(yaml.SafeLoader):
    """Composes nodes to a limited depth; only numbers, true, false, null and merge keys are told from text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own form)
        first: [(tag, pattern) for tag, pattern in each if tag.removeprefix(_TAG) in ("bool", "null", "merge")]
        for first, each in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    level = number = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.level += 1
        self.number += 1
        line = self.peek_event().start_mark.line + 1
        if self.number > 2 * MOST_VALUES:  # keys are nodes, too
            raise YamlFaultError(line, f"has more than {MOST_VALUES:,} values: remove some")
        if self.level > MOST_LEVELS:
            raise YamlFaultError(line, f"is nested more than {MOST_LEVELS} levels deep: write fewer levels")
        node = super().compose_node(parent, index)
        self.level -= 1
        return node


_Loader.add_implicit_resolver(_TAG + "int", re.compile(_INT), list("-+0123456789"))
_Loader.add_implicit_resolver(_TAG + "float", re.compile(_FLOAT), list("-+0123456789."))


class _Builder:
    """Builds plain values from nodes, and lists their settings."""

    def __init__(self, settings: list[Setting]) -> None:
        self.settings = settings
        self.number = 0
        self.top = 1  # the line of the key at the top that is being built
        self.construct = _Loader("").construct_object

    def value(self, node: yaml.Node, keys: tuple[str, ...], line: int) -> Any:
        self.top = line if len(keys) < 2 else self.top
        self._count(1)
        if len(keys) > MOST_LEVELS:
            raise YamlFaultError(line, f"{'.'.join(keys[:3])}... contains itself: remove the alias of itself")
        if node.tag not in _PLAIN:
            raise YamlFaultError(line, f"has the tag {_written(node.tag)}, and only plain values are read: remove it")
        if isinstance(node, yaml.ScalarNode):
            self.settings.append(Setting(keys, node.value, str(line)))
            return self._scalar(node, line)
        self.settings.append(Setting(keys, None, str(line)))
        if isinstance(node, yaml.SequenceNode):
            items = cast("list[yaml.Node]", node.value)
            return [self.value(item, (*keys, str(i)), item.start_mark.line + 1) for i, item in enumerate(items)]
        return {
            key: self.value(item, (*keys, str(key)), number) for key, item, number in self._items(node, keys, line, 0)
        }

    def _count(self, values: int) -> None:
        self.number += values
        if self.number > MOST_VALUES:
            raise YamlFaultError(self.top, f"has more than {MOST_VALUES:,} values, its aliases expanded: remove some")

    def _scalar(self, node: yaml.ScalarNode, line: int) -> Any:
        if node.style is None and (fault := number_fault(node.value)):
            raise YamlFaultError(line, fault)
        try:
            return self.construct(node)
        except (ValueError, KeyError, OverflowError):  # a tag that does not fit
            problem = f"{node.value[:40]!r} is not {_written(node.tag)}: correct it, or remove the tag"
            raise YamlFaultError(line, problem) from None

    def _items(
        self, node: yaml.Node, keys: tuple[str, ...], line: int, level: int
    ) -> Iterator[tuple[str | int | float, yaml.Node, int]]:
        """Yield the keys of a mapping, their nodes and lines: first those that merge keys add and it does not set."""
        if not isinstance(node, yaml.MappingNode) or level > MOST_LEVELS:
            raise YamlFaultError(line, "<< needs a mapping, or a list of mappings, and not itself: name one")
        own: dict[str | int | float, tuple[yaml.Node, int]] = {}
        merged: dict[str | int | float, tuple[yaml.Node, int]] = {}
        merges = 0
        for key, value in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            number = key.start_mark.line + 1
            if key.tag == _TAG + "merge":
                merges += 1
                if merges > 1:
                    raise YamlFaultError(number, "<< is set twice: name a list of mappings, `<<: [*a, *b]`")
                parts = cast("list[yaml.Node]", value.value) if isinstance(value, yaml.SequenceNode) else [value]
                for part in reversed(parts):  # the first has precedence
                    self._count(1 + len(part.value))
                    merged |= {name: (item, n) for name, item, n in self._items(part, keys, number, level + 1)}
                continue
            name = self._key(key, number)
            if name in own:
                full = ".".join((*keys, str(name)))
                raise YamlFaultError(number, f"{full} is set twice, first in line {own[name][1]}: remove one")
            own[name] = value, number
        for name, (item, number) in {**{n: merged[n] for n in merged if n not in own}, **own}.items():
            yield name, item, number

    def _key(self, key: yaml.Node, line: int) -> str | int | float:
        if not isinstance(key, yaml.ScalarNode) or key.tag not in _PLAIN:
            raise YamlFaultError(line, "a key is a list or a mapping, or has a tag: write text")
        value = self._scalar(key, line)
        if value is None or isinstance(value, bool):
            read = "null" if value is None else str(value).lower()
            raise YamlFaultError(line, f"the key {key.value or '~'} is read as {read}: put it in quotes")
        return value


class ValueLoader(_Loader):
    """A loader of PyYAML that builds what `parse_yaml` builds, for ``yaml.load``."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def get_single_data(self) -> Any:
        """Parse the text.

        Raises:
            YamlFaultError: As `parse_yaml` raises.
        """
        return parse_yaml(self.text)[0]


def _written(tag: str) -> str:
    short = tag.replace(_TAG, "!!", 1)
    return short if len(short) <= 60 else f"{short[:57]}..."
