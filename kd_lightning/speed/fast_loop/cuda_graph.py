"""A training step, recorded once as a CUDA graph and then replayed."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kd_lightning.core.attached import callbacks_of
from kd_lightning.core.torch_internals import has_step_hooks
from kd_lightning.core.traits import has_trait, is_idle_hook, steps_are_alike

WARM_UP_STEPS = 3
"""Eager steps before the recording, which must not include the set-up of libraries at their first use."""
HOOKS_INSIDE = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")


class CUDAGraphStep:
    """Launches the kernels of a whole step, from the forward pass to the optimizer's, at once.

    A replay repeats the recorded kernels on the recorded memory: the batch is copied to where the recorded one was, and
    no Python runs. Numbers in Python therefore keep their recorded values. When a number of the optimizer changes, a
    learning rate for instance, the step is recorded again. A step whose batch has other shapes runs in eager mode, and
    so do all steps once recording has failed: `failure` tells why.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self._warm_steps = 0
        self._recorded: _Recorded | None = None

    def replay(self, batch: Any, optimizer: torch.optim.Optimizer, step: Callable[[Any], Tensor]) -> Tensor | None:
        """Replay the recorded step on a batch; record it first where there is none.

        Args:
            batch: Tensors on the GPU, in a tuple or a list.
            optimizer: The optimizer that the step moves.
            step: Runs the whole step on a batch and returns the loss; it is called for the recording alone.

        Returns:
            The loss, in memory that the next replay overwrites, or None if the caller has to run the step.
        """
        if self.failure is not None:
            return None
        if not _are_cuda_tensors(batch):
            self.failure = f"a batch is a {type(batch).__name__}, not a tuple of tensors on the GPU"
            return None
        if self._warm_steps < WARM_UP_STEPS:
            self._warm_steps += 1
            return None
        recorded, settings = self._recorded, _settings(optimizer)
        if recorded is None or recorded.settings != settings:
            try:
                recorded = self._recorded = _record(batch, optimizer, settings, step)
            except Exception as error:
                self._recorded, self.failure = None, str(error).strip().partition("\n")[0]
                return None
        if recorded.layouts != [_layout(tensor) for tensor in batch]:
            return None
        for memory, tensor in zip(recorded.inputs, batch, strict=True):
            memory.copy_(_without_repeats(tensor))
        recorded.graph.replay()
        return recorded.loss


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    layouts: list[Any]
    """Dtype, shape and strides of each tensor of the batch."""
    inputs: list[Tensor]
    """The memory that the graph reads the batch from, without repeats."""
    loss: Tensor
    settings: list[Any]
    """The optimizer's numbers."""


def _record(
    batch: Any, optimizer: torch.optim.Optimizer, settings: list[Any], step: Callable[[Any], Tensor]
) -> _Recorded:
    inputs = [_without_repeats(tensor).clone() for tensor in batch]
    views = type(batch)(memory.expand_as(tensor) for memory, tensor in zip(inputs, batch, strict=True))
    graph = torch.cuda.CUDAGraph()
    with _capturable(optimizer), _restored_on_failure(batch[0].device), torch.cuda.graph(graph):
        loss = step(views)
    return _Recorded(graph, [_layout(tensor) for tensor in batch], inputs, loss, settings)


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Generator[None]:
    """Set `capturable`: fused optimizers support graph capture, but refuse it without."""
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
def _restored_on_failure(device: torch.device) -> Generator[None]:
    """Restore the current stream and the random generator, which a failed recording leaves in capture mode."""
    stream = torch.cuda.current_stream(device)
    generator = torch.cuda.default_generators[device.index]
    state = generator.clone_state()
    try:
        yield
    except BaseException:
        torch.cuda.set_stream(stream)
        generator.graphsafe_set_state(state)
        raise


def why_not_recordable(trainer: Trainer) -> str | None:
    """Find the first reason why the steps of a trainer cannot be recorded; None if there is none."""
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
    callbacks = callbacks_of(trainer)
    for callback in callbacks:
        if has_trait(callback, "changes_step") or has_trait(callback, "changes_teacher"):
            return f"{type(callback).__name__} changes the training step"
    others = [callback for callback in callbacks if not has_trait(callback, "hooks_are_recordable")]
    for owner, base in [(module, LightningModule), *((callback, Callback) for callback in others)]:
        for name in HOOKS_INSIDE:
            if is_idle_hook(owner, name):
                continue
            if getattr(type(owner), name) is not getattr(base, name) or name in vars(owner):
                return f"{type(owner).__name__}.{name} is called in the midst of a step"
    if has_step_hooks(optimizer):
        return "the optimizer has hooks"
    if trainer.strategy.root_device.type != "cuda" or trainer.world_size > 1:
        return "the run is not on one GPU"
    return None


def _are_cuda_tensors(batch: Any) -> bool:
    return type(batch) in (tuple, list) and all(type(part) is Tensor and part.is_cuda for part in batch)


def _settings(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [value for group in optimizer.param_groups for name, value in group.items() if name != "params"]


def _layout(tensor: Tensor) -> Any:
    return tensor.dtype, tensor.shape, tensor.stride()


def _without_repeats(tensor: Tensor) -> Tensor:
    """Narrow dimensions of stride 0 to one entry, e.g. a grey channel that is expanded to three."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor
