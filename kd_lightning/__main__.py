"""The command line: ``kd-lightning`` and ``python -m kd_lightning``. Only the commands that need torch wait for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import kd_lightning
from kd_lightning.cli.errors import Parser, in_one_line, nearest
from kd_lightning.core.errors import UsageError

HELP = """\
usage: kd-lightning COMMAND [ARGUMENT ...]

Knowledge distillation for PyTorch Lightning: a small student learns with the help of a large teacher.

  fit       --config FILE          train what the YAML file describes
  validate  --config FILE          evaluate its best checkpoint on the validation images
  test      --config FILE          evaluate its best checkpoint on the test images
  predict   --config FILE          write the logits that its best checkpoint gives for the test images
  compare   --config FILE          train several variants under several seeds, and show what each is worth
  export    --checkpoint FILE --output FILE.safetensors
                                   write the student alone
  layers    --config FILE          show the layers of student and teacher, what each gives, and which of them agree
  methods   [NAME]                 list the methods with their papers, or print the YAML of one
  --version                        print the version

  kd-lightning fit --config configs/mnist/teacher.yaml
  kd-lightning fit --config configs/mnist/distilled.yaml --config configs/parts/bf16.yaml --trainer.max_epochs=2
  kd-lightning fit --config configs/mnist/distilled.yaml --ckpt_path last         (goes on where the run stopped)

FILE is looked for in the working folder, and then among the files that come with the package. Files are laid on top of
each other in their order, and options on top of them: `kd-lightning fit --help` lists them all, and `--print_config`
behind the others prints what everything amounts to.

A run's folder (trainer.default_root_dir) holds config.yaml, best.ckpt (by val/acc; none without validation), last.ckpt,
metrics.csv and TensorBoard's events.

Exit codes: 0; 2 for a mistake in what was given, with one line that says which; 130 after Ctrl-C; 143 after SIGTERM; 1
for a bug, with a traceback (with KD_LIGHTNING_TRACEBACK=1 in the environment, mistakes have one as well).
"""

COMMANDS = ("fit", "validate", "test", "predict", "compare", "export", "layers", "methods")


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        args: What stands behind ``kd-lightning``; the process's own arguments if not given.

    Returns:
        The exit code.

    Example:
        >>> main(["--version"])
        kd-lightning 0.1.0
        0
    """
    given = list(sys.argv[1:] if args is None else args)
    return in_one_line(lambda: _run(given))


def _run(args: list[str]) -> int:
    command, *rest = args or ["--help"]
    if command in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0
    if command == "--version":
        print(f"kd-lightning {kd_lightning.__version__}")
        return 0
    if command not in COMMANDS:
        raise UsageError(f"{command}: there is no such command{nearest(command, COMMANDS)}")
    if command == "methods":
        from kd_lightning.cli.configs import main as methods

        return methods(rest)
    if command == "export":
        return _export(rest)
    if command == "compare":
        from kd_lightning.compare import main as compare

        return compare(rest)
    if command == "layers":
        from kd_lightning.cli.layers import main as layers

        return layers(rest)
    from kd_lightning.cli.engine import main as run

    return run([command, *rest])


def _export(args: list[str]) -> int:
    parser = Parser("kd-lightning export", description="Writes the student of a checkpoint, as safetensors.")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="of a run, such as runs/kd/last.ckpt")
    parser.add_argument("--output", required=True, metavar="FILE.safetensors", help="what to write")
    options = parser.parse_args(args)
    from kd_lightning.weights.export import export

    print(export(options.checkpoint, options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
