import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.origin.__main__ import main
from benchmarks.origin.notebook import (
    VARIANTS,
    LossIsNaN,
    Overflow,
    Variant,
    batches,
    evaluate,
    notebook_soft_cross_entropy,
    sound_soft_cross_entropy,
    study,
    train_epoch,
)
from benchmarks.origin.report import NAMES, SECTIONS, write_report
from benchmarks.origin.runs import Job, Row
from kd_lightning.data.mnist import MNISTDataModule
from kd_lightning.networks.images.convnet import StudentConvNet, TeacherConvNet


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    exponentials = [math.exp((value - max(row)) / temperature) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def random_batch(images: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(images, 3, 28, 28, generator=generator), torch.randint(10, (images,), generator=generator)


def wide_student(gap: float) -> nn.Module:
    """A student of which two logits always lie `gap` apart."""
    student = StudentConvNet()
    with torch.no_grad():
        student.classifier.bias[0] = gap
    return student


def test_the_distilled_loss_has_t_squared_on_two_logits():
    """Student (3, 0), teacher (0, 6), label 0, T = 3: softened to (e, 1) / (e + 1) and (1, e^2) / (1 + e^2)."""
    student, teacher, target = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 6.0]]), torch.tensor([0])
    sure = math.exp(3) / (math.exp(3) + 1)
    hard = math.log(1 + math.exp(1 - sure - sure))
    soft = math.log(1 + math.e) - 1 / (1 + math.exp(2))
    for name in ("distilled", "distilled_log_softmax"):
        loss = VARIANTS[name].loss(student, teacher, target).item()
        assert loss == pytest.approx(0.5 * hard + 0.5 * 9 * soft, rel=1e-6)


def test_the_distilled_loss_is_half_of_each():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 10, generator=generator, dtype=torch.float64) * 4
    target = torch.arange(5)
    expected = 0.0
    for z_s, z_t, label in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True):
        hard = -math.log(softmax(softmax(z_s))[label])
        soft = -sum(t * math.log(s) for s, t in zip(softmax(z_s, 3.0), softmax(z_t, 3.0), strict=True))
        expected += (0.5 * hard + 0.5 * 9 * soft) / 5
    for name in ("distilled", "distilled_log_softmax"):
        assert VARIANTS[name].loss(student, teacher, target).item() == pytest.approx(expected, rel=1e-9)


def test_log_of_softmax_overflows_where_log_softmax_does_not():
    teacher = torch.zeros(1, 10)
    for gap, finite in ((250.0, True), (400.0, False)):
        student = torch.tensor([[gap] + [0.0] * 9])
        assert notebook_soft_cross_entropy(student, teacher).isfinite().item() is finite
        assert sound_soft_cross_entropy(student, teacher).item() == pytest.approx(9 * 0.9 * gap / 3, rel=1e-5)
    overflow = Overflow()
    for gap in (0.0, 400.0, 250.0, math.nan):  # the last are not finite themselves, and not counted
        overflow.count(torch.tensor([[gap] + [0.0] * 9]), teacher)
    assert overflow == Overflow(steps=3, log_of_softmax=1, log_softmax=0, first=2)


def test_only_the_notebooks_distilled_run_ends_in_nan():
    for name, ends_in_nan in (("distilled", True), ("distilled_log_softmax", False), ("student", False)):
        torch.manual_seed(0)
        variant, student = VARIANTS[name], wide_student(400.0)
        teacher = TeacherConvNet() if variant.taught else None
        optimizer = torch.optim.Adam(student.parameters())
        overflow = Overflow()

        def train() -> dict[str, float]:
            return train_epoch(student, teacher, variant, optimizer, [random_batch()] * 2, overflow)  # noqa: B023

        if ends_in_nan:
            with pytest.raises(LossIsNaN):
                train()
            assert overflow == Overflow(steps=1, log_of_softmax=1, log_softmax=0, first=1)
        else:
            assert math.isfinite(train()["train_loss"])


