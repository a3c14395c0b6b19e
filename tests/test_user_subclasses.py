"""A user's own schemes, in the forms in which users write them: their modules are not ours."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import NamedTuple

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

from kd_lightning.core.hyperparameters import is_plain
from tests import toys

REAL_ANNOTATIONS = """
    import torch
    from torch import nn
    from kd_lightning import OfflineDistiller, Term
    from kd_lightning.losses import KDLoss

    class Scheme(OfflineDistiller):
        def __init__(self, student: nn.Module, teacher: nn.Module, scale: float = 0.5, layers: list[str] = ["0"]):
            super().__init__(student, teacher, {"kd": Term(KDLoss())})
            self.scale = scale

        def compute_losses(self, batch):
            return {name: self.scale * loss for name, loss in super().compute_losses(batch).items()}
"""
NO_ANNOTATIONS = REAL_ANNOTATIONS.replace(": nn.Module", "").replace(": float", "").replace(": list[str]", "")
MIXED = REAL_ANNOTATIONS.replace("teacher: nn.Module", "teacher")
FORMS = {
    "real annotations": REAL_ANNOTATIONS,
    "no annotations": NO_ANNOTATIONS,
    "one argument without": MIXED,
    "lazy annotations": "from __future__ import annotations\n" + textwrap.dedent(REAL_ANNOTATIONS),
    "lazy, one argument without": "from __future__ import annotations\n" + textwrap.dedent(MIXED),
}


@pytest.mark.parametrize("source", FORMS.values(), ids=FORMS)
def test_a_scheme_of_a_users_own_module_trains_and_is_loaded_again(source, tmp_path):
    module: dict = {"__name__": "their_module"}
    exec(compile(textwrap.dedent(source), "their_module.py", "exec", dont_inherit=True), module)
    learner = module["Scheme"](toys.network(seed=1), toys.network(16, seed=2), scale=0.25, layers=["3"])
    own = {"scale": 0.25, "layers": ["3"]}
    assert dict(learner.hparams) == own | {"lr_scheduler": None, "lr_interval": "epoch", "metrics": None}
    run = toys.trainer(tmp_path, max_epochs=1)
    run.fit(learner, toys.data())
    run.save_checkpoint(tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]["scale"] == 0.25
    again = module["Scheme"].load_from_checkpoint(
        tmp_path / "last.ckpt", student=toys.network(), teacher=toys.network(16, seed=2), weights_only=True
    )
    assert again.scale == 0.25
    assert toys.same(toys.weights(again), toys.weights(learner))


def test_a_scheme_of_a_notebooks_cell(tmp_path):
    use = """
        layers = lambda width: nn.Sequential(nn.Flatten(), nn.Linear(4, width), nn.Linear(width, 3))
        learner = Scheme(layers(4), layers(8), scale=0.25)
        print(dict(learner.hparams)["scale"], sorted(learner.compute_losses(torch.zeros(2, 4))))
    """
    cells = [nbformat.v4.new_code_cell(textwrap.dedent(text)) for text in (REAL_ANNOTATIONS, use)]
    NotebookClient(notebook := nbformat.v4.new_notebook(cells=cells), kernel_name="python3").execute(cwd=str(tmp_path))
    assert notebook.cells[1].outputs[0].text.strip() == "0.25 ['kd']"


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, True),
        ("adam", True),
        (0.5, True),
        ([1, [2.0, None]], True),
        ((0.13, 0.31), True),
        ({"task": "student", 3: {"kd": ["a"]}}, True),
        (torch.optim.Adam, False),
        (torch.nn.ReLU(), False),
        (np.float64(0.5), False),
        ([1, torch.zeros(1)], False),
        ({"a": Path("runs")}, False),
        (NamedTuple("Pair", [("a", int)])(1), False),
    ],
)
def test_plain_values_are_told_by_type(value, plain):
    assert is_plain(value) is plain
