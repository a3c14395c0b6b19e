"""Seeing inside a network for the length of one call: the only way that anything here reads activations."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, cast

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kd_lightning.core.errors import UsageError

# A compiled network takes no notice of hooks that come and go unless its graphs are guarded against it. Torch keeps the
# setting by thread. The import costs nothing beside lightning, which needs this part of torch as well.
torch._dynamo.config.skip_nnmodule_hook_guards = False

Activations = dict[str, Tensor]
"""What was seen, by layer name. ``"logits"`` is always there."""


@contextmanager
def watch(network: nn.Module, layers: Iterable[str] = ()) -> Generator[Activations]:
    """Records what `network` and its `layers` give while the context is open; its hooks are gone afterwards.

    A layer is the dotted name of a submodule, as in ``network.named_modules()``, or of a parameter or a buffer, which
    gives itself.
    Two names are special: ``"logits"`` (always recorded) is the network's own output, a tensor or the ``.logits`` of an
    object or a mapping, and ``"input"`` is its first input. A compiled network (``network.compile()``) gets one graph
    for each set of layers.

    Args:
        network: The network to look into; it must run exactly once in the context.
        layers: What to record beside ``"logits"``.

    Yields:
        The activations, filled in when the context closes.

    Raises:
        UsageError: There is no such layer (the nearest names are given).
        UsageError: A layer gave something other than a tensor.
        UsageError: A layer ran never, or more than once, or its output was overwritten in place.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with watch(network, ["1"]) as seen:
        ...     output = network(torch.zeros(5, 4))
        >>> {layer: tuple(activation.shape) for layer, activation in seen.items()}
        {'1': (5, 3), 'logits': (5, 2)}
    """
    outputs: dict[str, list[object]] = {layer: [] for layer in [*layers, "logits"]}
    versions: dict[str, int] = {}

    def record(layer: str, value: object) -> None:
        if isinstance(value, Tensor):
            if torch.compiler.is_compiling():
                value = value.clone()  # a graph keeps no versions, but a copy cannot be overwritten
            elif not value.is_inference():  # such tensors keep no version either
                versions[layer] = value._version
        outputs[layer].append(value)

    seen: Activations = {}
    handles: list[RemovableHandle] = []
    try:
        for layer in outputs:
            if handle := _listen(network, layer, record):
                handles.append(handle)
        yield seen
    finally:
        for handle in handles:
            handle.remove()
    for layer, values in outputs.items():
        seen[layer] = _only(layer, values)
        if layer in versions and seen[layer]._version != versions[layer]:
            raise UsageError(
                f"the output of layer {layer!r} was overwritten in place by a later layer (a ReLU with inplace=True?): "
                "name that later layer, or build it with inplace=False"
            )


def tap(network: nn.Module, inputs: Any, layers: Iterable[str] = ()) -> Activations:
    """Runs `network` once and returns its logits and what its `layers` gave; see `watch` for names and errors.

    Args:
        network: The network to run.
        inputs: A mapping becomes keyword arguments, anything else the one positional argument.
        layers: What to record beside ``"logits"``.

    Example:
        >>> import torch
        >>> sorted(tap(nn.Sequential(nn.Linear(4, 2)), torch.zeros(5, 4), ["0", "input"]))
        ['0', 'input', 'logits']
    """
    layers = list(layers)
    if layers in ([], ["logits"]):  # what the network returns is seen without hooks
        output = run(network, inputs)
        return {"logits": output if isinstance(output, Tensor) else _only("logits", [logits_of(output)])}
    with watch(network, layers) as seen:
        run(network, inputs)
    return seen


def differentiable(inputs: Any) -> Any:
    """The same input, as one that derivatives can be taken by: for losses that ask how the logits depend on it.

    Raises:
        UsageError: It is no floating-point tensor.
    """
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        found = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise UsageError(f"a term takes derivatives by the input, which is {found}: it must be a floating-point tensor")
    return inputs if inputs.requires_grad else inputs.detach().requires_grad_()


def run(network: nn.Module, inputs: Any) -> Any:
    """The output of `network` on `inputs`: a mapping becomes keyword arguments."""
    if isinstance(inputs, Tensor) or not isinstance(inputs, Mapping):
        return network(inputs)
    return network(**inputs)


def logits_of(output: object) -> object:
    """The logits in what a network returned: itself, its ``.logits``, or its item ``"logits"``."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return cast("Mapping[str, object]", output).get("logits")
    return getattr(output, "logits", output)


def _only(layer: str, outputs: list[object]) -> Tensor:
    what = "the network" if layer == "logits" else f"layer {layer!r}"
    if not outputs:
        raise UsageError(
            f"{what} did not run while it was watched: name a layer that takes part in the forward pass (or call "
            "torch.compiler.reset(), if the network was compiled before kd_lightning was imported)"
        )
    if len(outputs) > 1:
        raise UsageError(f"{what} ran {len(outputs)} times while it was watched, so that it has no single activation")
    if not isinstance(outputs[0], Tensor):
        remedy = "return one, or an object with .logits" if layer == "logits" else "name a layer that gives one"
        raise UsageError(f"{what} gave {type(outputs[0]).__name__}, not a tensor: {remedy}")
    return outputs[0]


def _listen(network: nn.Module, layer: str, record: Callable[[str, object], None]) -> RemovableHandle | None:
    def on_output(_module: nn.Module, _args: Any, output: object) -> None:
        record(layer, logits_of(output) if layer == "logits" else output)

    def on_input(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        record(layer, next(iter([*args, *kwargs.values()]), None))

    if layer == "input":
        return network.register_forward_pre_hook(on_input, with_kwargs=True)
    if layer == "logits":
        return network.register_forward_hook(on_output)
    try:
        return network.get_submodule(layer).register_forward_hook(on_output)
    except AttributeError:
        own = {**dict(network.named_buffers()), **dict(network.named_parameters())}
        if layer in own:
            record(layer, own[layer])
            return None
        names = [name for name, _ in network.named_modules() if name]
        nearest = get_close_matches(layer, names, n=3, cutoff=0.3) or names[:8]
        raise UsageError(
            f"{type(network).__name__} has no layer {layer!r}; the nearest names are {', '.join(nearest)}"
        ) from None
