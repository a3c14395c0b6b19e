"""``kd-lightning layers``: the layers that a term may address, and their output shapes on a real batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from kd_lightning.cli.engine import build
from kd_lightning.cli.log_filters import expected_messages_hidden
from kd_lightning.core.activations import logits_of
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import Learner
from kd_lightning.core.network_call import run

HELP = """\
usage: kd-lightning layers --config FILE [OPTION ...]

List the layers of student and teacher that a term may name, with their output shapes on the first training batch, and
the layers of the other network that match.

  --config FILE      YAML file of the run, as for `fit`; later files override earlier ones
  --model... --data... --trainer...
                     options override files; `kd-lightning fit --help` lists all of them

  kd-lightning layers --config configs/response/kd.yaml
"""

Shapes = dict[str, tuple[int, ...]]
"""Output shapes of a network's layers, by name, in the order in which they run."""


def main(args: Sequence[str]) -> int:
    """Print both networks' layers with their output shapes, and the layers of the other network that match.

    Args:
        args: The arguments after ``kd-lightning layers``, those of ``kd-lightning fit``.

    Returns:
        The exit code.
    """
    if "--help" in args or "-h" in args:
        print(HELP, end="")
        return 0
    if not args:
        raise UsageError("layers: name a configuration: kd-lightning layers --config FILE")
    cli = build([*args, "--trainer.logger=false", "--trainer.enable_checkpointing=false"])
    learner: Any = cli.model
    if not isinstance(learner, Learner):
        raise UsageError(f"layers: {type(learner).__name__} is not a Learner of kd_lightning and has no terms")
    networks = {name: learner.get_submodule(name) for name in ("student", "teacher") if hasattr(learner, name)}
    try:
        with expected_messages_hidden():
            batch = learner.split_batch(_first_batch(cli.datamodule))
        student = shapes(networks["student"], batch.student)
        teacher = shapes(networks["teacher"], batch.teacher) if "teacher" in networks else {}
    except Exception as error:
        cli.raise_located(error)
    console = Console(width=None if Console().is_terminal else 120)
    console.print(_table("student", networks["student"], student, teacher))
    if teacher:
        console.print(_table("teacher", networks["teacher"], teacher, student))
        console.print(
            "= same shape: any loss compares them. ~ same height and width: a loss with a connector compares them: "
            "HintLoss with student_channels and teacher_channels.",
            style="dim",
        )
    return 0


def shapes(network: nn.Module, inputs: Any) -> Shapes:
    """Record the output shape of every layer that runs once and returns a tensor: terms can address these alone.

    Args:
        network: The network; it runs in eval mode.
        inputs: A mapping becomes keyword arguments, anything else the one positional argument.

    Example:
        >>> shapes(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.zeros(5, 4))
        {'0': (5, 3), '1': (5, 3), 'logits': (5, 3)}
    """
    outputs: dict[str, list[object]] = {}

    def recorder(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: object) -> None:
            outputs.setdefault(name, []).append(output)

        return hook

    handles = [
        module.register_forward_hook(recorder(name))
        for name, module in network.named_modules(remove_duplicate=False)
        if name
    ]
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        with torch.no_grad():
            outputs["logits"] = [logits_of(run(network, inputs))]
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    order = [name for name in outputs if name != "logits"] + ["logits"]
    only = {name: outputs[name][0] for name in order if len(outputs[name]) == 1}
    return {name: tuple(output.shape) for name, output in only.items() if isinstance(output, Tensor)}


def _first_batch(data: Any) -> Any:
    data.prepare_data()
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def _table(side: str, network: nn.Module, own: Shapes, others: Shapes) -> Table:
    other = "teacher" if side == "student" else "student"
    table = Table(title=f"{side}: {type(network).__name__}", title_justify="left", title_style="bold")
    table.add_column("layer", no_wrap=True)
    table.add_column("output", no_wrap=True)
    if others:
        table.add_column(f"= {other}")
        table.add_column(f"~ {other}")
    for name, shape in own.items():
        row = [name, " x ".join(map(str, shape))]
        if others:
            equal = [layer for layer, found in others.items() if found == shape]
            alike = [layer for layer, found in others.items() if layer not in equal and _connects(shape, found)]
            row += [", ".join(equal), ", ".join(alike)]
        table.add_row(*map(escape, row))
    return table


def _connects(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Return True if a connector from one width to the other makes the shapes equal."""
    return len(shape) == len(other) > 2 and shape[2:] == other[2:]
