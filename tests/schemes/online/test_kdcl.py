from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import Term
from kd_lightning.losses import FeatureMSELoss, TaskLoss
from kd_lightning.schemes import (
    KDCL,
    GeneralEnsemble,
    LinearEnsemble,
    LogitEnsemble,
    MinLogitEnsemble,
    NaiveEnsemble,
)
from kd_lightning.schemes.online import ensembles
from tests import toys
from tests.schemes.online.test_mutual import (
    batches,
    follows,
    kl,
    networks,
    sgd,
    terms,
    with_validation,
    without_dropout,
)


def kdcl(combine: nn.Module, **changes) -> KDCL:
    student, *peers = networks()
    return KDCL(student, peers, terms(temperature=2.0), combine, **changes)


CASES = {
    "kdcl_naive": lambda: toys.Case(kdcl(NaiveEnsemble())),
    "kdcl_linear": lambda: toys.Case(kdcl(LinearEnsemble())),
    "kdcl_min_logit": lambda: toys.Case(kdcl(MinLogitEnsemble())),
    "kdcl_general": lambda: toys.Case(kdcl(GeneralEnsemble(num_networks=3), deploy="best"), data=with_validation),
}


def example(networks: int = 3, images: int = 12, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(networks)
    logits = scale * torch.randn(networks, images, 5, generator=generator, dtype=torch.float64)
    return logits, torch.randint(5, (images,), generator=generator)


def cross_entropy(z: np.ndarray, y: int) -> float:
    return float(np.log(np.exp(z - z.max()).sum()) + z.max() - z[y])


# ---- the four ensembles, against loops


def test_naive_selects_the_network_of_least_loss_for_each_image():
    logits, target = example()
    z = logits.numpy()
    made = NaiveEnsemble()(logits, target)
    chosen = set()
    for n, y in enumerate(target.tolist()):
        k = min(range(3), key=lambda i: cross_entropy(z[i, n], y))
        assert np.array_equal(made[n].numpy(), z[k, n])
        chosen.add(k)
    assert len(chosen) > 1  # more than one network in the batch


def test_min_logit_is_the_least_margin_and_has_at_most_the_best_loss():
    logits, target = example()
    z = logits.numpy()
    made = MinLogitEnsemble()(logits, target)
    for n, y in enumerate(target.tolist()):
        expected = [min(z[i, n, c] - z[i, n, y] for i in range(3)) for c in range(5)]
        assert made[n].tolist() == pytest.approx(expected)
        assert cross_entropy(made[n].numpy(), y) <= min(cross_entropy(z[i, n], y) for i in range(3)) + 1e-12


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("count", [2, 3])
def test_linear_is_within_its_bound_of_the_best_convex_combination_on_a_grid(count, scale):
    logits, target = example(count, scale=scale)
    z, parts = logits.numpy(), 50
    grid = [np.array(a) / parts for a in itertools.product(range(parts + 1), repeat=count) if sum(a) == parts]
    for steps in (10, 200):
        ensemble = LinearEnsemble(steps)
        made, a = ensemble(logits, target).numpy(), ensemble.coefficients(logits, target)
        assert a.min() >= 0
        assert a.sum(0).tolist() == pytest.approx([1.0] * len(target))
        for n, y in enumerate(target.tolist()):
            assert made[n] == pytest.approx(np.einsum("i,ic->c", a[:, n].numpy(), z[:, n]))
            least = min(cross_entropy(np.einsum("i,ic->c", candidate, z[:, n]), y) for candidate in grid)
            margin = z[:, n] - z[:, n, y, None]
            spread = (margin.max(0) - margin.min(0)).max()
            bound = spread**2 * np.log(count) / (steps + 1) ** 2
            assert cross_entropy(made[n], y) <= least + bound


def test_linear_selects_the_most_confident_of_networks_that_are_all_right():
    sure, surest = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[20.0, 0.0, 0.0]])
    a = LinearEnsemble().coefficients(torch.stack([sure, surest]), torch.tensor([0]))
    assert a[1].item() > 0.99


@pytest.mark.parametrize("ensemble", [NaiveEnsemble(), LinearEnsemble(), MinLogitEnsemble()])
def test_the_ensemble_of_equal_networks_is_their_output(ensemble):
    logits, target = example(1)
    made = ensemble(logits.expand(3, -1, -1), target)
    torch.testing.assert_close(made.softmax(1), logits[0].softmax(1))


