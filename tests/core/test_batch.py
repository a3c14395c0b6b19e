"""Labels and inputs of a batch may overlap, and terms find both by their names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kd_lightning import Classifier, OfflineDistiller, Term, UsageError
from kd_lightning.core.batch import accepted_inputs, check_inputs, split_batch
from kd_lightning.core.loss import DistillationLoss
from kd_lightning.losses import FeatureMSELoss, KDLoss, TaskLoss, kd_loss
from tests import toys


class Encoder(nn.Module):
    """Token ids and a padding mask to token logits, whose mean over the real tokens is added to each."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(11, width)
        self.hidden = nn.Linear(width, width)
        self.classifier = nn.Linear(width, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.hidden(self.embedding(input_ids)).tanh()
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mean = (hidden * mask.unsqueeze(2)).sum(1, keepdim=True) / mask.sum(1, keepdim=True).unsqueeze(2)
        return self.classifier(hidden + mean)


IDS = torch.tensor([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


class Masked(DistillationLoss):
    """The mean squared difference of the tokens that the target says count."""

    needs_target = True

    def forward(self, student, teacher, target):
        return ((student - teacher) ** 2).mean(dim=2)[target.bool()].mean()


def batch() -> dict[str, Tensor]:
    return {"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([[1, 2, 3, -100, -100], [0, 1, 2, 3, 4]])}


@pytest.mark.parametrize("target", ["attention_mask", "input.attention_mask"])
def test_a_mask_that_a_term_addresses_still_reaches_both_networks(target):
    terms = {"hidden": Term(Masked(), student="hidden", teacher="hidden", target=target)}
    learner = OfflineDistiller(Encoder(8, 1), Encoder(8, 2), terms)
    split = learner.split_batch(batch())
    assert list(split.student) == ["input_ids", "attention_mask"]
    assert split.teacher is split.student

    def hidden(network: nn.Module) -> Tensor:
        return network.hidden(network.embedding(IDS))

    expected = (hidden(learner.student) - hidden(learner.teacher))[MASK.bool()].square().mean()
    torch.testing.assert_close(learner.compute_losses(batch())["hidden"], expected)
    assert torch.equal(learner(split.student), learner.student(IDS, MASK))
    assert not torch.equal(learner(split.student), learner.student(IDS))  # the mask counts


def test_a_label_of_any_name_is_no_input_unless_the_network_takes_it():
    learner = Classifier(Encoder(8, 1), {"task": Term(TaskLoss(), teacher=None, target="tags")})
    split = learner.split_batch({"input_ids": IDS, "tags": IDS % 5})
    assert split.student is IDS
    assert set(split.labels) == {"tags"}


@pytest.mark.parametrize("name", ["target", "label", "labels"])
def test_the_label_of_a_batch_is_the_target_whatever_it_is_called(name):
    student, teacher = Encoder(8, 1), Encoder(8, 2)
    learner = OfflineDistiller(student, teacher, {"kd": Term(KDLoss(2.0)), "task": Term(TaskLoss(), teacher=None)})
    given = batch() | {"labels": None}
    given[name] = batch()["labels"]
    given = {key: value for key, value in given.items() if value is not None}
    kept = given[name] != -100
    expected = kd_loss(student(IDS, MASK)[kept], teacher(IDS, MASK)[kept], 2.0)
    torch.testing.assert_close(learner.compute_losses(given)["kd"], expected)


def test_an_input_that_is_missing_is_named_with_its_neighbours():
    learner = Classifier(Encoder(8, 1), {"task": Term(TaskLoss(), teacher=None, target="input.attention_msk")})
    with pytest.raises(UsageError, match=r"input.attention_msk: the batch has no input .*nearest .* attention_mask"):
        learner.split_batch(batch())


def test_networks_take_inputs_by_name_or_any():
    class Anything(nn.Module):
        def forward(self, x, **more):
            return x

    assert accepted_inputs(Anything(), ["a", "b"]) == ["a", "b"]
    assert accepted_inputs(Encoder(8, 1), ["attention_mask", "labels"]) == ["attention_mask"]
    check_inputs(Anything(), {"x": 1, "b": 2})
    with pytest.raises(UsageError, match=r"the batch has 'input_ids', 'ids', and Encoder.forward takes no 'ids'"):
        check_inputs(Encoder(8, 1), {"input_ids": 1, "ids": 2})


def test_batches_of_several_loaders_are_refused_with_the_method_to_override():
    pair = [torch.zeros(2, 3), torch.zeros(2)]
    with pytest.raises(UsageError, match="override split_batch"):
        split_batch([pair, pair])
    assert split_batch((pair, [{"boxes": 1}])).student is pair  # as detectors are given: images, and a dict for each


# ---- masks of terms


def test_a_mask_leaves_positions_out_of_logits_and_hidden_states_alike():
    student, teacher = Encoder(8, 1), Encoder(8, 2)
    terms = {
        "kd": Term(KDLoss(2.0), mask="attention_mask"),
        "hidden": Term(FeatureMSELoss(), student="hidden", teacher="hidden", mask="input.attention_mask"),
    }
    learner = OfflineDistiller(student, teacher, terms)
    given = {"input_ids": IDS, "attention_mask": MASK}
    losses, kept = learner.compute_losses(given), MASK.bool()
    torch.testing.assert_close(losses["kd"], kd_loss(student(IDS, MASK)[kept], teacher(IDS, MASK)[kept], 2.0))
    difference = student.hidden(student.embedding(IDS)) - teacher.hidden(teacher.embedding(IDS))
    torch.testing.assert_close(losses["hidden"], difference[kept].square().mean())
    changed = given | {"attention_mask": torch.ones_like(MASK)}
    assert learner.compute_losses(changed)["hidden"] != losses["hidden"]


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 2)])
def test_a_mask_of_samples_or_pixels(shape):
    s, t = torch.randn(shape, requires_grad=True), torch.randn(shape)
    mask = torch.rand(shape[:1] + shape[2:]) < 0.5
    last = (lambda x: x.movedim(1, -1)) if len(shape) == 4 else (lambda x: x)
    term = Term(FeatureMSELoss(), student="a", teacher="a", mask="counts")
    expected = (last(s) - last(t))[mask].square().mean()
    torch.testing.assert_close(term({"a": s}, {"a": t}, {"counts": mask.float()}), expected)


def test_a_mask_and_an_ignored_label_both_count():
    s, t = torch.randn(2, 5, 5, requires_grad=True), torch.randn(2, 5, 5)
    labels = batch()["labels"].clone()
    labels[1, 0] = -100
    mask = MASK.clone()
    mask[1, 4] = 0
    found = Term(KDLoss(2.0), mask="m")({"logits": s}, {"logits": t}, {"target": labels, "m": mask})
    kept = mask.bool() & (labels != -100)
    torch.testing.assert_close(found, kd_loss(s[kept], t[kept], 2.0))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({}, "mask='m' of a KDLoss term is not in the batch, which has no names"),
        ({"m": torch.ones(2, 4)}, r"one value of the mask \(2, 4\)"),
    ],
)
def test_a_mask_that_does_not_fit_costs_one_line(labels, says):
    logits = torch.randn(2, 5, 5)
    with pytest.raises(UsageError, match=says):
        Term(KDLoss(), mask="m")({"logits": logits}, {"logits": logits}, labels)


