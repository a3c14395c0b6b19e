"""``kd-lightning export``: a network of a checkpoint as safetensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from kd_lightning.cli.errors import Parser

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of the names of what a normalization counts, and does not learn."""


def main(args: Sequence[str]) -> int:
    """Write the student of a checkpoint, or another network of it, and print what was written.

    Args:
        args: The arguments after ``kd-lightning export``.

    Returns:
        The exit code.
    """
    parser = Parser("kd-lightning export", description="Write the student of a checkpoint as safetensors.")
    parser.add_argument(
        "--checkpoint", required=True, metavar="FILE", help="checkpoint of a run, e.g. runs/kd/last.ckpt"
    )
    parser.add_argument("--output", required=True, metavar="FILE.safetensors", help="file to write")
    parser.add_argument(
        "--network", metavar="NAME", help="another network of the checkpoint, e.g. backbone; the student if not given"
    )
    options = parser.parse_args(args)
    from kd_lightning.weights.export import export_checkpoint

    path = export_checkpoint(options.checkpoint, options.output, options.network)
    print(f"{path}: {_contents(path)}")
    return 0


def _contents(path: Path) -> str:
    """Describe a file of weights: its parameters without statistics, types, and size."""
    from safetensors import safe_open

    count, types = 0, dict[str, None]()
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (it is no mapping)
            if not name.endswith(STATISTICS):
                count += math.prod(file.get_slice(name).get_shape())
                types[str(file.get_slice(name).get_dtype())] = None
    return f"{count:,} parameters of {' and '.join(types)}, {path.stat().st_size / 1024:,.1f} KiB"
