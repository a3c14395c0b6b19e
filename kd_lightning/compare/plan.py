"""What is compared with what: groups of variants, each run under several seeds."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kd_lightning.cli.configs import merge
from kd_lightning.compare.config import Config

CHECKPOINT = re.compile(r"@(?P<variant>[A-Za-z0-9][\w./-]*?)(?:\+(?P<next>\d+))?")
"""``@group/variant`` in a configuration is the checkpoint of its run at the same place in the list of seeds, and
``@group/variant+1`` that of the one after."""


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to train: a row of a table."""

    group: str
    name: str
    title: str
    config: Config
    """The merged files and overrides, but for the seed, the folder and the teacher's file, which are each run's own."""
    seeds: tuple[int, ...]
    teacher: Variant | None
    baseline: Variant | None
    """The variant of the same group that this one is measured against, seed by seed."""
    network: str | None = None
    """Which of several networks is measured: the deployed one, or one by its name, or ``mean``, all of them."""
    checkpoints: Mapping[str, tuple[Variant, int]] = field(default_factory=dict)
    """The variants whose checkpoints the configuration names, and how many seeds on, by how it names them."""

    @property
    def path(self) -> str:
        """``group/name``: how other variants refer to it."""
        return f"{self.group}/{self.name}"

    @cached_property
    def runs(self) -> list[Run]:
        """One run a seed; with fewer teachers than seeds, each teacher teaches in turn."""
        teachers = self.teacher.runs if self.teacher else [None]
        return [
            Run(
                self,
                seed,
                teachers[i % len(teachers)],
                {key: other.runs[(i + on) % len(other.runs)] for key, (other, on) in self.checkpoints.items()},
            )
            for i, seed in enumerate(self.seeds)
        ]


@dataclass(frozen=True, eq=False)
class Run:
    """One variant under one seed."""

    variant: Variant
    seed: int
    teacher: Run | None
    checkpoints: Mapping[str, Run] = field(default_factory=dict)

    @property
    def needs(self) -> list[Run]:
        """The runs that must be finished before: its teacher, and those whose checkpoints its configuration names."""
        return [*([self.teacher] if self.teacher else []), *self.checkpoints.values()]

    @property
    def name(self) -> str:
        """``group/variant/seed-N``: its folder under the root, and its name in TensorBoard."""
        return f"{self.variant.path}/seed-{self.seed}"

    @property
    def config(self) -> Config:
        """What is trained, under this seed: the same images, order and first weights for every variant that has it."""
        return merge(self.variant.config, {"seed_everything": self.seed, "data": {"init_args": {"seed": self.seed}}})

    def placed(self, root: Path) -> Config:
        """The configuration with its folder and its teacher's file, ready for ``kd-lightning fit --config``."""
        places: Config = {"trainer": {"default_root_dir": str(root / self.name)}}
        if self.teacher:
            checkpoint = {"checkpoint": str(self.teacher.checkpoint(root))}
            places["model"] = {"init_args": {"teacher": {"init_args": checkpoint}}}
        return merge(_replaced(self.config, self.checkpoints, root), places)

    def checkpoint(self, root: Path) -> Path:
        """The weights of its last step."""
        return root / self.name / "last.ckpt"

    def digest(self, root: Path) -> str:
        """Changes with anything that its result depends on: the configuration, the seed, the files of other runs."""
        measured = {"network": self.variant.network} if self.variant.network else {}
        parts = json.dumps(self.config | measured, sort_keys=True, default=str).encode()
        for run in self.needs:
            parts += run.checkpoint(root).read_bytes()
        return hashlib.sha256(parts).hexdigest()


@dataclass(frozen=True, eq=False)
class Group:
    """Variants that share a table: the same seeds, images and budget."""

    name: str
    title: str
    notes: str
    variants: list[Variant]


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything in a compare file."""

    title: str
    notes: str
    groups: list[Group]

    @property
    def variants(self) -> list[Variant]:
        """Of all groups, in the order of the file."""
        return [variant for group in self.groups for variant in group.variants]

    @property
    def runs(self) -> list[Run]:
        """Of all variants, in the order of the file."""
        return [run for variant in self.variants for run in variant.runs]


def _replaced(value: Any, checkpoints: Mapping[str, Run], root: Path) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item, checkpoints, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, checkpoints, root) for item in value]
    return str(checkpoints[value].checkpoint(root)) if isinstance(value, str) and value in checkpoints else value
