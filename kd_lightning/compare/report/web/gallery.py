"""The images that only the student with a teacher gets right."""

from __future__ import annotations

import base64
import io
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import image
from numpy.typing import NDArray

from kd_lightning.compare.plan.artifacts import IMAGES
from kd_lightning.compare.plan.variants import Group, Variant
from kd_lightning.compare.report.web.class_figures import TestedRuns

MOST_IMAGES = 24


@dataclass(frozen=True)
class Shown:
    """A test image."""

    row: int
    data: str
    """Its PNG as a data URI."""
    label: int
    without: int
    """What most seeds of the baseline predict."""


@dataclass(frozen=True)
class Gallery:
    """The rows on which a student with a teacher and its baseline differ, by the majority of their seeds."""

    variant: Variant
    gained: int
    """Rows that only the student with a teacher gets right."""
    lost: int
    """Rows that only the baseline gets right."""
    images: list[Shown]


def galleries(group: Group, tested: TestedRuns, root: Path) -> list[Gallery]:
    """Compare each student that has a teacher with its baseline, row by row."""
    images, target = _read(root / group.name / IMAGES)
    return [
        each for variant in group.variants if variant.teacher and (each := _gallery(variant, tested, images, target))
    ]


def _gallery(
    variant: Variant, tested: TestedRuns, images: NDArray[np.uint8] | None, target: NDArray[Any] | None
) -> Gallery | None:
    baseline = variant.baseline.runs if variant.baseline else []
    pairs = [(tested[a], tested[b]) for a, b in zip(variant.runs, baseline, strict=False) if {a, b} <= tested.keys()]
    labels = pairs[0][0].target if pairs else np.zeros(0, np.int64)
    if not pairs or not all(np.array_equal(labels, each.target) for pair in pairs for each in pair):
        return None
    taught, alone = (np.mean([each.right for each in side], axis=0) for side in zip(*pairs, strict=True))
    gained, lost = (taught > 0.5) & (alone < 0.5), (taught < 0.5) & (alone > 0.5)
    shown: list[Shown] = []
    if images is not None and target is not None and np.array_equal(target, labels[: len(target)]):
        rows = np.flatnonzero(gained[: len(target)])
        rows = rows[np.argsort(-(taught - alone)[rows], kind="stable")][:MOST_IMAGES]
        for row in rows.tolist():
            wrong = Counter(int(each.predicted[row]) for _, each in pairs if not each.right[row])
            shown.append(Shown(row, _png(images[row]), int(labels[row]), wrong.most_common(1)[0][0]))
    return Gallery(variant, int(gained.sum()), int(lost.sum()), shown)


def _read(path: Path) -> tuple[NDArray[np.uint8] | None, NDArray[Any] | None]:
    try:
        with np.load(path) as saved:
            return saved["images"], saved["target"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None, None


def _png(pixels: NDArray[np.uint8]) -> str:
    """Write an image (C, H, W) of one or three channels as a data URI."""
    stream = io.BytesIO()
    shown = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    image.imsave(stream, shown, format="png", cmap="gray", vmin=0, vmax=255)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
