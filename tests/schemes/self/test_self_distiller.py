from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kd_lightning import Term
from kd_lightning.callbacks import PiecewiseConstant, TermWeightSchedule
from kd_lightning.losses import FeatureMSELoss, KDLoss, SADLoss, TaskLoss
from kd_lightning.networks import MultiExitNetwork
from kd_lightning.schemes import SelfDistiller
from tests import toys

LEARNING_RATE = 0.05


def network(dropout: float = 0.5) -> nn.Sequential:
    """Convolutions (7x7, 5x5 and 4x4 positions), BatchNorm and dropout."""
    return nn.Sequential(
        nn.AvgPool2d(4),
        nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 8, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout)),
        nn.Linear(32, 10),
    )


class Head(nn.Module):
    """A connector to the deepest features, and a classifier."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        connector = nn.Sequential(nn.Conv2d(channels, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Tanh())
        self.features = nn.Sequential(connector, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.classifier = nn.Linear(32, 10)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.features(features))


def byot(answer: int | None = None, deploy: str = "student", dropout: float = 0.5, **changes: Term) -> SelfDistiller:
    torch.manual_seed(0)
    student = MultiExitNetwork(network(dropout), ["1", "2"], [Head(6), Head(8)], answer)
    terms = {"task": Term(TaskLoss(), teacher=None, student="network")}
    for i in range(2):
        exit = f"exits.{i}"
        terms |= {
            f"task_{i}": Term(TaskLoss(), weight=0.7, student=exit, teacher=None),
            f"kd_{i}": Term(KDLoss(3.0), weight=0.3, student=exit, teacher="network"),
            f"hint_{i}": Term(FeatureMSELoss(), weight=3.0, student=f"{exit}.features", teacher="network.3"),
        }
    return SelfDistiller(
        student, terms | changes, deploy, lambda parameters: torch.optim.SGD(parameters, LEARNING_RATE)
    )


def sad(dropout: float = 0.5) -> SelfDistiller:
    torch.manual_seed(0)
    terms = {
        "task": Term(TaskLoss(), teacher=None),
        "sad_1": Term(SADLoss(), weight=0.1, student="1", teacher="2"),
    }
    return SelfDistiller(
        network(dropout), terms, optimizer=lambda parameters: torch.optim.SGD(parameters, LEARNING_RATE)
    )


CASES = {
    "byot": lambda: toys.Case(byot(deploy="student.network")),
    "byot, answered by an exit": lambda: toys.Case(byot(answer=0)),
    "sad": lambda: toys.Case(sad(), [TermWeightSchedule("sad_1", PiecewiseConstant({0: 0.1, 5: 1.0}))]),
}


def batch(seed: int = 0, rows: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 3, 28, 28, generator=generator), torch.randint(10, (rows,), generator=generator)


# ---- the step against the formulas


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return torch.stack([row.logsumexp(0) - row[label] for row, label in zip(logits, target, strict=True)]).mean()


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    p, q = teacher.softmax(1), student.softmax(1)
    return (p * (p / q).log()).sum() / len(p)


def attention(features: Tensor, size: int) -> Tensor:
    energy = nn.functional.interpolate((features**2).sum(1, keepdim=True), (size, size), mode="bilinear").flatten(1)
    return energy.exp() / energy.exp().sum(1, keepdim=True)


def byot_by_hand(student: nn.Module, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The paper: (1 - a) CE_i + a T^2 KL(deepest || i) + l ||F_i - F_deepest||^2 / D, and CE of the deepest."""
    net, exits = student.network, student.exits
    shallow = net[1](net[0](x))
    middle = net[2](shallow)
    features = net[3](middle)
    logits = net[4](features)
    losses = {"task": cross_entropy(logits, y)}
    for i, seen in enumerate((shallow, middle)):
        own = exits[i].features(seen)
        answer = exits[i].classifier(own)
        losses[f"task_{i}"] = cross_entropy(answer, y)
        losses[f"kd_{i}"] = 9 * divergence(logits.detach() / 3, answer / 3)
        losses[f"hint_{i}"] = ((own - features.detach()) ** 2).sum() / (32 * len(x))
    exits_losses = [0.7 * losses[f"task_{i}"] + 0.3 * losses[f"kd_{i}"] + 3.0 * losses[f"hint_{i}"] for i in range(2)]
    return losses, losses["task"] + sum(exits_losses)