# ---- rows are a matter of the loss


class Exits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.exit, self.body = nn.Linear(3, 5), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.exit(x)
        return self.body(x)


def test_logits_of_tokens_become_rows_by_whatever_name_they_are_recorded():
    learner = OfflineDistiller(Exits(), Exits(), {"exit": Term(KDLoss(2.0), student="exit", teacher="body")})
    x = torch.randn(2, 7, 3)
    expected = kd_loss(learner.student.exit(x).flatten(0, 1), learner.teacher.body(x).flatten(0, 1), 2.0)
    torch.testing.assert_close(learner.compute_losses(x)["exit"], expected)


def test_a_users_plain_module_gets_rows_of_the_logits_alone():
    given: dict[str, tuple[int, ...]] = {}

    class Keeps(nn.Module):
        def forward(self, student, teacher, target=None):
            given[self.name] = tuple(student.shape)
            return (student - teacher).square().mean()

    terms = {"a": Term(Keeps()), "b": Term(Keeps(), student="exit", teacher="exit")}
    for name, term in terms.items():
        term.loss.name = name
    OfflineDistiller(Exits(), Exits(), terms).compute_losses(torch.randn(2, 7, 3))
    assert given == {"a": (14, 5), "b": (2, 7, 5)}


# ---- weights of zero and terms that cannot teach