def least_error(errors: np.ndarray) -> np.ndarray:
    """The w that minimises w' C w with sum(w) = 1, by its Lagrangian's linear system."""
    count = len(errors)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = 2 * np.einsum("inc,jnc->ij", errors, errors)
    system[:count, count] = system[count, :count] = 1
    return np.linalg.solve(system, np.r_[np.zeros(count), 1])[:count]


def errors_of(logits: Tensor, target: Tensor) -> np.ndarray:
    return (logits.softmax(2) - torch.eye(logits.shape[2], dtype=logits.dtype)[target]).numpy()


def test_general_has_the_weights_of_least_squared_error():
    logits, target = example(3, images=40)
    logits[2] = logits[0] + 0.5 * example(1, images=40)[0]  # networks with similar errors
    ensemble = GeneralEnsemble(num_networks=3).double()
    assert ensemble(logits, target).numpy() == pytest.approx(logits.mean(0).numpy(), rel=1e-6)  # at first
    for part in (slice(0, 30), slice(30, 40)):
        ensemble.observe(logits[:, part], target[part])
    ensemble.update()
    errors = errors_of(logits, target)
    w = least_error(errors)
    assert ensemble.weights.tolist() == pytest.approx(w.tolist(), abs=1e-3)
    assert max(w) - min(w) > 0.05
    assert ensemble(logits, target).numpy() == pytest.approx(np.einsum("i,inc->nc", w, logits.numpy()), abs=1e-2)

    ensemble.observe(logits.flip(0)[:, :20], target[:20])  # the previous statistics are dropped
    ensemble.update()
    assert ensemble.weights.tolist() == pytest.approx(least_error(errors[::-1, :20]).tolist(), abs=1e-3)


@pytest.mark.parametrize("perfect", [False, True])
def test_general_has_equal_weights_for_networks_with_the_same_errors(perfect):
    logits, target = example(1)
    logits = 1e4 * functional.one_hot(target, 5).double()[None] if perfect else logits
    ensemble = GeneralEnsemble(num_networks=3)
    ensemble.observe(logits.expand(3, -1, -1).float(), target)
    ensemble.update()
    assert ensemble.weights.tolist() == pytest.approx([1 / 3] * 3, abs=1e-4)


def test_general_has_the_same_weights_on_two_processes_with_uneven_shares(monkeypatch):
    logits, target = example(3, images=40)
    ranks = [GeneralEnsemble(num_networks=3) for _ in range(2)]
    for ensemble, mine in zip(ranks, (slice(0, 13), slice(13, 40)), strict=True):
        ensemble.observe(logits[:, mine].float(), target[mine])
    gathered = torch.stack([ensemble.correlation.clone() for ensemble in ranks])
    monkeypatch.setattr(ensembles, "all_gather_with_grad", lambda local: gathered)
    for ensemble in ranks:
        ensemble.update()
        assert ensemble.weights.tolist() == pytest.approx(least_error(errors_of(logits, target)).tolist(), rel=1e-3)


# ---- the scheme


def written_out(name: str, z: list[Tensor], y: Tensor) -> Tensor:
    z = [each.detach() for each in z]
    rows = []
    for n, label in enumerate(y.tolist()):
        if name == "naive":
            rows.append(min((each[n] for each in z), key=lambda row: cross_entropy(row.double().numpy(), label)))
        else:
            rows.append(torch.stack([each[n] - each[n, label] for each in z]).min(0).values)
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["naive", "min_logit", "general"])
def test_three_steps_are_those_of_a_plain_loop(name, tmp_path):
    built = without_dropout(networks())
    student, *peers = copy.deepcopy(built)
    combine = {"naive": NaiveEnsemble(), "min_logit": MinLogitEnsemble(), "general": GeneralEnsemble(num_networks=3)}[
        name
    ]
    if name == "general":
        combine.weights.copy_(torch.tensor([0.5, 0.8, -0.3]))
    learner = KDCL(student, peers, terms(temperature=2.0), combine, optimizer=sgd)

    def losses(x, y):
        z = [network(x) for network in built]
        general = 0.5 * z[0] + 0.8 * z[1] - 0.3 * z[2]
        teacher = general if name == "general" else written_out(name, z, y)
        return {
            "task": sum(functional.cross_entropy(each, y) for each in z),
            "kd": sum(kl(each, teacher, 2.0) for each in z),
        }

    follows(learner, built, losses, {"task": 0.5, "kd": 0.7}, tmp_path)


