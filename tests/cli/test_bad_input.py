"""Bad input costs exit code 2 and one line that names the setting and a remedy: no traceback, nothing in silence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kd_lightning import UsageError, losses
from kd_lightning.__main__ import main
from tests.cli.test_cli import CONFIG as WITH_TEACHER_FILE

LOADER = WITH_TEACHER_FILE[WITH_TEACHER_FILE.index("      class_path: kd") : WITH_TEACHER_FILE.index("    terms:")]
CONFIG = WITH_TEACHER_FILE.replace(LOADER, "      class_path: TeacherConvNet\n")
WORDS = ("word", "[1, x]", "{a: b}")
NEGATIVE = ("-1", *WORDS)
COUNT = ("0", "-3", "1.5", *WORDS)
SHARE = ("-1", "1.5", *WORDS)
SETTINGS: dict[str, tuple[str, ...]] = {
    # ---- the trainer
    "trainer.max_epochs": ("0", "-2", "1.5", "1:30", "9" * 400, *WORDS),
    "trainer.min_epochs": COUNT,
    "trainer.max_steps": ("0", "-2", "1.5", *WORDS),
    "trainer.min_steps": COUNT,
    "trainer.max_time": ("00:00:00:00", "word"),
    "trainer.accumulate_grad_batches": COUNT,
    "trainer.check_val_every_n_epoch": COUNT,
    "trainer.val_check_interval": ("0", "-1", "1.5", "1000000"),
    "trainer.limit_train_batches": ("0", *SHARE),
    "trainer.limit_val_batches": SHARE,
    "trainer.limit_test_batches": SHARE,
    "trainer.limit_predict_batches": SHARE,
    "trainer.overfit_batches": SHARE,
    "trainer.gradient_clip_val": ("-1", ".nan", ".inf", *WORDS),
    "trainer.gradient_clip_algorithm": ("word",),
    "trainer.log_every_n_steps": NEGATIVE,
    "trainer.num_sanity_val_steps": ("-2", *WORDS),
    "trainer.fast_dev_run": ("-1", *WORDS),
    "trainer.reload_dataloaders_every_n_epochs": NEGATIVE,
    "trainer.devices": ("0", "-2", "99999", "word"),
    "trainer.num_nodes": COUNT,
    "trainer.accelerator": ("word", "gpu"),
    "trainer.strategy": ("word",),
    "trainer.precision": ("99", *WORDS),
    "trainer.deterministic": WORDS,
    "trainer.benchmark": WORDS,
    "trainer.profiler": ("word",),
    "trainer.plugins": ("word",),
    "trainer.logger": ("word",),
    "trainer.callbacks": ("word", "[word]"),
    "trainer.enable_checkpointing": WORDS,
    "trainer.enable_progress_bar": WORDS,
    "trainer.sync_batchnorm": WORDS,
    "trainer.barebones": WORDS,
    "trainer.default_root_dir": ("null", "mine.yaml"),
    # ---- the data
    "data.batch_size": (*COUNT, "500", "null"),
    "data.train_size": ("0", "-3", "1.5", "60001", "9", *WORDS),
    "data.val_size": ("-1", "1.5", "60001", "null", *WORDS),
    "data.steps_per_epoch": ("0", "-1", "1.5", "1000000000000", *WORDS),
    "data.num_channels": ("0", "-1", "1.5", "2", *WORDS),
    "data.seed": ("-1", "1.5", "null", *WORDS),
    "data.eval_batch_size": (*COUNT, "null"),
    "data.num_augmented_views": COUNT,
    "data.classes": ("[]", "[1, 1]", "[11]", "[-1]", "word", "3"),
    "data.augmentation": ("word", "3"),
    "data.drop_last": ("word", "3", "null"),
    # ---- the model
    "model.student": ("null", "3", "word", "[]", "kd_lightning.losses.KDLoss"),
    "model.teacher": ("3", "word", "[]"),
    "model.terms": ("3", "word", "[]", "{}", "{kd: 3}"),
    "model.terms.kd.weight": (".nan", ".inf", "null", *WORDS),
    "model.terms.kd.loss.temperature": (
        "0",
        "-1",
        ".nan",
        ".inf",
        "1e-320",
        "1e300",
        "1e400",
        "1e-400",
        "null",
        *WORDS,
    ),
    "model.optimizer": ("word", "torch.optim.Adm", "torch.nn.Linear"),
    "model.optimizer.lr": ("-1", "1e400", "inf", "nan", "null", *WORDS),
    "model.optimizer.betas": ("[0.9, 2.0]", "word", "3"),
    "model.lr_interval": ("steps", "3"),
    "model.lr_scheduler": ("word", "torch.optim.lr_scheduler.StepLR"),
    # ---- the rest
    "seed_everything": ("-1", str(2**32), "1.5", *WORDS),
    "ckpt_path": ("no.ckpt", "mine.yaml", "empty.ckpt", "last", "best"),
    # ---- names that are not there
    "trainer.max_epoch": ("1",),
    "data.batchsize": ("1",),
    "model.terms.kd.loss.tau": ("1",),
    "model.teachr": ("word",),
    "modle.student": ("word",),
}
"""Options, and the bad values of each."""

FILES: dict[str, tuple[str, str]] = {
    "the trainer is null": ("trainer:\n", "trainer: null\nx:\n"),
    "an unknown empty section": ("data:", "dat: {}\ndata:"),
    "an unknown section": ("data:", "dat: {a: 1}\ndata:"),
    "an empty argument": ("{batch_size", "{bath: {}, batch_size"),
    "arguments in a list": ("init_args: {batch_size: 50, train_size: 100, val_size: 100}", "init_args: [1]"),
    "arguments in a number": ("init_args: {batch_size: 50, train_size: 100, val_size: 100}", "init_args: 3"),
    "keyword arguments": ("  init_args: {batch", "  dict_kwargs: {a: 1}\n  init_args: {batch"),
    "a class that is null": ("MNISTDataModule", "null"),
    "a class that is a number": ("MNISTDataModule", "3"),
    "a class that is a list": ("MNISTDataModule", "[a]"),
    "a class that is a function": ("MNISTDataModule", "os.system"),
    "a class of no module": ("MNISTDataModule", "antigravty.Data"),
    "a network for data": ("MNISTDataModule", "kd_lightning.networks.MLP"),
    "a loss for a network": ("TeacherConvNet", "kd_lightning.losses.KDLoss"),
    "other classes": ("{class_path: StudentConvNet}", "{class_path: StudentConvNet, init_args: {num_classes: 12}}"),
    "other channels": ("{class_path: StudentConvNet}", "{class_path: StudentConvNet, init_args: {in_channels: 5}}"),
    "no such layer": ("kd: {", "kd: {student: conv.9, teacher: conv.9, "),
    "a negative width": ("{class_path: StudentConvNet}", "{class_path: StudentConvNet, init_args: {num_classes: -1}}"),
    "a tag": ("lr: 0.001", "lr: !!python/name:os.system"),
    "a merge key": ("trainer:\n", "trainer:\n  <<: 3\n"),
    "an alias": ("lr: 0.001", "lr: *a"),
    "a key twice": ("trainer:\n", "trainer:\n  max_epochs: 1\n"),
}
"""Places of the configuration file, and what stands there instead."""

COMMANDS: list[list[str]] = [
    ["fitt"],
    ["fit"],
    ["fit", "--config"],
    ["fit", "--config=no.yaml"],
    ["fit", "--config=."],
    ["fit", "--config=/dev/zero"],
    ["fit", "--config=empty.ckpt"],
    ["fit", "mine.yaml"],
    ["fit", "--config=mine.yaml", "rest"],
    ["fit", "--confg=mine.yaml"],
    ["test", "--config=mine.yaml"],
    ["validate", "--config=mine.yaml", "--ckpt_path=no.ckpt"],
    ["predict", "--config=mine.yaml", "--ckpt_path=empty.ckpt"],
    ["export"],
    ["export", "--checkpoint=no.ckpt", "--output=x.safetensors"],
    ["export", "--checkpoint=mine.yaml", "--output=x.safetensors"],
    ["export", "--checkpoint=empty.ckpt", "--output=x.safetensors"],
    ["export", "--checkpoint=no.ckpt"],
    ["layers"],
    ["layers", "--config=no.yaml"],
    ["layers", "--config=mine.yaml", "--data.batch_size=0"],
    ["list", "kd"],
    ["show"],
    ["show", "kdd"],
    ["show", "a", "b"],
    ["methods"],
    ["compare"],
    ["compare", "--config=no.yaml"],
    ["compare", "--config=mine.yaml"],
    ["compare", "--config=mine.yaml", "--processes=-1"],
    ["compare", "--config=mine.yaml", "--processes=x"],
    ["compare", "--config=compare/mnist.yaml", "--rot=x"],
]
"""Command lines."""

TEMPERATURES = (0.0, -1.0, float("nan"), float("inf"), 1e-320, 1e300)
WITH_TEMPERATURE = [
    "KDLoss",
    "SoftCrossEntropyLoss",
    "KLMAELoss",
    "DKDLoss",
    "DISTLoss",
    "TfKDLoss",
    "BernoulliKDLoss",
]
"""Losses whose only required arguments may be left out, and that take a temperature."""


def options() -> list[list[str]]:
    """All options with their bad values, as command lines."""
    return [["fit", "--config=mine.yaml", f"--{name}={value}"] for name, values in SETTINGS.items() for value in values]


REMEDY = (
    "expected|must|did you mean|there (?:is|are)|[Aa]llowed|[Aa]vailable|can only|in the format|If you want|at least"
    "|missing|[Ii]nvalid|subclass|required|not a finite number|empty parameter list|is a directory"
    "|[:;,] (?:set|name|give|write|remove|fit|train|lower|leave|download|print|add|use|pass|save|make)|: kd-lightning"
)
"""What a line tells to do, or what it says that would be right."""
ALL = [*options(), *COMMANDS]
QUICK = [*ALL[::12], *COMMANDS[::6]]
"""Every kind is in these; the others are slow."""


def marked(cases: list[list[str]], quick: list[list[str]]) -> list[object]:
    names = [" ".join(each).replace("--config=mine.yaml ", "")[:60] for each in cases]
    return [
        pytest.param(each, id=name, marks=() if each in quick else pytest.mark.slow)
        for each, name in zip(cases, names, strict=True)
    ]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(CONFIG)
    Path("empty.ckpt").touch()
    return tmp_path


def line_of(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command line costs."""
    assert main(args) == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert output.out == ""
    assert line.startswith("kd-lightning: ")
    assert len(line) < 700
    return line


