"""Writes docs/methods.md, the table of all methods, from the headers and contents of configs/: `make pages`.

python -m benchmarks.methods
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from kd_lightning.cli.configs import Config, list_configs
from kd_lightning.cli.yaml_file import read_yaml

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
INTRODUCTION = """\
# All methods

Every shipped YAML file that trains something, by family, written by `make pages` from the files themselves.
A row gives the first line of a file's header and the classes that the file names.
A loss of your own is a new file and appears here after `make pages`.

```sh
kd-lightning fit --config configs/response/kd.yaml
```
"""


def row(config: Config) -> str:
    """A method's row: link, header, scheme, losses, callbacks; a classifier without terms has its default loss."""
    named: dict[str, list[str]] = {"model": [], "loss": [], "callbacks": []}
    for keys, value, _ in read_yaml(config.path).settings:
        parent = keys[-3] if len(keys) > 2 and keys[-2].isdecimal() else ".".join(keys[-2:-1])
        if keys[-1:] == ("class_path",) and parent in named and value:
            named[parent].append(f"`{value.rpartition('.')[2]}`")
    if named["model"] == ["`Classifier`"] and not named["loss"]:
        named["loss"] = ["`TaskLoss`"]
    link = f"[{config.path.stem}](../configs/{config.name}.yaml)"
    cells = [link, config.title, *(", ".join(dict.fromkeys(classes)) for classes in named.values())]
    return f"| {' | '.join(cells)} |".replace("  |", " |")


def page() -> str:
    """The whole page: one table for each folder of configs/."""
    lines = [INTRODUCTION]
    for family, members in groupby(list_configs(), lambda config: config.name.partition("/")[0]):
        lines += [f"## {family}", "", "| config | method | scheme | losses | callbacks |", "|---|---|---|---|---|"]
        lines += [*map(row, members), ""]
    return "\n".join(lines[:-1]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
