"""Evidence that a run leaves: its checkpoints, weights and rows of metrics, and files that should not be there."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from kd_lightning.core.hashing import hash_tensors
from tests.run_rows import rows

OF_A_RUN = re.compile(r"config\.yaml|metrics\.csv|best\.ckpt|last\.ckpt|events\.out\..*")
OF_PYTHON = re.compile(r"pymp-.*|listener-.*")
"""What multiprocessing removes at the exit of a process, unless that is killed."""


def write_result(folder: Path, weights: dict[str, Tensor], **more: Any) -> None:
    """Write beside a finished run what another run is compared with: weights, the best ones, and the rows."""
    best = folder / "best.ckpt"
    content = {
        "weights": hash_tensors(weights),
        "best": hash_tensors(torch.load(best, weights_only=True)["state_dict"]) if best.exists() else "",
        "rows": rows(folder),
    }
    folder.with_name("result.json").write_text(json.dumps(content | more))


def unreadable(folder: Path) -> list[str]:
    """List the checkpoints that cannot be read, or hold weights or moments that are not finite."""
    found: list[str] = []
    for path in sorted(folder.glob("*.ckpt")):
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            content = torch.load(path, weights_only=True)
        except Exception as error:  # whatever a torn file leads to
            found.append(f"{path.name}: {error}")
            continue
        state = tree_leaves([content["state_dict"], content["optimizer_states"]])
        tensors = [each for each in state if isinstance(each, Tensor) and each.is_floating_point()]
        if damaged or not all(each.isfinite().all() for each in tensors):
            found.append(f"{path.name}: {damaged or 'a value is not finite'}")
    return found


def last_step(folder: Path) -> int:
    """Give the optimizer step of the last checkpoint; -1 without one that can be read."""
    try:
        return int(torch.load(folder / "last.ckpt", weights_only=True)["global_step"])
    except Exception:  # whatever a torn file leads to
        return -1


def lost(folder: Path) -> list[str]:
    """List the checkpoints that were written, and are older now or gone."""
    listed = folder.with_name("saves")
    newest = dict(line.split() for line in listed.read_text().splitlines()) if listed.exists() else {}
    found: list[str] = []
    for name, step in newest.items():
        path = folder / name
        here = torch.load(path, weights_only=True)["global_step"] if path.exists() else -1
        if here < int(step):
            found.append(f"{name}: step {here} instead of {step}")
    return found


def strays(root: Path, *folders: Path) -> list[str]:
    """List files that are no part of a run.

    Args:
        root: The directory of everything, where no temporary file, which begins with a point, is to remain.
        folders: Run directories, which may have the files of a run alone, and directories of temporary files.
    """
    inside = [path for folder in folders for path in folder.rglob("*") if not OF_A_RUN.fullmatch(path.name)]
    inside = [path for path in inside if not OF_PYTHON.fullmatch(path.name)]
    return sorted({path.name for path in [*inside, *root.rglob(".*")]})
