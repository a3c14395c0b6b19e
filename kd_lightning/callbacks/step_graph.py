"""A training step, recorded once as a CUDA graph and then replayed."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kd_lightning.core.traits import has_trait, is_idle_hook, steps_are_alike

WARM_UP = 3
"""Steps that run as they are before one is recorded: what libraries set up at first use must not be recorded."""
IN_THE_MIDST = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")


class StepGraph:
    """The kernels of a whole step, from the forward pass to the optimizer's, launched at once.

    What a replay does is what the recorded step did, on the memory that it did it on: a batch is copied into the place
    of the one that was recorded, and of Python nothing runs. Numbers in Python are what they were; when one of the
    optimizer's changes, a learning rate say, the step is recorded anew. A step whose batch has another shape is not
    replayed, and nothing is any more once recording has failed: `failure` says why.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self._warm = 0
        self._recorded: _Recorded | None = None

    def replay(self, batch: Any, optimizer: torch.optim.Optimizer, step: Callable[[Any], Tensor]) -> Tensor | None:
        """Does a step on a batch, if it can.

        Args:
            batch: Tensors on the device, in a tuple or a list.
            optimizer: Whose step it is.
            step: Does all of it, and gives the loss; it is called when the step is to be recorded.

        Returns:
            The loss, whose memory the next replay writes to, or None if nothing was done.
        """
        if self.failure is not None:
            return None
        if not _is_tensors(batch):
            self.failure = f"a batch is a {type(batch).__name__}, not a tuple of tensors on the GPU"
            return None
        if self._warm < WARM_UP:
            self._warm += 1
            return None
        recorded, numbers = self._recorded, _numbers(optimizer)
        if recorded is None or recorded.numbers != numbers:
            try:
                recorded = self._recorded = _record(batch, optimizer, numbers, step)
            except Exception as error:
                self._recorded, self.failure = None, str(error).strip().partition("\n")[0]
                return None
        if recorded.kind != [_kind(tensor) for tensor in batch]:
            return None
        for place, tensor in zip(recorded.places, batch, strict=True):
            place.copy_(_once(tensor))
        recorded.graph.replay()
        return recorded.loss


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    kind: list[Any]
    """Of the batch's tensors."""
    places: list[Tensor]
    """Where a batch is to be copied, without what is repeated."""
    loss: Tensor
    numbers: list[Any]


def _record(
    batch: Any, optimizer: torch.optim.Optimizer, numbers: list[Any], step: Callable[[Any], Tensor]
) -> _Recorded:
    places = [_once(tensor).clone() for tensor in batch]
    inputs = type(batch)(place.expand_as(tensor) for place, tensor in zip(places, batch, strict=True))
    graph = torch.cuda.CUDAGraph()
    with _capturable(optimizer), _undone_if_it_fails(batch[0].device), torch.cuda.graph(graph):
        loss = step(inputs)
    return _Recorded(graph, [_kind(tensor) for tensor in batch], places, loss, numbers)


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Generator[None]:
    """A fused optimizer is, and has to be told."""
    before = [group.get("capturable") for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group, value in zip(optimizer.param_groups, before, strict=True):
            group["capturable"] = value
            if value is None:
                del group["capturable"]


@contextmanager
def _undone_if_it_fails(device: torch.device) -> Generator[None]:
    """A recording that fails leaves its stream behind, and a generator that takes itself for recorded."""
    stream = torch.cuda.current_stream(device)
    generator = torch.cuda.default_generators[device.index]
    state = generator.clone_state()
    try:
        yield
    except BaseException:
        torch.cuda.set_stream(stream)
        generator.graphsafe_set_state(state)
        raise


def refusal(trainer: Trainer) -> str | None:
    """Why the steps of a trainer cannot be recorded, or nothing."""
    optimizer, module = trainer.optimizers[0], trainer.lightning_module
    groups = optimizer.param_groups
    if trainer.accumulate_grad_batches != 1:
        return "gradients are accumulated"
    if type(optimizer) is not torch.optim.SGD and not all(g.get("fused") or g.get("capturable") for g in groups):
        return f"{type(optimizer).__name__} counts its steps on the CPU: set the optimizer's `fused: true`"
    if any(config.interval == "step" for config in trainer.lr_scheduler_configs):
        return "a scheduler changes the learning rate at each step"
    if not steps_are_alike(module):
        return f"the steps of {type(module).__name__} are not alike: its `steps_are_alike` is False"
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    for callback in callbacks:
        if has_trait(callback, "changes_step") or has_trait(callback, "changes_teacher"):
            return f"{type(callback).__name__} changes what a step does"
    for owner, base in [(module, LightningModule), *((callback, Callback) for callback in callbacks)]:
        for name in IN_THE_MIDST:
            if is_idle_hook(owner, name):
                continue
            if getattr(type(owner), name) is not getattr(base, name) or name in vars(owner):
                return f"{type(owner).__name__}.{name} is called in the midst of a step"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:  # pyright: ignore[reportPrivateUsage]
        return "the optimizer has hooks"
    if trainer.strategy.root_device.type != "cuda" or trainer.world_size > 1:
        return "the run is not on one GPU"
    return None


def _is_tensors(batch: Any) -> bool:
    return type(batch) in (tuple, list) and all(type(part) is Tensor and part.is_cuda for part in batch)


def _numbers(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [value for group in optimizer.param_groups for name, value in group.items() if name != "params"]


def _kind(tensor: Tensor) -> Any:
    return tensor.dtype, tensor.shape, tensor.stride()


def _once(tensor: Tensor) -> Tensor:
    """Without what is repeated in memory by a stride of 0: one channel that is shown as three."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor
