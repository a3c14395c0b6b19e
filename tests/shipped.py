"""The shipped YAML files as the tests run them: small, and with the runs that they read where they look for them.

A file of `tests/conf` makes runs small: `default.yaml` every run, ``<family>/default.yaml`` those of one family, and
``<family>/<name>.yaml`` one run. They are laid over the shipped file in this order. A line ``# writes: FILE`` names a
file that the run writes beside its checkpoints and metrics.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import chdir
from pathlib import Path

import yaml

from kd_lightning.cli.configs import SHIPPED, Config, list_configs
from kd_lightning.cli.engine import main
from kd_lightning.cli.yaml_file import read_yaml

CONF = Path(__file__).parent / "conf"
METHODS: dict[str, Config] = {method.name: method for method in list_configs()}
OPTIONS = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


def overlays(name: str) -> list[Path]:
    """The files of `tests/conf` that apply to a shipped file, in the order in which they are laid over it."""
    candidates = ("default", f"{name.partition('/')[0]}/default", name)
    return [path for candidate in candidates if (path := CONF / f"{candidate}.yaml").exists()]


def small(name: str) -> list[str]:
    """The arguments behind ``kd-lightning fit`` that make a small run of a shipped file."""
    files = [SHIPPED / f"{name}.yaml", *overlays(name)]
    return [*(f"--config={file}" for file in files), *OPTIONS]


def extra_files(name: str) -> set[str]:
    """The names of the files that a run writes beside those of every run, as its overlay says."""
    return {file for path in overlays(name) for file in re.findall(r"^# writes: (.+)$", path.read_text(), re.M)}


def pair(name: str) -> tuple[str, ...]:
    """The scheme and the data of a shipped file."""
    config = yaml.safe_load(METHODS[name].path.read_text())
    given = config["data"].get("init_args") or {}
    parts = [config["model"], config["data"], *(given.get(part) or {} for part in ("source", "views"))]
    return tuple(part.get("class_path", "") for part in parts)


def one_of_each_pair() -> set[str]:
    """One file for every pair of a scheme and data."""
    first: dict[tuple[str, ...], str] = {}
    for name in METHODS:
        first.setdefault(pair(name), name)
    return set(first.values())


def needed_files(name: str) -> dict[Path, str]:
    """The files of other runs that a shipped file reads, each with the shipped file whose run writes it.

    A run directory such as ``runs/mnist/teacher-1`` is of ``mnist/teacher``, under another seed.
    """
    found: dict[Path, str] = {}
    for setting in read_yaml(METHODS[name].path).settings:
        path = Path(setting.value or "")
        if setting.path[-1:] != ("default_root_dir",) and path.parts[:1] == ("runs",) and path.suffix:
            source = re.sub(r"-\d+$", "", path.parent.relative_to("runs").as_posix())
            found[path] = source
    return found


class Runs:
    """Runs of shipped files, each made when it is first asked for, in a directory that several processes may share.

    Args:
        directory: Where the runs are kept.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def provide(self, *names: str) -> None:
        """Copy what the shipped files read into ``runs/`` of the working directory, unless it is there."""
        for name in names:
            for path, source in needed_files(name).items():
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self.run(path.parent, source) / path.name, path)

    def run(self, wanted: Path, name: str) -> Path:
        """Return the directory of a run: of one step, under the seed that the directory's name ends with."""
        finished = self.directory / wanted
        if not finished.exists():
            seed = re.search(r"-(\d+)$", wanted.name)
            with tempfile.TemporaryDirectory(dir=self.directory) as place, chdir(place):
                self.provide(name)
                given = [*small(name), f"--seed_everything={seed[1] if seed else 0}"]
                assert main(["fit", *given, "--trainer.logger=false", "--trainer.default_root_dir=made"]) == 0
                finished.parent.mkdir(parents=True, exist_ok=True)
                try:
                    Path("made").rename(finished)
                except OSError:  # another process was faster
                    assert finished.exists()
        return finished