def sad_by_hand(student: nn.Module, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The paper: CE + 0.1 ||attention(m) - attention(m + 1)||^2."""
    shallow = student[1](student[0](x))
    deep = student[2](shallow)
    difference = attention(shallow, 5) - attention(deep.detach(), 5)
    losses = {"task": cross_entropy(student[4](student[3](deep)), y), "sad_1": (difference**2).sum() / len(x)}
    return losses, losses["task"] + 0.1 * losses["sad_1"]


@pytest.mark.parametrize(("build", "by_hand"), [(byot, byot_by_hand), (sad, sad_by_hand)], ids=["byot", "sad"])
def test_three_steps_are_those_of_the_paper(build, by_hand):
    learner = build().double()
    student = copy.deepcopy(learner.student)
    optimizer = learner.configure_optimizers()
    for step in range(3):
        x, y = batch(seed=step)
        torch.manual_seed(step)
        losses = learner.compute_losses((x.double(), y))
        optimizer.zero_grad()
        learner.weighted_sum(losses).backward()
        optimizer.step()

        torch.manual_seed(step)
        expected, total = by_hand(student, x.double(), y)
        assert losses.keys() == expected.keys()
        for name, loss in losses.items():
            torch.testing.assert_close(loss, expected[name], rtol=1e-9, atol=1e-12)
            assert loss > 1e-3
        gradients = torch.autograd.grad(total, [*student.parameters()])
        with torch.no_grad():
            for parameter, gradient in zip(student.parameters(), gradients, strict=True):
                parameter -= LEARNING_RATE * gradient
    own, expected = learner.student.state_dict(), student.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(own[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("term", "moved"),
    [
        ("task", ("network.1", "network.2", "network.4")),
        ("task_0", ("network.1", "exits.0")),
        ("kd_0", ("network.1", "exits.0")),
        ("hint_0", ("network.1", "exits.0.features")),
        ("task_1", ("network.1", "network.2", "exits.1")),
        ("kd_1", ("network.1", "network.2", "exits.1")),
        ("hint_1", ("network.1", "network.2", "exits.1.features")),
    ],
)
def test_a_term_has_gradients_only_in_the_layers_below_its_student(term, moved):
    learner = byot()
    learner.compute_losses(batch())[term].backward()
    learned = {name for name, parameter in learner.student.named_parameters() if parameter.grad is not None}
    assert learned == {name for name, _ in learner.student.named_parameters() if name.startswith(moved)}


def test_attention_has_gradients_in_the_shallower_layer_alone():
    learner = sad()
    learner.compute_losses(batch())["sad_1"].backward()
    learned = {name for name, parameter in learner.student.named_parameters() if parameter.grad is not None}
    assert learned == {"1.0.weight", "1.1.weight", "1.1.bias"}


# ---- evaluation and the inference network


@pytest.mark.parametrize(
    ("answer", "deploy", "others"),
    [
        (None, "student", ["exits.0", "exits.1"]),
        (None, "student.network", ["exits.0", "exits.1"]),
        (1, "student", ["exits.0", "network"]),
    ],
)
def test_every_exit_is_evaluated_and_one_is_the_inference_network(answer, deploy, others, tmp_path):
    learner, data = byot(answer, deploy), toys.data(val_size=100)
    (measured,) = toys.trainer(tmp_path).validate(learner, data, verbose=False)
    ((x, y, _),) = data.val_dataloader()
    net, exits = learner.student.network.eval(), learner.student.exits.eval()
    answers = {"network": net(x), "exits.0": exits[0](net[:2](x)), "exits.1": exits[1](net[:3](x))}
    truth = {name: cross_entropy(logits, y).item() for name, logits in answers.items()}
    assert len(set(truth.values())) == 3
    deployed = "network" if answer is None else f"exits.{answer}"
    expected = {f"val/nll/{name}": truth[name] for name in others}
    expected |= {"val/nll": truth[deployed], f"val/nll/{deploy}": truth[deployed]}
    assert {name: value for name, value in measured.items() if "nll" in name} == pytest.approx(expected)
    assert torch.equal(learner.eval()(x), answers[deployed])


def test_a_plain_network_has_one_evaluated_output(tmp_path):
    (measured,) = toys.trainer(tmp_path).validate(sad(), toys.data(val_size=20), verbose=False)
    assert measured.keys() == {"val/acc", "val/nll"}


# ---- errors


@pytest.mark.parametrize("deploy", ["students", "student.exit", "student.exits.0", "network"])
def test_an_inference_network_that_cannot_be_used_alone_raises(deploy):
    with pytest.raises(ValueError, match=f"deploy='{deploy}' is no network that can be used alone"):
        byot(deploy=deploy)


def test_a_network_may_have_a_part_called_exits():
    terms = {"task": Term(TaskLoss(), teacher=None)}
    student = nn.ModuleDict({"exits": nn.Linear(2, 2)})
    assert SelfDistiller(student, terms, "student.exits").inference_network_name == "student.exits"


@pytest.mark.parametrize(
    ("answer", "address", "idle"),
    [
        (None, "exits.0", "network"),
        (0, "exits.0", "network"),
        (0, "logits", "network"),
    ],
)
def test_an_exit_without_a_term_raises(answer, address, idle):
    with pytest.raises(ValueError, match=f"no term has '{idle}' as its student"):
        byot(answer, task=Term(TaskLoss(), student=address, teacher=None))


def test_a_term_on_features_alone_does_not_train_an_exit():
    other = Term(FeatureMSELoss(), student="exits.1.features", teacher="network.3")
    with pytest.raises(ValueError, match=r"no term has 'exits.1' as its student"):
        byot(task_1=other, kd_1=other)


@pytest.mark.parametrize("answer", [None, 1])
def test_the_classifier_in_use_may_be_addressed_as_logits(answer):
    answering = "task" if answer is None else "task_1"
    learner = byot(answer, **{answering: Term(TaskLoss(), teacher=None)})
    same = byot(answer)
    torch.manual_seed(1)
    loss = learner.compute_losses(batch())[answering]
    torch.manual_seed(1)
    assert torch.equal(loss, same.compute_losses(batch())[answering])
