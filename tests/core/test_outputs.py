"""Layers and networks whose outputs are no tensors: their parts are addressed, and nothing else is asked for."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from kd_lightning import OfflineDistiller, Term, UsageError, tap
from kd_lightning.callbacks import Distillation
from kd_lightning.losses import FeatureMSELoss, KDLoss
from tests import toys


class Recurrent(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, width, batch_first=True), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


@dataclass
class States:
    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...]


class Encoder(nn.Module):
    """Gives an object, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> States:
        first = self.first(x)
        second = self.second(first)
        return States(second, (first, second))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).last_hidden_state)


def test_elements_of_tuples_are_addressed_by_their_numbers():
    network, x = Recurrent(), torch.randn(2, 5, 4)
    outputs, (hidden, cell) = network.lstm(x)
    found = tap(network, x, ["lstm.0", "lstm.1.0", "lstm.1.-1", "logits"])
    for name, wanted in (("lstm.0", outputs), ("lstm.1.0", hidden), ("lstm.1.-1", cell), ("logits", network(x))):
        assert torch.equal(found[name], wanted)
    assert found["lstm.0"].requires_grad
    assert list(tap(network, x, ["lstm.weight_ih_l0"])) == ["lstm.weight_ih_l0"]  # a parameter is one still


def test_attributes_and_items_are_addressed_by_their_names():
    network, x = Model(), torch.randn(2, 4)
    states = network.encoder(x)
    found = tap(network, x, ["encoder.last_hidden_state", "encoder.hidden_states.0", "encoder.hidden_states.-1"])
    assert torch.equal(found["encoder.last_hidden_state"], states.last_hidden_state)
    assert torch.equal(found["encoder.hidden_states.0"], states.hidden_states[0])
    assert torch.equal(found["encoder.hidden_states.-1"], states.last_hidden_state)
    found = tap(Encoder(), x, ["output.hidden_states.1"])
    assert found["output.hidden_states.1"].shape == (2, 6)


@pytest.mark.parametrize(
    ("network", "layer", "message"),
    [
        (Recurrent(), "lstm", r"gave tuple, not a tensor: .* address a part of it: lstm\.0, lstm\.1\.0, lstm\.1\.1$"),
        (
            Recurrent(),
            "lstm.2",
            r"Recurrent has no layer 'lstm\.2'; .*; tensors in that output are at lstm\.0",
        ),
        (Recurrent(), "lstm.hidden", r"Recurrent has no layer 'lstm\.hidden'"),
        (Recurrent(), "head.0", r"Recurrent has no layer 'head\.0'; the nearest names are head"),
        (Recurrent(), "lstm.1", r"layer 'lstm\.1' gave tuple, not a tensor: .* lstm\.1\.0, lstm\.1\.1$"),
        (Model(), "encoder.last", r"at encoder\.last_hidden_state, encoder\.hidden_states\.0"),
        (Encoder(), "logits", r"the network gave States, not a tensor: .*: output\.last_hidden_state, "),
    ],
)
def test_what_is_not_there_is_one_line_with_what_is(network, layer, message):
    x = torch.randn(2, 5, 4) if isinstance(network, Recurrent) else torch.randn(2, 4)
    with pytest.raises(UsageError, match=message) as refusal:
        tap(network, x, [layer])
    assert "\n" not in str(refusal.value)


def test_a_part_that_is_overwritten_in_place_is_refused():
    class Overwriting(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0].mul_(2)[:, -1])

    with pytest.raises(UsageError, match=r"the output of layer 'lstm\.0' was overwritten in place"):
        tap(Overwriting().requires_grad_(False), torch.randn(2, 5, 4), ["lstm.0"])


# ---- networks without logits, in schemes and in the drop-in


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def scores(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.backbone(x)))


class Detector(Backbone):
    """Losses in training, a list of dicts else."""

    def forward(self, x: Tensor) -> Any:
        z = self.scores(x)
        return {"loss_box": z.abs().mean()} if self.training else [{"scores": row, "labels": row.argmax()} for row in z]


class Segmenter(Backbone):
    def forward(self, x: Tensor) -> Any:
        z = self.scores(x)
        return OrderedDict(out=z, aux=z * 2)


class Pair(Backbone):
    def forward(self, x: Tensor) -> Any:
        hidden = self.backbone(x)
        return hidden, self.head(hidden)


class Nothing(Backbone):
    def forward(self, x: Tensor) -> None:
        self.scores(x)


class Host(LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.network(batch)
        return 0 * self.network.head.weight.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def values(kind: type[nn.Module], terms: dict[str, Term], folder: Any) -> list[dict[str, float]]:
    """The losses of a scheme and of the drop-in."""
    torch.manual_seed(0)
    student, teacher, x = kind(), kind(), torch.randn(2, 4)
    found = OfflineDistiller(student, teacher, terms).compute_losses(x)
    trainer = toys.trainer(folder, max_steps=1)
    trainer.callbacks.append(Distillation("network", teacher, terms))
    trainer.fit(Host(student), toys.Loader([x]))
    return [
        {name: value.item() for name, value in found.items()},
        {name: trainer.callback_metrics[f"train/{name}"].item() for name in terms},
    ]


@pytest.mark.filterwarnings("ignore:1 of 4 parameters of the optimizer have no gradient")
@pytest.mark.parametrize("kind", [Detector, Segmenter, Pair, Nothing])
def test_terms_on_layers_ask_for_no_logits(kind, tmp_path):
    learner, drop_in = values(kind, {"f": Term(FeatureMSELoss(), student="backbone", teacher="backbone")}, tmp_path)
    assert learner == pytest.approx(drop_in)
    assert learner["f"] > 0


@pytest.mark.parametrize(
    ("kind", "address"), [(Segmenter, "output.out"), (Segmenter, "output.aux"), (Pair, "output.1")]
)
def test_a_part_of_the_networks_own_output_is_distilled(kind, address, tmp_path):
    terms = {"kd": Term(KDLoss(2.0), student=address, teacher=address)}
    learner, drop_in = values(kind, terms, tmp_path)
    assert learner == pytest.approx(drop_in)
    assert learner["kd"] > 0


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            Detector,
            r"the network gave (dict|list), not a tensor: .*, or address a part of it: output\.(loss_box|0)",
        ),
        (Segmenter, r"the network gave OrderedDict, not a tensor: .* output\.out, output\.aux$"),
        (Pair, r"the network gave tuple, not a tensor: .* output\.0, output\.1$"),
        (Nothing, r"the network gave NoneType, not a tensor: return one, or an object with \.logits$"),
    ],
)
def test_terms_on_logits_name_what_there_is_instead(kind, message):
    with pytest.raises(UsageError, match=message):
        OfflineDistiller(kind(), kind(), {"kd": Term(KDLoss())}).compute_losses(torch.randn(2, 4))
