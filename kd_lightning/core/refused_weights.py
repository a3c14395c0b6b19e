"""Weights of another scheme, or of other networks, are refused in one line instead of torch's list of all keys."""

from __future__ import annotations

import re

from kd_lightning.core.errors import OtherWeightsError


def explain_refusal(error: RuntimeError, scheme: str) -> OtherWeightsError:
    """Put torch's error of a state dict that does not fit into one line.

    Args:
        error: The error.
        scheme: Name of the class whose weights were to be loaded.

    Example:
        >>> from torch import nn
        >>> try:
        ...     nn.Linear(3, 2).load_state_dict(nn.Linear(4, 2, bias=False).state_dict())
        ... except RuntimeError as error:
        ...     print(str(explain_refusal(error, "Linear"))[:92])
        these weights are not of this Linear: it has bias, which they lack, and weight is (2, 4) in
    """
    text = str(error)
    missing, unexpected = (
        re.findall(r'"([^"]+)"', found[0])
        if (found := re.findall(rf"{kind} key\(s\) in state_dict: (.*)", text))
        else []
        for kind in ("Missing", "Unexpected")
    )
    other = re.search(r"size mismatch for (\S+): .*?torch.Size\((.*?)\) from .*?torch.Size\((.*?)\)", text)
    differences = [
        *([f"it has {_first(missing)}, which they lack"] if missing else []),
        *([f"they have {_first(unexpected)}, which it lacks"] if unexpected else []),
        *([f"{other[1]} is {_shape(other[2])} in them and {_shape(other[3])} here"] if other else []),
    ]
    found = ", and ".join(differences) or " ".join(text.split())
    return OtherWeightsError(
        f"these weights are not of this {scheme}: {found}: resume the run that wrote them with the same classes "
        "and arguments, or load its student alone with kd_lightning.load_student and start a new run with it"
    )


def _first(keys: list[str]) -> str:
    return f"{keys[0]} and {len(keys) - 1} more" if len(keys) > 1 else keys[0]


def _shape(size: str) -> str:
    return f"({', '.join(re.findall(r'[0-9]+', size))})"