class Explodes(DistillationLoss):
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.connector = nn.Linear(10, 10)

    def forward(self, student, teacher, target=None):
        type(self).calls += 1
        return (self.connector(student) - teacher).square().sum().sqrt().log() * float("nan")


def test_a_term_of_weight_0_is_measured_where_it_is_logged_and_never_summed(tmp_path):
    Explodes.calls = 0
    terms = toys.terms() | {"idle": Term(Explodes(), weight=0.0)}
    learner = OfflineDistiller(toys.network(seed=1), toys.network(16, seed=2), terms)
    losses = learner.compute_losses((torch.rand(4, 3, 28, 28), torch.tensor([1, 2, 3, 4])))
    assert losses["idle"].isnan()
    total = learner.weighted_sum(losses)
    assert torch.equal(total, 0.5 * losses["task"] + 0.5 * losses["kd"])
    total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in learner.parameters())
    assert not learner.terms["idle"].loss.connector.weight.grad.any()  # there is a gradient, and it is zero

    Explodes.calls = 0
    toys.trainer(tmp_path, max_epochs=1, log_every_n_steps=2).fit(learner, toys.data())
    assert Explodes.calls == 2  # of four steps
    assert all(value.isfinite().all() for value in learner.state_dict().values())


def test_a_teacher_that_only_idle_terms_compare_with_is_not_run_between_logs(tmp_path):
    class Counts(nn.Flatten):
        calls = 0

        def forward(self, x):
            Counts.calls += 1
            return super().forward(x)[:, :10]

    terms = {"task": Term(TaskLoss(), teacher=None), "kd": Term(KDLoss(), weight=0.0)}
    learner = OfflineDistiller(toys.network(seed=1), Counts(), terms)
    toys.trainer(tmp_path, max_epochs=1, log_every_n_steps=4).fit(learner, toys.data())
    assert Counts.calls == 1


@pytest.mark.parametrize(
    ("loss", "layer", "says"),
    [
        (lambda s, t: (s - t).square().mean(dim=1), "logits", r"gave a tensor of shape \(\d+,\), not a scalar"),
        (lambda s, t: 1.0, "logits", "gave float, not a scalar"),
        (lambda s, t: (s - t).square().mean(), "frozen", "term 'bad' cannot teach the student: frozen of the student"),
    ],
)
def test_a_term_that_cannot_teach_is_named_at_the_first_step(loss, layer, says, tmp_path):
    class Bad(nn.Module):
        def forward(self, student, teacher, target=None):
            return loss(student, teacher)

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Linear(3 * 784, 8).requires_grad_(False)
            self.head = nn.Linear(8, 10)

        def forward(self, x):
            return self.head(self.frozen(x.flatten(1)))

    terms = {"kd": Term(KDLoss()), "bad": Term(Bad(), student=layer, teacher=layer)}
    learner = OfflineDistiller(Half(), Half(), terms)
    with pytest.raises(UsageError, match=says):
        learner.compute_losses(torch.rand(4, 3, 28, 28))
    with pytest.raises(UsageError, match=says):
        toys.trainer(tmp_path, max_epochs=1).fit(learner, toys.data())
    terms["bad"].weight = 0.0
    if layer == "frozen":
        toys.trainer(tmp_path, max_epochs=1).fit(OfflineDistiller(Half(), Half(), terms), toys.data())