def test_only_the_taught_are_clipped():
    def steep(student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
        return 1000 * nn.functional.cross_entropy(student, target)

    for taught in (True, False):
        torch.manual_seed(0)
        student = StudentConvNet()
        before = nn.utils.parameters_to_vector(student.parameters()).detach().clone()
        variant = Variant(StudentConvNet, steep, taught, epoch_seconds=1.0)
        optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
        train_epoch(student, TeacherConvNet() if taught else None, variant, optimizer, [random_batch()], Overflow())
        step = (nn.utils.parameters_to_vector(student.parameters()) - before).norm().item()
        assert step == pytest.approx(1.0, rel=1e-3) if taught else step > 10


def test_losses_are_printed_as_batch_means_summed_over_the_images():
    torch.manual_seed(0)
    student = StudentConvNet()
    data = [random_batch(64), random_batch(36)]
    with torch.no_grad():
        means = [nn.functional.cross_entropy(student(x).softmax(dim=1), y).item() for x, y in data]
        hits = sum(int((student(x).argmax(dim=1) == y).sum()) for x, y in data)
    loss, logits, target = evaluate(student, None, VARIANTS["student"].loss, data)
    assert loss == pytest.approx(sum(means) / 100, rel=1e-6)
    assert logits.shape == (100, 10)
    assert study(logits, target)["test_accuracy"] == pytest.approx(hits / 100)
    idle = torch.optim.SGD(student.parameters(), lr=0.0)
    row = train_epoch(student, None, VARIANTS["student"], idle, data, Overflow())
    assert row["train_loss"] == pytest.approx(sum(means) / 100, rel=1e-6)
    assert row["train_accuracy"] == hits / 100


def test_study_finds_the_dead_class_and_the_starved_gradient():
    target = torch.arange(10).repeat(4)
    logits = torch.zeros(40, 10)
    logits[torch.arange(40), target] = 20.0
    logits[target == 7] = logits[target == 1][0]  # every 7 is taken for a 1, for certain
    figures = study(logits, target)
    p = softmax([20.0] + [0.0] * 9)  # the wrong class, then the others, of which one is the true one
    g = softmax(p)
    g[1] -= 1
    mean = sum(a * b for a, b in zip(p, g, strict=True))
    assert figures["recall"] == [1, 1, 1, 1, 1, 1, 1, 0, 1, 1]
    assert figures["test_accuracy"] == pytest.approx(0.9)
    assert figures["logit_gap"] == pytest.approx(20.0)
    starved = math.hypot(*(a * (b - mean) for a, b in zip(p, g, strict=True)))
    assert figures["mistake_gradient"] == pytest.approx(starved, rel=1e-6)
    assert figures["mistake_gradient_on_logits"] == pytest.approx(math.sqrt(2), rel=1e-6)


def test_all_of_mnist_in_938_batches():
    mnist = MNISTDataModule()
    train, test = mnist.train_set, mnist.test_set
    assert train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    order = torch.arange(60_000).flip(0)
    assert len(order.split(64)) == 938
    images, target = list(batches(train, order[-100:]))[-1]
    assert images.shape == (36, 3, 28, 28)
    assert target.tolist() == train.labels[:36].flip(0).tolist()
    assert images.min() == 0
    assert images.max() == 1
    assert (images[:, 0] == images[:, 1]).all()
    assert (images[:, 0] == images[:, 2]).all()


@pytest.mark.slow
def test_the_command_runs_unfinished_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["--seeds", "0", "--epochs", "1", "--workers", "1", "--folder", str(tmp_path), "--limit-batches"]
    main([*command, "2"])
    printed = capsys.readouterr().out
    assert printed.startswith("5 runs to do")
    for name in VARIANTS:
        assert f"seed 0 · {name} · epoch 1 · loss: train 0." in printed
    assert printed.rstrip().endswith("0 min left")
    main([*command, "2"])
    assert capsys.readouterr().out.startswith("0 runs to do")
    with pytest.raises(SystemExit, match="remove it, or name another --folder"):
        main([*command, "3"])

    finished = tmp_path / "seed_0" / "student.json"
    row = json.loads(finished.read_text())["epochs"][0]
    student = StudentConvNet()
    student.load_state_dict(torch.load(finished.with_suffix(".pt"), weights_only=True))
    with torch.no_grad():
        data = batches(MNISTDataModule().test_set, torch.arange(128))
        hits = sum(int((student(images).argmax(dim=1) == target).sum()) for images, target in data)
    assert row["test_accuracy"] == pytest.approx(hits / 128)

    finished.unlink()  # as if it had been killed: that run alone is run again, and comes to the same
    job = Job(seed=0, variant="student", epochs=1, limit_batches=2)
    assert job.finished(tmp_path) is None
    told: list[Row | None] = []
    job.run(tmp_path, lambda job, row: told.append(row))
    again = json.loads(finished.read_text())["epochs"]
    assert again == told
    for figure in ("train_loss", "test_loss", "test_accuracy", "recall"):
        assert again[0][figure] == pytest.approx(row[figure], rel=1e-5)
    assert not list(tmp_path.rglob("*.part"))


def result(name: str, seed: int, accuracies: list[float], stopped: bool = False) -> dict[str, Any]:
    rows = [
        {
            "epoch": epoch,
            "train_loss": 0.05 / epoch if name == "distilled" else 0.03,
            "train_accuracy": accuracy,
            "iterations_per_second": 100.0,
            "test_loss": (1.4612 + 1 - accuracy) * 157 / 10_000,
            "test_accuracy": accuracy,
            "recall": [1.0] * 9 + [0.0 if accuracy < 0.9 else 1.0],
            "logit_gap": 500.0,
            "mistake_gradient": 0.001,
            "mistake_gradient_on_logits": 1.4,
        }
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]
    count = {"steps": 216, "log_of_softmax": int(stopped), "log_softmax": 0, "first": 216 if stopped else None}
    job = {"seed": seed, "variant": name, "epochs": 2, "limit_batches": None}
    return {"job": job, "epochs": rows, "stopped": stopped, "overflow": count, "torch": "2", "seconds": 1.0}


def test_the_report_writes_figures_between_markers_and_keeps_the_prose(tmp_path: Path):
    runs = [result(name, 0, [0.5, 0.8]) for name in NAMES] + [
        result(name, 1, [] if name == "distilled" else [0.6, 0.97], stopped=name == "distilled") for name in NAMES
    ]
    document = tmp_path / "origin.md"
    document.write_text(
        "# Prose\n" + "".join(f"{name}:\n<!-- figures: {name} -->\nold\n<!-- end -->\n" for name in SECTIONS)
    )
    write_report(document, runs)
    text = document.read_text()
    assert "old" not in text
    assert text.startswith("# Prose\nsetting:\n<!-- figures: setting -->\n\nSeeds 0, 1; 2 epochs of 938 batches")
    assert "| student alone | 79.3% | 88.5% (80.0% to 97.0%) | 2 of 2 |" in text
    assert "| student distilled | 97.3% | 80.0% (80.0% to 80.0%) | 1 of 2 |" in text
    assert "0.02284 on the training set" in text
    assert "| student alone, seed 0 | 0.02608 | 20.0% | 20.0% |" in text  # the loss says the error rate
    assert "| student alone, seed 0 | 9 → 9 | 80.0% |" in text
    assert "| student distilled, seed 1 | 500 | 216 | 1 (first: 216) | 0 | NaN: stopped |" in text
    assert "| 1 | 0.0300 | 0.0500 | higher |\n| 2 | 0.0300 | 0.0250 | lower |" in text
    assert "is the higher: 1 (means over seeds 0)" in text
    write_report(document, runs)
    assert document.read_text() == text


def test_a_report_without_its_place_is_refused(tmp_path: Path):
    document = tmp_path / "origin.md"
    document.write_text("# Prose\n")
    with pytest.raises(ValueError, match="exactly one <!-- figures: setting -->"):
        write_report(document, [result(name, 0, [0.5, 0.8]) for name in NAMES])
    assert document.read_text() == "# Prose\n"


def test_the_page_has_a_place_for_every_section():
    page = (Path(__file__).parent.parent / "docs/origin.md").read_text()
    for name in SECTIONS:
        assert page.count(f"<!-- figures: {name} -->\n") == 1
    assert page.count("<!-- end -->") == len(SECTIONS)
