"""``kd-lightning export``: a network of a checkpoint as safetensors."""

from __future__ import annotations

from collections.abc import Sequence

from kd_lightning.cli.errors import Parser


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
    options = parser.parse_args(args)
    from kd_lightning.weights.export import export_checkpoint

    print(export_checkpoint(options.checkpoint, options.output))
    return 0
