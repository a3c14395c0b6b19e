"""Files as other programs write them: one name of tied weights, wrapped layers, state dicts inside of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from kd_lightning import load_student, load_teacher
from kd_lightning.weights.reading import WeightsError


class Tied(nn.Module):
    def __init__(self, seed: int = 0, tie: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.head, self.body = nn.Embedding(6, 8), nn.Linear(8, 6, bias=False), nn.Linear(8, 8)
        if tie:
            self.head.weight = self.embedding.weight


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


# ---- tied weights


@pytest.mark.parametrize("load", [load_teacher, load_student], ids=["teacher", "student"])
@pytest.mark.parametrize("left_out", ["head.weight", "embedding.weight", None])
@pytest.mark.parametrize("prefix", ["", "student.", "model."])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_one_name_of_a_tied_weight_is_enough(load, left_out, prefix, suffix, tmp_path: Path):
    trained, path = Tied(1), tmp_path / f"weights.{suffix}"
    state = {prefix + name: value.clone() for name, value in trained.state_dict().items() if name != left_out}
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    fresh = Tied(2)
    loaded = load(fresh, path) if load is load_teacher else load(path, fresh)
    assert same(loaded, trained)
    assert loaded.head.weight is loaded.embedding.weight


def test_a_file_of_safetensors_own_writer(tmp_path: Path):
    save_model(Tied(1), str(tmp_path / "model.safetensors"))
    assert same(load_teacher(Tied(2), tmp_path / "model.safetensors"), Tied(1))


def test_what_is_tied_in_the_network_and_differs_in_the_file_is_refused(tmp_path: Path):
    torch.save(Tied(1, tie=False).state_dict(), tmp_path / "untied.pt")
    with pytest.raises(
        WeightsError, match=r"embedding\.weight and head\.weight differ in the file and are one parameter"
    ):
        load_teacher(Tied(), tmp_path / "untied.pt")


def test_a_name_that_is_not_tied_is_still_missing(tmp_path: Path):
    torch.save({k: v for k, v in Tied(1).state_dict().items() if k != "head.weight"}, tmp_path / "tied.pt")
    with pytest.raises(WeightsError, match=r"1 missing, the first 'head\.weight'"):
        load_teacher(Tied(tie=False), tmp_path / "tied.pt")


# ---- state dicts inside of others


def with_prefix(prefix: str, network: nn.Module) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in network.state_dict().items()}


def optimizer_state() -> dict[str, Any]:
    network = small()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(4, 4)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


NESTED = {
    "model": lambda n: {"model": n.state_dict(), "epoch": 3},
    "model beside its optimizer": lambda n: {"model": n.state_dict(), "optimizer": optimizer_state(), "step": 7},
    "state_dict of a wrapped model": lambda n: {"state_dict": with_prefix("module.", n), "arch": "resnet"},
    "state_dict in state_dict": lambda n: {"state_dict": {"network": n.state_dict()}},
    "net with module.": lambda n: {"net": with_prefix("module.", n), "acc": 0.9},
    "two levels": lambda n: {"checkpoint": {"weights": n.state_dict(), "lr": 0.1}},
    "compiled": lambda n: {"model": with_prefix("_orig_mod.", n), "iter": 1},
    "another network beside": lambda n: {"model": n.state_dict(), "head": nn.Linear(3, 2).state_dict()},
}


@pytest.mark.parametrize("name", NESTED)
def test_a_state_dict_inside_of_another_dict_is_found(name: str, tmp_path: Path):
    trained = small(1)
    trained(torch.randn(8, 4))
    torch.save(NESTED[name](trained), tmp_path / "nested.pt")
    assert same(load_teacher(small(2), tmp_path / "nested.pt"), trained.eval())
    assert same(load_student(tmp_path / "nested.pt", small(3)), trained)


def test_of_several_networks_in_a_file_one_is_chosen_by_its_prefix(tmp_path: Path):
    torch.save({"model": small(1).state_dict(), "model_ema": small(2).state_dict(), "epoch": 3}, tmp_path / "two.pt")
    with pytest.raises(
        WeightsError, match=r"has 2 networks with these keys, under model\., model_ema\.: choose"
    ) as one:
        load_teacher(small(), tmp_path / "two.pt")
    assert "\n" not in str(one.value)
    assert same(load_teacher(small(), tmp_path / "two.pt", prefix="model_ema"), small(2))


def test_a_dict_without_a_state_dict_is_refused_with_what_it_holds(tmp_path: Path):
    torch.save({"optimizer": optimizer_state(), "epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(WeightsError, match=r"is not a state dict \(its 'optimizer' is a dict"):
        load_teacher(small(), tmp_path / "none.pt")


# ---- wrapped layers


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_the_names_of_wrapped_layers_are_those_of_the_layers(wrapper: str, tmp_path: Path):
    network = nn.Sequential(small(1), nn.Linear(3, 2))
    state = {name.replace("0.0.", f"0.{wrapper}0."): value for name, value in network.state_dict().items()}
    torch.save({"student." + name: value for name, value in state.items()}, tmp_path / "wrapped.pt")
    assert same(load_teacher(nn.Sequential(small(2), nn.Linear(3, 2)), tmp_path / "wrapped.pt"), network)


def test_a_compiled_network_takes_a_file_of_a_plain_one_and_the_other_way_round(tmp_path: Path):
    compiled = torch.compile(small(1), backend="eager")
    torch.save(small(2).state_dict(), tmp_path / "plain.pt")
    load_teacher(compiled, tmp_path / "plain.pt")
    assert all(torch.equal(a, b) for a, b in zip(compiled.parameters(), small(2).parameters(), strict=True))
    torch.save(compiled.state_dict(), tmp_path / "compiled.pt")
    assert same(load_teacher(small(3), tmp_path / "compiled.pt"), small(2))
