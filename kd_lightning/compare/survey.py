"""Before anything is trained: what each network costs, and about how long each variant's runs will take."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from kd_lightning.compare.config import Config
from kd_lightning.compare.worker import Tell


class Surveyed(NamedTuple):
    """What was measured."""

    facts: dict[str, dict[str, Any]]
    """What a table shows of each network, by `network_key`."""
    seconds: dict[str, float]
    """Of a run of each variant, by its path; one that cannot be built is not there."""


@dataclass(frozen=True)
class Survey:
    """A task for a worker, while nothing else runs."""

    configs: dict[str, Config]
    """Of each variant, by its path."""

    def __call__(self, tell: Tell) -> Surveyed:
        """Measures each network once, and from that estimates each variant."""
        from kd_lightning.compare.costs import Costs  # torch is the worker's, not the parent's

        costs, seconds = Costs(), dict[str, float]()
        for path, config in self.configs.items():
            with suppress(Exception):  # its runs will fail, and say why
                seconds[path] = costs.seconds(config)
        return Surveyed(costs.facts, seconds)


def network_key(config: Config) -> str:
    """Tells the networks of two runs apart, by how they are built."""
    return json.dumps(config.get("model", {}).get("init_args", {}).get("student"), sort_keys=True)
