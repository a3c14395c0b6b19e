"""Calls of networks: inputs that several networks share stay unchanged, and errors name the network."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dis import opmap
from pathlib import Path
from typing import Any, NoReturn, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kd_lightning.core.errors import InputRefusedError, UsageError
from kd_lightning.core.failures import is_of_another_process
from kd_lightning.core.freezing import is_frozen

_WRITER = "_kd_overwritten_by"  # on a tensor that a network has overwritten: the network's number and its name
_numbers: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Numbers of the networks that have overwritten a tensor; those of deleted networks are not given again."""
_count = itertools.count()
_TORCH = str(Path(torch.__file__).parent)


def run(network: nn.Module, inputs: Any) -> Any:
    """Call a network: a mapping becomes keyword arguments, anything else the one positional argument.

    Raises:
        UsageError: As for `call`.
    """
    if not isinstance(inputs, Tensor):
        return call(network, **inputs) if isinstance(inputs, Mapping) else call(network, inputs)
    if torch.compiler.is_dynamo_compiling() or inputs.is_inference():  # which keep no versions
        return network(inputs)
    base = inputs._base  # attributes only from here on: Python calls are counted in every step
    if inputs.__dict__ or (base is not None and base.__dict__):
        check_unchanged(network, inputs)
    version, is_output = inputs._version, inputs.grad_fn is not None
    try:
        output = network(inputs)
    except Exception as error:
        _explain(network, inputs, error)
    if inputs._version != version:
        _overwritten(network, inputs, is_output)
    return output


