from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kd_lightning.callbacks import ActivationStatistics
from kd_lightning.callbacks.loggers.activation_statistics import spectral_basis, statistics
from kd_lightning.core.activations import tap
from kd_lightning.schemes import Classifier
from kd_lightning.schemes.data_free.inversion_targets import RecordedActivations
from tests import toys
from tests.schemes.data_free.test_data_free import learner, numbers, of_the_teacher


def fitted(folder) -> Classifier:
    ours = toys.classifier()
    statistics = ActivationStatistics(["2", "logits"], covariance=["logits"])
    toys.trainer(folder, statistics, max_epochs=1).fit(ours, toys.data(augmentation=None))
    return ours


def test_statistics_are_the_mean_and_the_spread_of_each_class(tmp_path):
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
        seen = {name: value.double() for name, value in tap(ours.student.eval(), images, ["2", "logits"]).items()}
    for label in range(10):
        hidden, logits = seen["2"][labels == label], seen["logits"][labels == label]
        torch.testing.assert_close(found["2.mean"][label].double(), hidden.mean(0), rtol=1e-4, atol=1e-5)
        deviation = hidden.std(0, correction=0)
        torch.testing.assert_close(found["2.deviation"][label].double(), deviation, rtol=1e-3, atol=1e-4)
        factor = found["logits.factor"][label].double()
        covariance = torch.cov(logits.mT, correction=0)
        torch.testing.assert_close(factor @ factor.mT, covariance, rtol=1e-3, atol=1e-4)


def test_the_spectral_form_has_the_largest_eigenvectors_of_the_correlations(tmp_path):
    """The same in numpy: correlations over all classes, their eigenvectors, and each class's statistics."""
    ours, data = toys.classifier(), toys.data(augmentation=None)
    spectral = ActivationStatistics(["2", "logits"], spectral={"2": 3, "logits": 99})
    toys.trainer(tmp_path, spectral, max_epochs=1).fit(ours, toys.data(augmentation=None))
    found = load_file(tmp_path / "statistics.safetensors")
    images, labels = (torch.cat(part) for part in zip(*[batch[:2] for batch in data.train_rows()], strict=True))
    with torch.no_grad():
        seen = {name: value.double() for name, value in tap(ours.student.eval(), images, ["2", "logits"]).items()}
    for layer, count in (("2", 3), ("logits", 10)):
        rows = seen[layer].numpy()
        offset, scale = rows.mean(0), rows.std(0)
        eigenvectors = np.linalg.eigh(np.corrcoef(rows.T))[1][:, -count:]
        basis = found[f"{layer}.spectral.basis"].double()
        np.testing.assert_allclose(found[f"{layer}.spectral.offset"].numpy(), offset, rtol=1e-3, atol=1e-5)
        projection = torch.from_numpy(eigenvectors @ eigenvectors.T)  # eigenvectors have either sign
        unscaled = basis / torch.from_numpy(scale)[:, None]
        torch.testing.assert_close(unscaled @ unscaled.mT, projection, rtol=1e-3, atol=1e-4)
        for label in range(10):
            numbers = torch.from_numpy((rows[labels == label] - offset) / scale) @ unscaled
            mean = found[f"{layer}.spectral.mean"][label].double()
            torch.testing.assert_close(mean, numbers.mean(0), rtol=1e-3, atol=1e-4)
            factor = found[f"{layer}.spectral.factor"][label].double()
            covariance = torch.cov(numbers.mT, correction=0)
            torch.testing.assert_close(factor @ factor.mT, covariance, rtol=1e-3, atol=1e-4)
    torch.manual_seed(0)
    drawn = RecordedActivations(tmp_path / "statistics.safetensors", ["logits.spectral"])(20_000, ours.student)
    of_classes = torch.stack([seen["logits"][labels == label].mean(0) for label in range(10)])
    torch.testing.assert_close(drawn.mean(0), of_classes.mean(0).float(), rtol=0.1, atol=0.03)


def test_constant_units_are_excluded_from_the_graph():
    covariance = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0], [0.5, 0.0, 1.0]], dtype=torch.double)
    for basis in spectral_basis(covariance, 3):
        assert basis.shape == (3, 2)
        assert not basis[1].any()


def test_the_callback_does_not_change_the_fit(tmp_path):
    plain = toys.classifier()
    toys.trainer(tmp_path, max_epochs=1).fit(plain, toys.data(augmentation=None))
    assert toys.same(toys.weights(fitted(tmp_path)), toys.weights(plain))


def test_invalid_arguments_data_and_schemes_raise(tmp_path):
    with pytest.raises(ValueError, match=r"must name at least one layer, and covariance=.* only some of these"):
        ActivationStatistics(["2"], covariance=["logits"])
    with pytest.raises(ValueError, match=r"spectral=\{'2': 0\} must have at least 1 eigenvector"):
        ActivationStatistics(["2"], spectral={"2": 0})
    with pytest.raises(ValueError, match="spectral: 'input' has 6272 units, and its graph may have 4096 at most"):
        statistics(
            torch.nn.Flatten(),
            [(torch.rand(4, 8, 28, 28), torch.arange(4))],
            ActivationStatistics(["input"], spectral={"input": 5}),
        )
    with pytest.raises(ValueError, match="there are DataFreeDistiller and NoiseDataModule: use a data module"):
        toys.trainer(tmp_path, ActivationStatistics(["logits"])).fit(learner(of_the_teacher()), numbers())
