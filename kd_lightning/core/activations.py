"""Activations of named layers: the only place that registers forward hooks on networks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kd_lightning.core.compiled_calls import guard_compiled
from kd_lightning.core.errors import UsageError
from kd_lightning.core.lookup import nearest, network_names
from kd_lightning.core.network_call import run, tensors_in
from kd_lightning.core.outputs import part_of, tensor_parts

Activations = dict[str, Tensor]
"""Outputs of layers, by layer name."""
LOGITS = ("logits",)


@contextmanager
def record_activations(network: nn.Module, layers: Iterable[str] = LOGITS) -> Generator[Activations]:
    """Record the outputs of named layers while the context is open; the hooks are removed afterwards.

    A layer is the dotted name of a submodule, as in ``network.named_modules()``, or of a parameter or a buffer, whose
    value is recorded. A part of an output that is a tuple, a mapping or an object is addressed behind its layer:
    ``lstm.0`` is the first element of the output of ``lstm``, ``encoder.last_hidden_state`` the item or attribute of
    that name, ``output.0`` a part of the network's own output. Two names are special: ``"logits"`` is the network's own
    output, a tensor or the ``.logits`` of an object or a mapping, and ``"input"`` is its first input. A compiled
    network gets one graph for each set of layers.

    Args:
        network: The network; it must run exactly once in the context.
        layers: What to record.

    Yields:
        The activations by layer, filled in when the context closes.

    Raises:
        UsageError: There is no such layer (the nearest names are given), a layer gave something other than a tensor,
            ran never or more than once, or its output was overwritten in place.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with record_activations(network, ["1", "logits"]) as activations:
        ...     output = network(torch.zeros(5, 4))
        >>> {layer: tuple(activation.shape) for layer, activation in activations.items()}
        {'1': (5, 3), 'logits': (5, 2)}
    """
    outputs: dict[str, list[object]] = {layer: [] for layer in layers}
    versions: dict[str, int] = {}

    def record(layer: str, value: object) -> None:
        if isinstance(value, Tensor):
            if torch.compiler.is_compiling():
                value = value.clone()  # a graph keeps no versions, but a copy cannot be overwritten
            elif not value.is_inference():  # such tensors keep no version either
                versions[layer] = value._version
        outputs[layer].append(value)

    activations: Activations = {}
    handles: list[RemovableHandle] = []
    try:
        for layer in outputs:
            if handle := _hook(network, layer, record):
                handles.append(handle)
        yield activations
    finally:
        for handle in handles:
            handle.remove()
    for layer, values in outputs.items():
        activations[layer] = _single(layer, values)
        if layer in versions and activations[layer]._version != versions[layer]:
            raise UsageError(
                f"the output of layer {layer!r} was overwritten in place by a later layer (a ReLU with inplace=True?): "
                "name that later layer, or build it with inplace=False"
            )


def tap(network: nn.Module, inputs: Any, layers: Iterable[str] = LOGITS) -> Activations:
    """Run a network once and return the activations of its layers; see `record_activations` for names and errors.

    Args:
        network: The network to run.
        inputs: A mapping becomes keyword arguments, anything else the one positional argument.
        layers: What to record; the logits if not given.

    Returns:
        The activations by layer, these layers alone.

    Raises:
        UsageError: As for `record_activations`; or another network has overwritten the input in place, or torch refuses
            it.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(4, 2))
        >>> list(tap(network, torch.zeros(5, 4))), list(tap(network, torch.zeros(5, 4), ["input", "0"]))
        (['logits'], ['input', '0'])
    """
    layers = list(layers)
    if layers == ["logits"]:  # the output needs no hook
        output = run(network, inputs)
        return {"logits": output if isinstance(output, Tensor) else _single("logits", [logits_of(output)])}
    with record_activations(network, layers) as activations:
        run(network, inputs)
    return activations


class Call(NamedTuple):
    """The arguments of one call of a network."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    versions: list[int]
    """Version counters of the tensors among them, where torch keeps these."""

    def was_overwritten(self) -> bool:
        """Tell whether an argument was written into since the call."""
        return self.versions not in ([], _versions(self.args, self.kwargs))