def call(network: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a network with any arguments.

    Raises:
        UsageError: Another network has overwritten an argument in place, this one overwrites the output of another, or
            torch refuses the arguments, by their shapes or types.

    Example:
        >>> rectify, x = nn.ReLU(inplace=True), torch.zeros(3)
        >>> output = call(rectify, x)
        >>> call(nn.Tanh(), x)
        Traceback (most recent call last):
        kd_lightning.core.errors.UsageError: ReLU has overwritten its input in place, and Tanh gets the same tensor: ...
    """
    if torch.compiler.is_compiling():
        return network(*args, **kwargs)
    tensors = [tensor for tensor in tensors_in((args, kwargs)) if not tensor.is_inference()]
    for tensor in tensors:
        check_unchanged(network, tensor)
    before = [(tensor._version, tensor.grad_fn is not None) for tensor in tensors]
    try:
        output = network(*args, **kwargs)
    except Exception as error:
        _explain(network, (args, kwargs), error)
    for tensor, (version, is_output) in zip(tensors, before, strict=True):
        if tensor._version != version:
            _overwritten(network, tensor, is_output)
    return output


def check_unchanged(network: nn.Module, tensor: Tensor) -> None:
    """Check that no other network has overwritten a tensor that this one gets, or has got.

    Raises:
        UsageError: One has, with its name.
    """
    for each in (tensor, tensor._base):
        writer: tuple[int, str] | None = None if each is None else each.__dict__.get(_WRITER)
        if writer is not None and writer[0] != _numbers.get(network):
            raise UsageError(
                f"{writer[1]} has overwritten its input in place, and {_name(network)} gets the same tensor: "
                "clone the input in its forward before it is changed (x.sub_(1) and ReLU(inplace=True) change it)"
            )


def tensors_in(value: Any, depth: int = 6) -> Iterator[Tensor]:
    """Yield the tensors in tuples, lists, mappings and attributes of objects.

    Example:
        >>> len(list(tensors_in([torch.zeros(1), {"mask": torch.zeros(1)}, "text"])))
        2
    """
    if isinstance(value, Tensor):
        yield value
    elif depth and value is not None and not isinstance(value, str | bytes | int | float | nn.Module):
        if isinstance(value, Mapping):
            parts = list(cast("Mapping[Any, Any]", value).values())
        else:
            parts = cast("list[Any]", value) if isinstance(value, tuple | list) else [*_attributes(value).values()]
        for part in parts:
            yield from tensors_in(part, depth - 1)


def without_graph(inputs: Any) -> Any:
    """Return inputs whose tensors that were made to require a gradient, and are no parameters, require none.

    A network that calls ``requires_grad_()`` on its input, as activation checkpointing needs it, would otherwise give
    a frozen network that gets the same input a graph and a backward pass. Outputs of a network, such as images of a
    generator, keep their graph.

    Example:
        >>> x = torch.zeros(2, requires_grad=True)
        >>> without_graph(x).requires_grad, without_graph({"x": 2 * x})["x"].requires_grad
        (False, True)
    """
    if isinstance(inputs, Tensor):
        asks = inputs.requires_grad and inputs.grad_fn is None and not isinstance(inputs, nn.Parameter)
        return inputs.detach() if asks else inputs
    if type(inputs) is dict:
        return {name: without_graph(value) for name, value in cast("dict[str, Any]", inputs).items()}
    if type(inputs) in (tuple, list):
        return type(inputs)(without_graph(value) for value in inputs)
    return inputs


def _overwritten(network: nn.Module, tensor: Tensor, is_output: bool) -> None:
    """Remember who has overwritten a tensor; the output of another network is in use already."""
    name = _name(network)
    if is_output:
        raise UsageError(
            f"{name} has overwritten its input in place, which is the output of another network: clone the input in "
            "its forward before it is changed (x.sub_(1) and ReLU(inplace=True) change it)"
        )
    number = _numbers.setdefault(network, next(_count))
    base = tensor._base
    for each in (tensor, base if base is not None and base.numel() == tensor.numel() else None):
        if each is not None:
            vars(each)[_WRITER] = (number, name)


def _attributes(value: Any) -> dict[str, Any]:
    return {} if callable(value) else getattr(value, "__dict__", {})


def _name(network: nn.Module) -> str:
    return f"the teacher {type(network).__name__}" if is_frozen(network) else type(network).__name__


def _explain(network: nn.Module, inputs: Any, error: Exception) -> NoReturn:
    """Raise an error of torch about the arguments of a network in one line; any other unchanged."""
    if type(error) not in (RuntimeError, TypeError, ValueError, IndexError) or not is_of_torch(error):
        raise error
    tensors = list(tensors_in(inputs))
    given = ", ".join(f"{tuple(tensor.shape)} of {_type(tensor)}" for tensor in tensors[:4]) or "no tensor"
    text = " ".join(str(error).split())
    raise InputRefusedError(
        f"{_name(network)} cannot take its input {given}: {text}{_remedy(network, tensors) or other_widths(text)}"
    ) from error


def other_widths(message: str) -> str:
    """Return the remedy for torch's message about inputs of another width or size; empty for any other message."""
    if not re.search(r"to have \d+ channels|mat1 and mat2 shapes cannot|Kernel size can't be greater", message):
        return ""
    return ": set its widths, such as in_channels, to the data's, or the data's, such as num_channels, to its own"


def _remedy(network: nn.Module, tensors: list[Tensor]) -> str:
    """Tell what to do where weights and inputs differ in type."""
    weights = next((p for p in network.parameters() if p.is_floating_point()), None)
    first = tensors[0] if tensors else None
    if weights is None or first is None or first.dtype == weights.dtype:
        return ""
    if not first.is_floating_point():
        return f" (its weights are {_type(weights)}: if these are values, convert them, e.g. x.float() / 255)"
    low = " or wrap the network, kd_lightning.networks.BFloat16Autocast(network)" if weights.dtype.itemsize < 4 else ""
    return f" (its weights are {_type(weights)}: convert one of the two, e.g. network.to(torch.{_type(first)}){low})"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def is_of_torch(error: Exception) -> bool:
    """Tell if torch's code has raised an error, in Python, or in C++ as a RuntimeError.

    Full memory, and another process that has ended or hangs, are no fault of what torch was given.
    """
    if isinstance(error, torch.OutOfMemoryError) or is_of_another_process(error):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    if code.co_filename.startswith(_TORCH):
        return True
    return type(error) is RuntimeError and code.co_code[trace.tb_lasti] != opmap["RAISE_VARARGS"]
