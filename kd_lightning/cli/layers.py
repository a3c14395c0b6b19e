"""``kd-lightning layers``: which layers a term may address, and what each of them gives on a real batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from kd_lightning.cli.engine import build
from kd_lightning.cli.log_filters import quiet
from kd_lightning.core.activations import logits_of, run
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import Learner

Shapes = dict[str, tuple[int, ...]]
"""What a network's layers give, by their names in the order in which they run."""


def main(args: Sequence[str]) -> int:
    """Prints both networks' layers with the shapes that they give, and which of them agree.

    Args:
        args: What stands behind ``kd-lightning layers``: the same as behind ``kd-lightning fit``.

    Returns:
        The exit code.
    """
    if not args:
        raise UsageError("layers: name a configuration: kd-lightning layers --config FILE")
    run = build([*args, "--trainer.logger=false", "--trainer.enable_checkpointing=false"])
    learner: Any = run.model
    if not isinstance(learner, Learner):
        raise UsageError(f"layers: {type(learner).__name__} is no scheme of kd_lightning, so that it has no terms")
    with quiet():
        batch = learner.split_batch(_first_batch(run.datamodule))
    networks = {name: learner.get_submodule(name) for name in ("student", "teacher") if hasattr(learner, name)}
    student = shapes(networks["student"], batch.student)
    teacher = shapes(networks["teacher"], batch.teacher) if "teacher" in networks else {}
    console = Console(width=None if Console().is_terminal else 120)
    console.print(_table("student", networks["student"], student, teacher))
    if teacher:
        console.print(_table("teacher", networks["teacher"], teacher, student))
        console.print(
            "= same shape: any loss compares them as they are. ~ same height and width: a loss with a connector does, "
            "such as HintLoss with student_channels and teacher_channels.",
            style="dim",
        )
    return 0


def shapes(network: nn.Module, inputs: Any) -> Shapes:
    """What every layer gives that runs once and gives a tensor, for a term can address no others.

    Args:
        network: The network to look into; it is in eval while it runs.
        inputs: A mapping becomes keyword arguments, anything else the one positional argument.

    Example:
        >>> shapes(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.zeros(5, 4))
        {'0': (5, 3), '1': (5, 3), 'logits': (5, 3)}
    """
    outputs: dict[str, list[object]] = {}

    def watched(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: object) -> None:
            outputs.setdefault(name, []).append(output)

        return hook

    handles = [
        module.register_forward_hook(watched(name))
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
    table.add_column("gives", no_wrap=True)
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
    """Whether a connector from one width to the other leads there."""
    return len(shape) == len(other) > 2 and shape[2:] == other[2:]
