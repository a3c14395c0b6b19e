"""The outputs of a learner's networks on batches of any loader, and the rows of class logits among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor

from kd_lightning.core.activations import logits_of
from kd_lightning.core.batch import target_of
from kd_lightning.core.errors import UsageError
from kd_lightning.core.label_kinds import prepare
from kd_lightning.core.learner import Learner
from kd_lightning.core.loss import LabelKind

Predictions = tuple[dict[str, Tensor], Tensor]
"""The outputs of a batch by network, and the batch's labels; all on the CPU."""


@torch.no_grad()
def predict(model: Learner, batches: Iterable[object], evaluate: str | None = None) -> Iterator[Predictions]:
    """Run the evaluated networks on each batch.

    Args:
        model: The trained learner.
        batches: Batches of a loader.
        evaluate: The name of one of the model's evaluated networks, or ``mean`` for all of them; None for the
            inference network.

    Raises:
        UsageError: The model has no such network, or a batch has no label.
    """
    model.eval()
    for batch in batches:
        inputs, _, labels = model.split_batch(batch)
        if evaluate is None:
            found = {model.inference_network_name: logits_of(model(inputs))}
        else:
            found = model.evaluated_logits(inputs)
            if evaluate not in ("mean", *found):
                raise UsageError(f"evaluate={evaluate!r} is neither mean nor any of {', '.join(found)}")
            found = found if evaluate == "mean" else {evaluate: found[evaluate]}
        target = labels.get(model.evaluation.label, target_of(labels))
        if target is None:
            raise UsageError(f"a test batch has no label ({', '.join(labels) or 'no labels'}): evaluation needs one")
        yield {name: cast("Tensor", outputs).float().cpu() for name, outputs in found.items()}, target.cpu()


def prepared_rows(
    predictions: Iterable[Predictions], kind: LabelKind, ignore_index: int, limit: int | None = None
) -> tuple[list[Tensor], Tensor]:
    """Concatenate outputs and labels over batches, with tokens and pixels as rows and without ignored labels.

    Args:
        predictions: From `predict`.
        kind: The kind of the labels.
        ignore_index: Class index that does not count.
        limit: The number of rows at which to stop; all if not given.

    Returns:
        The float32 outputs of each network, (N, C) for classes, and the labels, (N,) or (N, C) for classes.
    """
    outputs: list[list[Tensor]] = []
    targets: list[Tensor] = []
    for networks, target in predictions:
        rows = [prepare(kind, values, target, ignore_index) for values in networks.values()]
        kept = [each for each in rows if each is not None]
        if not kept:
            continue
        outputs.append([values for values, _ in kept])
        targets.append(kept[0][1])
        if limit is not None and sum(map(len, targets)) >= limit:
            break
    if not targets:
        raise UsageError("the loader has no labelled rows to evaluate: check its size, and the labels that are ignored")
    return [torch.cat(batches)[:limit] for batches in zip(*outputs, strict=True)], torch.cat(targets)[:limit]
