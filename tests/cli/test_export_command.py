"""`kd-lightning export` of a module that is no learner."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kd_lightning import load_student
from kd_lightning.__main__ import main


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A network in the checkpoint of a user's module."""
    monkeypatch.chdir(tmp_path)
    found = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    state = {f"model.net.{name}": value for name, value in found.state_dict().items()} | {"scale": torch.ones(1)}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.6.6"}, "last.ckpt")
    return found


@pytest.mark.parametrize(("name", "prefix"), [("model.net", ""), ("model", "net.")])
def test_a_named_network_is_exported(network, name, prefix, capsys):
    assert main(["export", "--checkpoint=last.ckpt", f"--network={name}", "--output=net.safetensors"]) == 0
    assert capsys.readouterr().out.startswith("net.safetensors: 21 parameters of F32, ")
    wanted = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    read = load_student("net.safetensors", network=nn.ModuleDict({"net": wanted}) if prefix else wanted)
    for key, value in read.state_dict().items():
        assert torch.equal(value, network.state_dict()[key.removeprefix(prefix)])


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], "last.ckpt: has no student: no key starts with 'student.', its networks are model: name the network "),
        (["--network=model.nets"], "last.ckpt: has no network 'model.nets': name one with --network: model.net, model"),
    ],
)
def test_a_network_that_is_missing_costs_one_line(network, given, wanted, capsys):
    assert main(["export", "--checkpoint=last.ckpt", "--output=net.safetensors", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kd-lightning: {wanted}")
