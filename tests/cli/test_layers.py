from __future__ import annotations

import pytest
import torch
from torch import nn

from kd_lightning.__main__ import main
from kd_lightning.cli.layers import shapes
from kd_lightning.networks import StudentConvNet, TeacherConvNet

GIVEN = ["--config=configs/response/kd.yaml", "--trainer.accelerator=cpu"]


def rows(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]


def test_both_networks_are_listed_and_the_pairs_whose_shapes_agree_are_marked(workplace, capsys):
    assert main(["layers", *GIVEN]) == 0
    printed = capsys.readouterr().out
    student, teacher = printed.split("teacher: TeacherConvNet")
    assert "student: StudentConvNet" in student
    listed = {row[0]: row[1:] for row in rows(student)}
    assert listed["conv.3"] == ["64 x 32 x 6 x 6", "", "conv.2, conv.3"]
    assert listed["classifier"] == ["64 x 10", "classifier, logits", ""]
    assert next(row[:2] for row in rows(teacher)) == ["conv.0", "64 x 128 x 13 x 13"]
    assert set(listed) == {name for name, _ in StudentConvNet().named_modules() if name} | {"logits"}
    assert not (workplace / "runs/response").exists()  # it trains nothing, and leaves nothing


def test_without_a_teacher_the_student_is_listed_alone(workplace, capsys):
    assert main(["layers", "--config=configs/mnist/student.yaml", "--trainer.accelerator=cpu"]) == 0
    printed = capsys.readouterr().out
    assert rows(printed)[0] == ["conv.0", "64 x 32 x 13 x 13"]
    assert "teacher" not in printed


def test_only_addressable_layers_are_listed_and_the_network_is_unchanged():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.never, self.pair = nn.Linear(4, 4), nn.Linear(4, 4), nn.LSTM(4, 4)
            self.drop = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))

        def forward(self, x):
            x = self.twice(self.twice(self.drop(x)))
            return {"logits": self.pair(x)[0]}

    network = Odd()
    network.drop[1].eval()
    modes = {name: module.training for name, module in network.named_modules()}
    statistics = network.drop[0].running_mean.clone()
    assert shapes(network, torch.randn(5, 4)) == {"drop.0": (5, 4), "drop.1": (5, 4), "drop": (5, 4), "logits": (5, 4)}
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert torch.equal(network.drop[0].running_mean, statistics)
    assert not network.twice._forward_hooks


def test_a_wrong_width_is_reported_with_the_layer_and_the_command_that_lists_layers(workplace, capsys):
    built = "{class_path: HintLoss, init_args: {student_channels: 64, teacher_channels: 128}}"
    hint = f"--model.init_args.terms={{hint: {{loss: {built}, student: conv.3, teacher: conv.3}}}}"
    given = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.enable_progress_bar=false"]
    assert main(["fit", *GIVEN, *given, hint]) == 2
    said = capsys.readouterr().err
    assert "the student's conv.3 gives 32 channels, HintLoss was built for 64" in said
    assert "kd-lightning layers --config FILE" in said


@pytest.mark.parametrize("given", [[], ["--config=configs/response/none.yaml"]])
def test_a_mistake_costs_one_line(given, workplace, capsys):
    assert main(["layers", *given]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_tables_shapes_are_those_of_the_networks():
    images = torch.zeros(2, 3, 28, 28)
    student, teacher = shapes(StudentConvNet(), images), shapes(TeacherConvNet(), images)
    assert student["pool"] == (2, 32, 2, 2)
    assert teacher["pool"] == (2, 128, 2, 2)


def test_a_batch_that_the_student_cannot_take_names_the_setting(workplace, capsys):
    narrow = "--model.init_args.student={class_path: torch.nn.Linear, init_args: {in_features: 5, out_features: 10}}"
    assert main(["layers", *GIVEN, narrow]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.student: " in line
