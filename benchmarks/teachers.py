"""Compares the packaged teachers with the same ones trained again, or puts these in their place.

python -m benchmarks.teachers [--write]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from kd_lightning.core.packaged import PREFIX
from kd_lightning.weights import export_checkpoint, read_weights

RUNS = Path("runs/compare/teachers")
NAMES = {f"{PREFIX}mnist/teacher-{seed}": f"teacher/{{}}/seed-{seed}" for seed in range(3)} | {
    f"{PREFIX}mnist/teacher-batch-norm": "batch-norm/{}/seed-0"
}
FILES = Path(__file__).parents[1] / "kd_lightning/weights/files"


def nearness(name: str) -> str:
    """One line: how near the new training has come to a packaged teacher."""
    trained, packaged = (RUNS / NAMES[name].format(variant) for variant in ("trained", "packaged"))
    logits = [np.load(folder / "test.npz")["logits"] for folder in (trained, packaged)]
    labels = np.load(trained / "test.npz")["target"]
    accuracies = [f"{100 * (rows.argmax(1) == labels).mean():.2f} %" for rows in logits]
    same = 100 * (logits[0].argmax(1) == logits[1].argmax(1)).mean()
    new, old = read_weights(trained / "last.ckpt", "student").tensors, read_weights(name, "student").tensors
    far = max((new[f"student.{key}"].double() - value.double()).abs().max().item() for key, value in old.items())
    return (
        f"{name}: {accuracies[1]} packaged, {accuracies[0]} trained again; "
        f"{same:.2f} % of the predictions agree; weights differ by at most {far:.2g}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the trained ones in the place of the packaged ones")
    if parser.parse_args().write:
        for name, run in NAMES.items():
            output = FILES / f"{name.removeprefix(PREFIX)}.safetensors"
            output.parent.mkdir(parents=True, exist_ok=True)
            print(export_checkpoint(str(RUNS / run.format("trained") / "last.ckpt"), str(output)))
        return
    for name in NAMES:
        print(nearness(name))


if __name__ == "__main__":
    main()
