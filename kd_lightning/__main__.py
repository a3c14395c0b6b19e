"""The command line: ``kd-lightning`` and ``python -m kd_lightning``. Commands that need no torch do not load it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import cast

import kd_lightning
from kd_lightning.cli.errors import report_errors
from kd_lightning.core.errors import UsageError
from kd_lightning.core.lookup import suggestion
from kd_lightning.core.working_directory import import_from_working_directory

HELP = """\
usage: kd-lightning COMMAND [ARGUMENT ...]

Knowledge distillation for PyTorch Lightning: a small student learns with the help of a large teacher.

  fit       --config FILE          train the model that the YAML file describes
  validate  --config FILE          evaluate its best checkpoint on the validation set
  test      --config FILE          evaluate its best checkpoint on the test set
  predict   --config FILE          write its best checkpoint's logits of the test set
  check     --config FILE          build what the file describes and take one batch, without a run
  compare   --config FILE          train several variants with several seeds, and compare their results
  sweep     --config FILE          choose a grid's values on validation data, with optuna
  export    --checkpoint FILE --output FILE.safetensors
                                   write the student's weights alone
  layers    --config FILE          list the layers of student and teacher with their output shapes
  list                             list all methods with their papers
  show      NAME                   print the YAML file of a method
  doctor    [--config FILE]        report versions, devices, caches and extras, and what FILE needs
  --version                        print the version

  kd-lightning fit --config configs/mnist/teacher.yaml
  kd-lightning fit --config configs/mnist/distilled.yaml --config configs/parts/bf16.yaml --trainer.max_epochs=2
  kd-lightning fit --config configs/mnist/distilled.yaml --ckpt_path last         (resumes an interrupted run)

FILE is a path, or else the name of a file that comes with the package. Later files override earlier ones, and options
override files: `kd-lightning fit --help` lists all options, and `--print_config` as the last option prints the result.

A class_path may name a class of a module in the working directory.
A run directory (trainer.default_root_dir) contains config.yaml, best.ckpt (by the scheme's monitor, val/acc for
classifiers; none without validation), last.ckpt, metrics.csv and TensorBoard's event files.

Exit codes: 0; 2 for a user's mistake, with one line that names it; 130 after Ctrl-C; 143 after SIGTERM; 1 for a bug,
with a traceback (with KD_LIGHTNING_TRACEBACK=1 in the environment, mistakes have one as well).
"""

HOMES = {
    "check": "kd_lightning.cli.check:main",
    "compare": "kd_lightning.compare:main",
    "doctor": "kd_lightning.cli.doctor:main",
    "export": "kd_lightning.cli.export:main",
    "layers": "kd_lightning.cli.layers:main",
    "list": "kd_lightning.cli.configs:list_command",
    "show": "kd_lightning.cli.configs:show_command",
    "sweep": "kd_lightning.compare.sweep:main",
}
"""The function of each command, which is imported with the command alone."""
TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
"""The commands of the trainer, one function for all."""
COMMANDS = (*TRAINER_COMMANDS, *HOMES)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: The arguments after ``kd-lightning``; the process's own arguments if not given.

    Returns:
        The exit code.

    Example:
        >>> main(["--version"])
        kd-lightning 0.1.0
        0
    """
    given = list(sys.argv[1:] if args is None else args)
    if args is None:
        import_from_working_directory()
    return report_errors(lambda: _run(given))


def _run(args: list[str]) -> int:
    command, *rest = args or ["--help"]
    if command in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0
    if command == "--version":
        print(f"kd-lightning {kd_lightning.__version__}")
        return 0
    if command == "methods":  # the former name of both
        now = f"show {rest[0]}" if rest else "list"
        raise UsageError(f"methods is now `list` and `show NAME`: kd-lightning {now}")
    if command not in COMMANDS:
        raise UsageError(f"{command}: there is no such command{suggestion(command, COMMANDS)}")
    home, _, name = HOMES.get(command, "kd_lightning.cli.engine:main").partition(":")
    function = cast("Callable[[list[str]], int]", getattr(import_module(home), name))
    return function(rest if command in HOMES else args)


if __name__ == "__main__":
    sys.exit(main())