class Record(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(image)
        return image + 0.1 * torch.randn_like(image)


def test_images_are_augmented_for_each_network_and_not_in_evaluation():
    student, *peers = without_dropout(networks())
    augmentation = Record()
    learner = KDCL(student, peers, terms(temperature=2.0), MinLogitEnsemble(), augmentation)
    (x, y), *_ = batches().batches
    torch.manual_seed(3)
    losses = learner.compute_losses((x, y))
    assert torch.equal(torch.stack(augmentation.seen), torch.cat([x, x, x]))

    torch.manual_seed(3)
    z = [
        network(torch.stack([image + 0.1 * torch.randn_like(image) for image in x]))
        for network in learner.networks().values()
    ]
    teacher = written_out("min_logit", z, y)
    assert losses["kd"].item() == pytest.approx(sum(kl(each, teacher, 2.0) for each in z).item(), rel=1e-5)
    learner.evaluated_logits(x)
    assert len(augmentation.seen) == 3 * len(x)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_a_run_with_its_own_augmentation_resumes_bit_for_bit(tmp_path):
    def fit(ckpt_path=None, *callbacks):
        learner = kdcl(LinearEnsemble(), augmentation=toys.Noise())
        toys.trainer(tmp_path, *callbacks, max_epochs=2).fit(learner, toys.data(), ckpt_path=ckpt_path)
        return toys.weights(learner)

    whole = fit(None, ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1))
    for step in (3, 4, 6):
        assert toys.same(fit(tmp_path / f"step={step}.ckpt"), whole)


class Weights(Callback):
    """The weights of the general form at the start and after each validation, with the expected ones."""

    def __init__(self, batch) -> None:
        self.batch, self.found, self.expected = batch, [], []

    def on_train_start(self, trainer, pl_module):
        self.found.append(pl_module.combine.weights.tolist())
        self.expected.append([1 / 3] * 3)

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            x, y = self.batch
            logits = torch.stack([network(x) for network in pl_module.networks().values()])
            self.found.append(pl_module.combine.weights.tolist())
            self.expected.append(least_error(errors_of(logits.double(), y)).tolist())


def test_each_validation_but_the_sanity_check_updates_the_weights(tmp_path):
    learner = kdcl(GeneralEnsemble(num_networks=3))
    (x, y), *rest = batches(5).batches
    weights = Weights((x, y))
    toys.trainer(tmp_path, weights, max_epochs=2).fit(
        learner, toys.Loader(rest), toys.Loader([(x[:9], y[:9]), (x[9:], y[9:])])
    )
    assert len(weights.found) == 3
    for found, expected in zip(weights.found, weights.expected, strict=True):
        assert found == pytest.approx(expected, rel=1e-2, abs=1e-3)
    assert torch.equal(learner.state_dict()["combine.weights"], learner.combine.weights)
    assert "combine.correlation" not in learner.state_dict()


class Mean(LogitEnsemble):
    """A user's ensemble, which counts the validation images."""

    learns_from_validation = True

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = [0]

    def forward(self, logits, target):
        return logits.mean(0)

    def observe(self, logits, target):
        assert logits.shape[:2] == (3, len(target))
        self.counts[-1] += len(target)

    def update(self):
        self.counts.append(0)


def test_an_ensemble_of_a_user_learns_from_validation(tmp_path):
    mean = Mean()
    toys.trainer(tmp_path, max_epochs=2).fit(kdcl(mean), batches(), batches(2))
    images = sum(len(y) for _, y in batches(2).batches)
    assert mean.counts == [images, images, 0]


def test_invalid_ensembles_labels_and_terms_raise():
    x, y = torch.rand(2, 3, 28, 28), torch.tensor([3, 7])
    with pytest.raises(
        ValueError,
        match=r"GeneralEnsemble\(num_networks=2\) cannot combine the student and 2 peers: set num_networks=3",
    ):
        kdcl(GeneralEnsemble(num_networks=2))
    with pytest.raises(ValueError, match="num_networks=1 must be at least 2"):
        GeneralEnsemble(num_networks=1)
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        LinearEnsemble(steps=0)
    with pytest.raises(ValueError, match=r"class indices \(N,\); there are logits \(2, 10\) and target none"):
        KDCL(networks()[0], networks()[1:], {"kd": terms()["kd"]}, NaiveEnsemble()).compute_losses(x)
    with pytest.raises(ValueError, match=r"there are logits \(2, 10\) and target torch.float32 \(2, 10\)"):
        kdcl(MinLogitEnsemble()).compute_losses((x, functional.one_hot(y, 10).float()))
    hint = {"task": Term(TaskLoss(), teacher=None), "hint": Term(FeatureMSELoss(), student="2", teacher="2")}
    with pytest.raises(ValueError, match="compares the teacher's '2', and only logits was recorded"):
        KDCL(toys.network(), [toys.network()], hint, NaiveEnsemble()).compute_losses((x, y))
