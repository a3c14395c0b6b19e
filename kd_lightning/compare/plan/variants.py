"""Plan, groups, variants and runs: the variants that are compared, and one run of each per seed."""

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
from kd_lightning.compare.plan.config import Config, with_teacher
from kd_lightning.compare.plan.sources import sources_hash
from kd_lightning.core.packaged import weights_path

CHECKPOINT = re.compile(r"@(?P<variant>[A-Za-z0-9][\w./-]*?)(?:\+(?P<next>\d+))?")
"""``@group/variant`` in a configuration is the checkpoint of that variant's run at the same position in the list of
seeds, ``@group/variant+1`` that of the run after it."""
LAST_CHECKPOINT = "last.ckpt"


@dataclass(frozen=True, eq=False)
class Variant:
    """A way to train: one row of a table."""

    group: str
    name: str
    title: str
    config: Config
    """The merged files and overrides, without each run's own seed, directory and teacher checkpoint."""
    seeds: tuple[int, ...]
    teacher: Variant | None
    baseline: Variant | None
    """The variant of the same group that this one is compared with, seed by seed."""
    evaluate: str | None = None
    """The network to evaluate, by name, or ``mean`` for all of them; None for the inference network."""
    student: str | None = None
    """Of a LightningModule that is no learner: the dotted name of the network that gives the logits."""
    monitor: tuple[str, str] | None = None
    """The metric to compare by, with ``min`` or ``max``; None for the learner's own."""
    grid: str | None = None
    """The name of the grid that this variant is one point of, as `path` has it."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The values of that point by dotted setting."""
    weights: tuple[str, ...] = ()
    """Files of networks that were trained elsewhere, one for each run, which trains nothing."""
    checkpoints: Mapping[str, tuple[Variant, int]] = field(default_factory=dict)
    """The variants whose checkpoints the configuration names, with the offset in seeds, by the text that names them."""

    @property
    def path(self) -> str:
        """``group/name``, by which other variants refer to it."""
        return f"{self.group}/{self.name}"

    @cached_property
    def runs(self) -> list[Run]:
        """One run per seed; with fewer teachers than seeds, the teachers take turns."""
        teachers = self.teacher.runs if self.teacher else [None]
        return [
            Run(
                self,
                seed,
                teachers[i % len(teachers)],
                {key: other.runs[(i + on) % len(other.runs)] for key, (other, on) in self.checkpoints.items()},
                self.weights[i] if self.weights else None,
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
    weights: str | None = None
    """The file of a network that was trained elsewhere."""

    @property
    def needs(self) -> list[Run]:
        """The runs that must finish first: its teacher, and those whose checkpoints its configuration names."""
        return [*([self.teacher] if self.teacher else []), *self.checkpoints.values()]

    @property
    def name(self) -> str:
        """``group/variant/seed-N``: its directory under the root, and its name in TensorBoard."""
        return f"{self.variant.path}/seed-{self.seed}"

    @property
    def config(self) -> Config:
        """The configuration under this seed: variants of one seed share data, order and initial weights."""
        return merge(self.variant.config, {"seed_everything": self.seed, "data": {"init_args": {"seed": self.seed}}})

    def placed(self, root: Path) -> Config:
        """Return the configuration with its directory and its teacher's checkpoint, for ``kd-lightning fit``."""
        config = _replaced(self.config, self.checkpoints, root)
        if self.teacher:
            config = with_teacher(config, str(self.teacher.checkpoint(root)))
        return merge(config, {"trainer": {"default_root_dir": str(root / self.name)}})

    def checkpoint(self, root: Path) -> Path:
        """Return the path of the weights after the last step."""
        return root / self.name / LAST_CHECKPOINT

    def digest(self, root: Path) -> str:
        """Hash everything that the result depends on: configuration, seed, sources, and the files of other networks."""
        asked = {"evaluate": self.variant.evaluate, "student": self.variant.student, "monitor": self.variant.monitor}
        described = self.config | asked | {"sources": sources_hash(self.config)}
        parts = json.dumps(described, sort_keys=True, default=str).encode()
        for path in (*(run.checkpoint(root) for run in self.needs), *map(weights_path, filter(None, [self.weights]))):
            parts += path.read_bytes()
        return hashlib.sha256(parts).hexdigest()


@dataclass(frozen=True, eq=False)
class Group:
    """Variants that share a table, with the same seeds, data and budget."""

    name: str
    title: str
    notes: str
    variants: list[Variant]


@dataclass(frozen=True, eq=False)
class Plan:
    """The content of a compare file."""

    title: str
    notes: str
    groups: list[Group]

    @property
    def variants(self) -> list[Variant]:
        """The variants of all groups, in the file's order."""
        return [variant for group in self.groups for variant in group.variants]

    @property
    def runs(self) -> list[Run]:
        """The runs of all variants, in the file's order."""
        return [run for variant in self.variants for run in variant.runs]


def _replaced(value: Any, checkpoints: Mapping[str, Run], root: Path) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item, checkpoints, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, checkpoints, root) for item in value]
    return str(checkpoints[value].checkpoint(root)) if isinstance(value, str) and value in checkpoints else value
