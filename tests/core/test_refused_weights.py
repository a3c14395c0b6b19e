from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from kd_lightning import Classifier, OfflineDistiller, Term
from kd_lightning.core.errors import OtherWeightsError
from kd_lightning.losses import KDLoss
from kd_lightning.schemes import MutualLearning
from tests import toys
from tests.callbacks import drop_in


def network(width: int = 8, bias: bool = True) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(drop_in.FEATURES, width), nn.Linear(width, drop_in.CLASSES, bias=bias))


def terms(hint: bool = False) -> dict[str, Term]:
    found = {"kd": Term(KDLoss(2.0))}
    return found | {"hint": Term(drop_in.Hint(), student="0", teacher="1")} if hint else found


RUNS: dict[str, Callable[[], Any]] = {
    "classifier": lambda: Classifier(network()),
    "wide": lambda: Classifier(network(16)),
    "without bias": lambda: Classifier(network(bias=False)),
    "offline": lambda: OfflineDistiller(network(), drop_in.teacher(), terms()),
    "hint": lambda: OfflineDistiller(network(), drop_in.teacher(), terms(hint=True)),
    "mutual": lambda: MutualLearning(network(), [network()], terms()),
}
ALIKE = {"classifier", "offline"}
"""Their weights have the same names and shapes: one resumes the other, into distillation or out of it."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, build in RUNS.items():
        trainer = toys.trainer(folder, max_epochs=1)
        trainer.fit(build(), toys.Loader(drop_in.batches()))
        trainer.save_checkpoint(folder / f"{name}.ckpt")
    return folder


@pytest.mark.parametrize("here", RUNS)
@pytest.mark.parametrize("there", RUNS)
def test_a_checkpoint_of_another_run_is_resumed_or_refused_in_one_line(there, here, checkpoints, tmp_path):
    trainer, learner = toys.trainer(tmp_path, max_epochs=2), RUNS[here]()

    def resume() -> None:
        trainer.fit(learner, toys.Loader(drop_in.batches()), ckpt_path=checkpoints / f"{there}.ckpt")

    if there == here or {there, here} <= ALIKE:
        resume()
        assert trainer.global_step == 8
        return
    with pytest.raises(OtherWeightsError, match=f"^these weights are not of this {type(learner).__name__}: ") as caught:
        resume()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("there", "here", "says"),
    [
        ("classifier", "hint", "it has terms.hint.loss.connector.weight and 1 more, which they lack"),
        ("hint", "offline", "they have terms.hint.loss.connector.weight and 1 more, which it lacks"),
        ("wide", "classifier", r"student.0.weight is \(16, 12\) in them and \(8, 12\) here"),
        ("without bias", "classifier", "it has student.1.bias, which they lack:"),
        ("mutual", "wide", r"they have best and 5 more, which it lacks, and student.0.weight is \(8, 12\) in them"),
    ],
)
def test_the_line_names_what_differs(there, here, says, checkpoints):
    weights = torch.load(checkpoints / f"{there}.ckpt", weights_only=True)["state_dict"]
    with pytest.raises(OtherWeightsError, match=says):
        RUNS[here]().load_state_dict(weights)


def test_other_ways_to_load_are_as_before(checkpoints):
    learner = RUNS["classifier"]()
    weights = torch.load(checkpoints / "hint.ckpt", weights_only=True)["state_dict"]
    found = learner.load_state_dict(weights, strict=False)
    assert found.unexpected_keys == ["terms.hint.loss.connector.weight", "terms.hint.loss.connector.bias"]
    assert toys.same(toys.weights(learner), {name: weights[name] for name in toys.weights(learner)})