@pytest.mark.parametrize("args", marked(ALL, QUICK))
def test_an_option_that_cannot_work_costs_one_line_that_names_it(args, workplace, capsys):
    line = line_of(args, capsys)
    if args in COMMANDS:
        assert (
            args[0] in line
            or any(each.rpartition("=")[2] in line for each in args[1:])
            or re.search("--config|ckpt_path", line)
        )
        return
    owner, _, last = args[-1].partition("=")[0].lstrip("-").rpartition(".")
    assert last in line or owner in line or "model.student" in line
    assert re.search(REMEDY, line)
    assert not list(workplace.rglob("last.ckpt"))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if i % 4 else n for i, n in enumerate(FILES)])
def test_a_file_that_cannot_work_costs_one_line_with_its_place(name, workplace, capsys):
    old, new = FILES[name]
    assert CONFIG.count(old)
    Path("mine.yaml").write_text(CONFIG.replace(old, new, 1))
    line = line_of(["fit", "--config=mine.yaml"], capsys)
    assert "mine.yaml:" in line or ": " in line.removeprefix("kd-lightning: ")


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", WITH_TEMPERATURE)
def test_a_temperature_that_no_loss_can_compute_is_refused_with_its_value(name: str, temperature: float):
    with pytest.raises(UsageError, match=r"temperature=\S+ must ") as refusal:
        getattr(losses, name)(temperature=temperature)
    assert "\n" not in str(refusal.value)


def test_there_are_300_and_each_differs():
    number = len(ALL) + len(FILES) + len(TEMPERATURES) * len(WITH_TEMPERATURE)
    assert number >= 300
    assert len({*map(tuple, ALL)}) == len(ALL)
