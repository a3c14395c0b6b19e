"""Metrics of every scheme equal plain torch's: for each network that it evaluates, on each named loader and on both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.classification import MulticlassRecall

from kd_lightning.core.metrics import Accuracy, Metrics, NegativeLogLikelihood
from kd_lightning.losses import TaskLoss
from tests import found, toys

CASES = found.cases()


@pytest.mark.parametrize("name", CASES)
def test_named_loaders_and_networks_have_the_metrics_of_plain_torch(name, tmp_path):
    case = CASES[name]()
    learner: Any = case.learner
    data = case.data or toys.data
    toys.trainer(tmp_path, *case.callbacks, max_steps=2, limit_val_batches=0).fit(learner, data())
    batches = evaluation_batches(data)
    loaders = {"one": toys.Loader(batches[:1]), "rest": toys.Loader(batches[1:])}
    logged: dict[str, float] = {}
    for of_loader in toys.trainer(tmp_path).validate(learner, loaders, verbose=False):
        logged |= of_loader

    learner.eval()
    networks: set[str] = set()
    for part, chosen in {"": batches, "/one": batches[:1], "/rest": batches[1:]}.items():
        for network, (outputs, target) in evaluated(learner, chosen).items():
            networks.add(network)
            expected = {"acc": (outputs.argmax(1) == target).double().mean()}
            expected["nll"] = functional.cross_entropy(outputs, target)
            for metric, value in expected.items():
                at = [f"val/{metric}{part}"] if network == learner.inference_network_name else []
                at += [f"val/{metric}/{network}{part}"] if len(learner.evaluated_networks) > 1 else []
                assert at
                for key in at:
                    assert logged[key] == pytest.approx(value.item(), rel=1e-5, abs=1e-6), key
    assert networks == {*learner.evaluated_networks}


def evaluated(learner: Any, batches: list[Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """The logits (M, C) and labels (M,) of each network over all batches, without what the evaluation does."""
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {}
    label = next((term.target for term in learner.terms.values() if isinstance(term.loss, TaskLoss)), "target")
    with torch.no_grad():
        for batch in batches:
            split = learner.split_batch(batch)
            for network, outputs in learner.evaluated_logits(split.student).items():
                # a caption's tokens (N, L, C) count one by one
                row = (outputs.float().flatten(0, -2), split.labels[label].flatten())
                rows.setdefault(network, []).append(row)
    return {name: (torch.cat([z for z, _ in of]), torch.cat([y for _, y in of])) for name, of in rows.items()}


def evaluation_batches(data: Any) -> list[Any]:
    """Three batches of images and labels; of plain images for data that has none."""
    try:
        module = data(val_size=24, eval_batch_size=8)
    except TypeError:  # noise has no images to validate on
        module = toys.data(val_size=24, eval_batch_size=8)
    module.prepare_data()
    module.setup("validate")
    batches = list(module.val_dataloader())
    assert len(batches) == 3
    return batches


@pytest.mark.parametrize("name", CASES)
def test_injected_metrics_are_computed_and_choose_the_best_checkpoint(name, tmp_path):
    case = CASES[name]()
    learner: Any = case.learner
    recall = MulticlassRecall(10, average="micro")
    learner.evaluation.metrics = Metrics(
        {"recall": recall, "nll": NegativeLogLikelihood()}, "classes", monitor="recall"
    )
    assert (learner.monitor, learner.mode) == ("val/recall", "max")
    loader = toys.Loader(evaluation_batches(case.data or toys.data))
    (own,) = toys.trainer(tmp_path).validate(learner, loader, verbose=False)
    assert {"val/recall", "val/nll"} <= own.keys()
    assert not any(key.startswith("val/acc") for key in own)
    learner.evaluation.metrics = Metrics({"acc": Accuracy()}, "classes")
    (accuracy,) = toys.trainer(tmp_path).validate(learner, loader, verbose=False)
    assert accuracy["val/acc"] == pytest.approx(own["val/recall"], abs=1e-6)
