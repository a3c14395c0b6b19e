"""A user's own classes, in the forms in which users write them: their modules are not ours."""

from __future__ import annotations

import csv
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

from kd_lightning import OfflineDistiller, UsageError
from kd_lightning.__main__ import main
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


def test_terms_that_a_yaml_file_could_not_build_cost_one_line():
    with pytest.raises(UsageError, match=r"'kd' is a dict and must be a Term: .*`terms: dict\[str, Term\]`"):
        OfflineDistiller(toys.network(), toys.network(16), {"kd": {"loss": {"class_path": "KDLoss"}}})


@pytest.mark.slow  # a kernel of its own
def test_a_scheme_of_a_notebooks_cell(tmp_path):
    use = """
        layers = lambda width: nn.Sequential(nn.Flatten(), nn.Linear(4, width), nn.Linear(width, 3))
        learner = Scheme(layers(4), layers(8), scale=0.25)
        print(dict(learner.hparams)["scale"], sorted(learner.compute_losses(torch.zeros(2, 4))))
    """
    cells = [nbformat.v4.new_code_cell(textwrap.dedent(text)) for text in (REAL_ANNOTATIONS, use)]
    NotebookClient(notebook := nbformat.v4.new_notebook(cells=cells), kernel_name="python3").execute(cwd=str(tmp_path))
    assert notebook.cells[1].outputs[0].text.strip() == "0.25 ['kd']"


THEIR_PIECES = """
    import torch
    from torch import nn
    from torchmetrics import MeanMetric, MetricCollection

    from kd_lightning import OfflineDistiller, Term
    from kd_lightning.data import LabeledImages, Source


    class Margins(nn.Module):  # a loss
        def __init__(self, power=2):
            super().__init__()
            self.power = power

        def forward(self, student, teacher, target=None):
            return (student.softmax(1) - teacher.softmax(1)).abs().pow(self.power).mean()


    class Doubt(MeanMetric):  # a metric, the lower the better
        higher_is_better = False

        def update(self, preds, target):
            super().update(1 - preds.softmax(1).gather(1, target.unsqueeze(1)))


    class Halved(OfflineDistiller):  # a scheme with that metric
        def __init__(self, student: nn.Module, teacher: nn.Module, terms: dict[str, Term], scale=0.5, **given):
            super().__init__(student, teacher, terms, **given)
            self.scale = scale

        def configure_metrics(self):
            return MetricCollection({"doubt": Doubt()})

        def compute_losses(self, batch):
            return {name: self.scale * loss for name, loss in super().compute_losses(batch).items()}


    class Stripes(Source):  # a source: 3 x 8 x 8, whose label is where it is bright
        num_classes = 3

        def train(self):
            labels = torch.arange(300) % 3
            images = torch.randint(60, (300, 3, 8, 8), generator=torch.Generator().manual_seed(0))
            images[torch.arange(300), labels] += 60
            return LabeledImages(images.byte(), labels)

        def test(self):
            return self.train()


    class Net(nn.Sequential):
        def __init__(self, width: int):
            super().__init__(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, 3))
"""
THEIR_CONFIG = """
    model:
      class_path: their_pieces.Halved
      init_args:
        student: {class_path: their_pieces.Net, init_args: {width: 4}}
        teacher: {class_path: their_pieces.Net, init_args: {width: 8}}
        terms:
          task: {loss: {class_path: TaskLoss}, teacher: null}
          margins: {loss: {class_path: their_pieces.Margins, init_args: {power: 1}}}
        scale: 0.25
        optimizer: {class_path: torch.optim.SGD, init_args: {lr: 3.0}}
    data:
      class_path: ResidentDataModule
      init_args: {source: {class_path: their_pieces.Stripes}, batch_size: 16, val_size: 60}
    trainer: {max_epochs: 4, log_every_n_steps: 1, accelerator: cpu, default_root_dir: runs/theirs}
"""


def test_a_loss_a_scheme_with_a_metric_and_a_source_of_a_users_module_run_from_the_command_line(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "their_pieces.py").write_text(textwrap.dedent(THEIR_PIECES))
    (tmp_path / "user.yaml").write_text(textwrap.dedent(THEIR_CONFIG))
    command = Path(sys.executable).with_name("kd-lightning")
    given = [command, "fit", "--config", "user.yaml"]
    run = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["test", "--config", "runs/theirs/config.yaml"]) == 0
    assert "test/doubt" in capsys.readouterr().out

    folder = tmp_path / "runs/theirs"
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"train/task", "train/margins", "val/doubt"} <= set(rows[0])
    assert "val/acc" not in rows[0]  # they have their own metric
    doubt = {int(row["epoch"]): float(row["val/doubt"]) for row in rows if row["val/doubt"]}
    least = min(doubt, key=lambda epoch: doubt[epoch])
    assert max(doubt, key=lambda epoch: doubt[epoch]) != least
    best = torch.load(folder / "best.ckpt", weights_only=True)
    assert (best["epoch"], len(doubt)) == (least, 4)
    assert best["hyper_parameters"]["scale"] == 0.25


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
