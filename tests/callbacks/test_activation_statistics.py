from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from kd_lightning.callbacks import ActivationStatistics
from kd_lightning.schemes import Classifier
from kd_lightning.taps import tap
from tests import toys
from tests.schemes.test_data_free import learner, numbers, of_the_teacher


def fitted(folder) -> Classifier:
    ours = toys.classifier()
    statistics = ActivationStatistics(["2", "logits"], covariance=["logits"])
    toys.trainer(folder, statistics, max_epochs=1).fit(ours, toys.data(augmentation=None))
    return ours


def test_a_record_is_the_mean_and_the_spread_of_each_class(tmp_path):
    ours, data = fitted(tmp_path), toys.data(augmentation=None)
    found = load_file(tmp_path / "statistics.safetensors")
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "2.mean": (10, 8),
        "2.deviation": (10, 8),
        "logits.mean": (10, 10),
        "logits.factor": (10, 10, 10),
    }
    images, labels = (torch.cat(part) for part in zip(*[batch[:2] for batch in data.train_rows()], strict=True))
    with torch.no_grad():
        seen = {name: value.double() for name, value in tap(ours.student.eval(), images, ["2"]).items()}
    for label in range(10):
        hidden, logits = seen["2"][labels == label], seen["logits"][labels == label]
        torch.testing.assert_close(found["2.mean"][label].double(), hidden.mean(0), rtol=1e-4, atol=1e-5)
        deviation = hidden.std(0, correction=0)
        torch.testing.assert_close(found["2.deviation"][label].double(), deviation, rtol=1e-3, atol=1e-4)
        factor = found["logits.factor"][label].double()
        covariance = torch.cov(logits.mT, correction=0)
        torch.testing.assert_close(factor @ factor.mT, covariance, rtol=1e-3, atol=1e-4)


def test_the_fit_is_what_it_is_without_it(tmp_path):
    plain = toys.classifier()
    toys.trainer(tmp_path, max_epochs=1).fit(plain, toys.data(augmentation=None))
    assert toys.same(toys.weights(fitted(tmp_path)), toys.weights(plain))


def test_what_it_cannot_record_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must name some, and covariance=.* only some of those"):
        ActivationStatistics(["2"], covariance=["logits"])
    with pytest.raises(ValueError, match="DataFreeMNISTDataModule of DataFreeDistiller gives none: use a data module"):
        toys.trainer(tmp_path, ActivationStatistics(["logits"])).fit(learner(of_the_teacher()), numbers())
