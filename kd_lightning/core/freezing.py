"""Frozen networks: in eval and without gradients whatever is called on them, and excluded from state dicts.

Hooks on the network itself keep both promises, independent of the module that holds it and of its name there. Pickled
and deep-copied networks keep their hooks.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kd_lightning.core.errors import UsageError

WEIGHTS_FILE = "_kd_weights_file"
"""The attribute of a loaded network that has the name of its file."""
_FROZEN = "_kd_frozen"  # on a frozen network: its hook's handle and the names of the parameters that could learn before
_LEFT_OUT = "_kd_left_out"  # on an excluded network: the handles of its two hooks
_REFUSED = ("train", "requires_grad_", "apply")  # the calls that could change a network, by being made on its parent


def freeze(network: nn.Module) -> nn.Module:
    """Freeze a network: no parameter requires a gradient and every layer stays in eval, whatever is called later.

    On the network and its layers ``train()``, ``requires_grad_()`` and ``apply()`` do nothing and return the module,
    so a parent's ``train()`` or ``apply(initialise)`` does not reach them. Attributes that are set one by one
    (``LightningModule.unfreeze``, ``BackboneFinetuning``) are reset by the network's next forward call, a check of 4
    microseconds for ten layers, or by freezing again. There is no ``no_grad``: without trainable parameters torch
    builds no graph, and inputs that require a gradient still get one.

    Args:
        network: The network to fix, in place.

    Returns:
        The same network.

    Example:
        >>> teacher = freeze(nn.Linear(4, 2))
        >>> nn.Sequential(teacher, nn.Dropout()).train()[0].training
        False
        >>> teacher.requires_grad_(True).weight.requires_grad
        False
    """
    if not is_frozen(network):
        trainable = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        vars(network)[_FROZEN] = (network.register_forward_pre_hook(_fix), trainable)
    for module in network.modules():
        # A partial: unlike a bound method it can be pickled, and its copy belongs to the network's copy.
        vars(module).update({name: partial(_unchanged, module) for name in _REFUSED})
    _fix(network)
    return network


def unfreeze(network: nn.Module) -> nn.Module:
    """Undo ``freeze``: the same parameters require gradients as before, and the network is in training mode.

    Args:
        network: A frozen network; any other is returned unchanged.

    Returns:
        The same network.

    Example:
        >>> unfreeze(freeze(nn.Linear(4, 2))).weight.requires_grad
        True
    """
    if not is_frozen(network):
        return network
    handle, trainable = vars(network).pop(_FROZEN)
    handle.remove()
    for module in network.modules():
        for name in _REFUSED:
            vars(module).pop(name, None)
    for module in network.modules():
        if is_frozen(module):  # in its own right, as a member of an ensemble may be
            freeze(module)
    for name in trainable:
        network.get_parameter(name).requires_grad_(True)
    return network.train()


def is_frozen(network: nn.Module) -> bool:
    """Tell whether ``freeze`` was called on this very network: False for a layer of a frozen network.

    Example:
        >>> is_frozen(freeze(nn.Linear(4, 2))), is_frozen(nn.Linear(4, 2))
        (True, False)
    """
    return _FROZEN in vars(network)


def exclude_from_state_dict(network: nn.Module) -> nn.Module:
    """Keep a network out of every state dict that it is part of, while loading stays strict for everything else.

    It remains a registered submodule: device moves, dtypes and the first broadcast of DDP reach it. Loading a state
    dict without its keys leaves it unchanged; one that has some of them must have them all. The network's own
    ``state_dict()`` and ``load_state_dict()`` work as usual: that is how a teacher is saved on purpose.

    Args:
        network: The network to exclude, changed in place.

    Returns:
        The same network.

    Example:
        >>> pair = nn.ModuleDict({"student": nn.Linear(4, 2), "teacher": exclude_from_state_dict(nn.Linear(4, 2))})
        >>> list(pair.state_dict()), list(pair["teacher"].state_dict())
        (['student.weight', 'student.bias'], ['weight', 'bias'])
        >>> pair.load_state_dict(pair.state_dict())
        <All keys matched successfully>
    """
    if not is_excluded_from_state_dict(network):
        vars(network)[_LEFT_OUT] = (
            network.register_state_dict_post_hook(_drop),
            network.register_load_state_dict_pre_hook(_fill_in),
        )
    return network


def include_in_state_dict(network: nn.Module) -> nn.Module:
    """Undo ``exclude_from_state_dict``, as for a teacher that is trained too.

    Args:
        network: An excluded network; any other is returned unchanged.

    Returns:
        The same network.

    Example:
        >>> list(nn.Sequential(include_in_state_dict(exclude_from_state_dict(nn.Linear(4, 2)))).state_dict())
        ['0.weight', '0.bias']
    """
    handles: tuple[RemovableHandle, ...] = vars(network).pop(_LEFT_OUT, ())
    for handle in handles:
        handle.remove()
    return network


def is_excluded_from_state_dict(network: nn.Module) -> bool:
    """Tell whether ``exclude_from_state_dict`` was called on this very network.

    Example:
        >>> is_excluded_from_state_dict(exclude_from_state_dict(nn.Linear(4, 2)))
        True
    """
    return _LEFT_OUT in vars(network)


def _unchanged(module: nn.Module, *_: Any, **__: Any) -> nn.Module:
    return module


def _fix(module: nn.Module, _inputs: Any = None) -> None:
    # Private tables: `parameters()` and `modules()` take six times as long, and this runs at every forward call.
    if module.training:
        module.training = False
    for parameter in module._parameters.values():  # pyright: ignore[reportPrivateUsage]
        if parameter is not None and parameter.requires_grad:
            parameter.requires_grad_(False)
            parameter.grad = None  # an optimizer that holds the parameter would apply a remaining gradient once more
    for child in module._modules.values():  # pyright: ignore[reportPrivateUsage]
        if child is not None:
            _fix(child)


def _drop(_network: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: dict[str, Any]) -> None:
    if prefix:
        for key in [key for key in state if key.startswith(prefix)]:
            del state[key]


def _fill_in(network: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    if prefix and not any(key.startswith(prefix) for key in state):
        state.update({prefix + key: value for key, value in network.state_dict(keep_vars=True).items()})


def check_sharing(
    student: nn.Module,
    teacher: nn.Module,
    learned: Iterable[nn.Parameter] | None = None,
    who: str = "teacher and student",
) -> None:
    """Check that a frozen teacher freezes nothing that the student learns: they may share parameters that are frozen.

    Layers that both have, such as the base of adapters, stay in eval mode for both, and in the student's checkpoints.

    Args:
        student: The student.
        teacher: The teacher.
        learned: The teacher's parameters that required a gradient before it was frozen; if not given, those that do.
        who: The two networks, for the message.

    Raises:
        UsageError: They share parameters that were to learn, or nothing of the student is left to learn.
    """
    own, of_teacher = dict(student.named_parameters()), set(teacher.parameters())
    shared = [name for name, parameter in own.items() if parameter in of_teacher]
    if not shared:
        return
    learned = {p for p in of_teacher if p.requires_grad} if learned is None else set(learned)
    if wrong := [name for name in shared if own[name] in learned]:
        raise UsageError(
            f"{who} share parameters that learn ({len(wrong)}, the first {wrong[0]!r} of the student), and "
            "freezing the teacher would freeze them: copy one of them, or call requires_grad_(False) first on the "
            "parameters that they share, as on the base of adapters"
        )
    if not any(parameter.requires_grad for parameter in own.values()):
        raise UsageError(
            f"{who} share parameters, and every one of the student is frozen, so that nothing learns: copy one of "
            "them, or give the student layers of its own"
        )
    for module in teacher.modules():
        include_in_state_dict(module)  # which would take it out of the student's state dict, too
