"""A teacher that stays as it is: frozen whatever anyone calls, and left out of every file.

Both promises are kept by hooks on the network itself, so neither the module that holds it nor the name that it has
there matters. What the hooks need travels with the network: a pickled or deep-copied teacher is frozen and left out.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kd_lightning.core.errors import UsageError

_FROZEN = "_kd_frozen"  # on a frozen network: its hook's handle and the names of the parameters that could learn before
_LEFT_OUT = "_kd_left_out"  # on a network that is left out: the handles of its two hooks
_REFUSED = ("train", "requires_grad_", "apply")  # the calls that could change a network, by being made on its parent


def freeze(network: nn.Module) -> nn.Module:
    """Fix a network: no parameter learns, every layer is in eval, and both stay so whatever anyone calls.

    On the network and its layers ``train()``, ``requires_grad_()`` and ``apply()`` do nothing and return the module,
    so a parent's ``train()`` or ``apply(initialise)`` passes it by. What sets the attributes one by one
    (``LightningModule.unfreeze``, ``BackboneFinetuning``) is undone at the latest by the network's next forward call,
    which costs 4 microseconds for ten layers. Freezing again repairs at once and changes nothing else. There is no
    ``no_grad``: nothing that learns means no graph, and inputs that need a gradient still get one.

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
        # A partial, for unlike a bound method it can be pickled, and its copy belongs to the network's copy.
        vars(module).update({name: partial(_unchanged, module) for name in _REFUSED})
    _fix(network)
    return network


def unfreeze(network: nn.Module) -> nn.Module:
    """Undo ``freeze``: what could learn before can learn again, and the network is in training mode.

    Args:
        network: A frozen network; one that is not frozen is returned as it is.

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
    """Whether ``freeze`` holds this very network (a layer of a frozen network answers no).

    Example:
        >>> is_frozen(freeze(nn.Linear(4, 2))), is_frozen(nn.Linear(4, 2))
        (True, False)
    """
    return _FROZEN in vars(network)


def exclude_from_state_dict(network: nn.Module) -> nn.Module:
    """Keep a network out of every state dict that it is part of, while loading stays strict for everything else.

    It remains a registered submodule: device moves, dtypes and the first broadcast of DDP reach it. A state dict that
    has none of its keys leaves it as it is; one that has some must have them all. Asked by itself, with no prefix, the
    network gives and loads its own state: that is how a teacher is saved on purpose.

    Args:
        network: The network to leave out, changed in place.

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
    """Undo ``exclude_from_state_dict``: the network is state again, as a teacher that learns must be.

    Args:
        network: A network that is left out; any other is returned as it is.

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
    """Whether ``exclude_from_state_dict`` holds this very network.

    Example:
        >>> is_excluded_from_state_dict(exclude_from_state_dict(nn.Linear(4, 2)))
        True
    """
    return _LEFT_OUT in vars(network)


def _unchanged(module: nn.Module, *_: Any, **__: Any) -> nn.Module:
    return module


def _fix(module: nn.Module, _inputs: Any = None) -> None:
    # The tables themselves, for `parameters()` and `modules()` take six times as long, and this runs at every call.
    if module.training:
        module.training = False
    for parameter in module._parameters.values():  # pyright: ignore[reportPrivateUsage]
        if parameter is not None and parameter.requires_grad:
            parameter.requires_grad_(False)
            parameter.grad = None  # an optimizer that holds the parameter would step once more on what is left here
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


def check_no_shared_parameters(student: nn.Module, teacher: nn.Module) -> None:
    """A ValueError if the two share parameters, which freezing the teacher would take from the student."""
    if set(student.parameters()) & set(teacher.parameters()):
        raise UsageError("teacher and student share parameters, and freezing one would freeze both: copy one of them")