@contextmanager
def record_calls(network: nn.Module) -> Generator[list[Call]]:
    """Record the arguments of every call of a network while the context is open.

    Example:
        >>> import torch
        >>> network = nn.Linear(4, 2)
        >>> with record_calls(network) as calls:
        ...     output = network(torch.zeros(5, 4))
        >>> len(calls), calls[0].args[0].shape
        (1, torch.Size([5, 4]))
    """
    calls: list[Call] = []

    def keep(_network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # a graph keeps no versions
        calls.append(Call(args, kwargs, [] if torch.compiler.is_compiling() else _versions(args, kwargs)))

    handle = network.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _versions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    return [value._version for value in tensors_in((args, kwargs)) if not value.is_inference()]


def differentiable(inputs: Any) -> Any:
    """Return the input as a tensor that requires a gradient, for losses that differentiate by it.

    Raises:
        UsageError: It is not a floating-point tensor.
    """
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        found = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise UsageError(f"a term takes derivatives by the input, which is {found}: it must be a floating-point tensor")
    return inputs if inputs.requires_grad else inputs.detach().requires_grad_()


def logits_of(output: object) -> object:
    """Return the logits in a network's output: itself, its ``.logits``, or its item ``"logits"``."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return cast("Mapping[str, object]", output).get("logits", output)
    return getattr(output, "logits", output)


def logits(network: nn.Module, inputs: Any) -> Tensor:
    """Run a network and return its logits.

    Raises:
        UsageError: It returned neither a tensor nor an object or mapping with logits.
    """
    output = logits_of(run(network, inputs))
    return output if isinstance(output, Tensor) else _single("logits", [output])


def _single(layer: str, outputs: list[object]) -> Tensor:
    """Return the only recorded output of a layer, a tensor."""
    what = "the network" if layer == "logits" else f"layer {layer!r}"
    if not outputs:
        raise UsageError(
            f"{what} did not run while its activations were recorded: name a layer that takes part in the forward pass "
            "(or call torch.compiler.reset(), if a function around the network was compiled before)"
        )
    if len(outputs) > 1:
        raise UsageError(
            f"{what} ran {len(outputs)} times while its activations were recorded, so that it has no single activation"
        )
    if not isinstance(outputs[0], Tensor):
        start = "output" if layer == "logits" else layer
        there = [f"{start}{part}" for part in islice(tensor_parts(outputs[0]), 4)]
        remedy = "return one, or an object with .logits" if layer == "logits" else "name a layer that gives one"
        remedy += f", or address a part of it: {', '.join(there)}" if there else ""
        raise UsageError(f"{what} gave {type(outputs[0]).__name__}, not a tensor: {remedy}")
    return outputs[0]


def _hook(network: nn.Module, layer: str, record: Callable[[str, object], None]) -> RemovableHandle | None:
    def on_output(_module: nn.Module, _args: Any, output: object) -> None:
        record(layer, logits_of(output) if layer == "logits" else output)

    def on_input(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        record(layer, next(iter([*args, *kwargs.values()]), None))

    if not torch.compiler.is_compiling():
        guard_compiled(network, "" if layer in ("input", "logits") else layer)
    if layer == "input":
        return network.register_forward_pre_hook(on_input, with_kwargs=True)
    if layer == "logits":
        return network.register_forward_hook(on_output)
    module, parts = _layer_of(network, layer)
    if module is None or parts:
        own = {**dict(network.named_buffers()), **dict(network.named_parameters())}
        if layer in own:
            record(layer, own[layer])
            return None
    if module is None:
        raise _no_layer(network, layer)

    def on_part(_module: nn.Module, _args: Any, output: object) -> None:
        value = output
        for part in parts:
            value = part_of(value, part)
        if value is None:
            start = layer.removesuffix("." + ".".join(parts))
            raise _no_layer(network, layer, (start + part for part in islice(tensor_parts(output), 4) if part))
        record(layer, value)

    return module.register_forward_hook(on_part if parts else on_output)


def _layer_of(network: nn.Module, name: str) -> tuple[nn.Module | None, list[str]]:
    """Return the layer of a name, and what of the name leads into its output; no layer if there is none."""
    names = name.split(".")
    for length in range(len(names), 0, -1):
        try:
            module = network.get_submodule(".".join(names[:length]))
        except AttributeError:
            continue
        inside = names[length:]
        # what a container has no layer for is a mistake, and not a part of its output
        is_container = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        return (None, []) if inside and is_container else (module, inside)
    return (network, names[1:]) if names[0] == "output" and len(names) > 1 else (None, [])


def _no_layer(network: nn.Module, layer: str, parts: Iterable[str] = ()) -> UsageError:
    near, there = nearest(layer, network_names(network)), ", ".join(parts)
    return UsageError(
        f"{type(network).__name__} has no layer {layer!r}; the nearest names are {near}"
        + (f"; tensors in that output are at {there}" if there else "")
    )
