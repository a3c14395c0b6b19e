from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from kd_lightning import UsageError
from kd_lightning.core.protocols import ProvidesTrainingRows
from kd_lightning.data import MNIST, MNISTDataModule, NoiseDataModule, NoiseLoader
from tests.data.shapes import Shapes
from tests.shipped import METHODS

WATCHED = """
import json, sys
opened = []
sys.addaudithook(lambda event, found: opened.append(str(found[0])) if event == "open" else None)
from kd_lightning.__main__ import main
from tests.shipped import small
for name in sys.argv[1:]:
    one = ["--trainer.limit_train_batches=1", f"--trainer.default_root_dir=watched/{name}"]
    assert main(["fit", *small(name), *one]) == 0
    assert main(["test", f"--config=watched/{name}/config.yaml", "--trainer.limit_test_batches=1"]) == 0
print(json.dumps([path for path in opened if "ubyte" in path]))
"""


WITHOUT_DATA = [name for name, method in METHODS.items() if "NoiseDataModule" in method.path.read_text()]


@pytest.mark.slow  # a process with two runs of each
def test_no_method_without_data_opens_a_file_of_the_training_set(provide):
    names = WITHOUT_DATA
    assert len(names) >= 3
    provide(*names)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WATCHED, *names]
    run = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    opened = json.loads(run.stdout.splitlines()[-1])
    assert [path for path in opened if "t10k-images" in path]
    assert not [path for path in opened if "train-" in path]


def data(**changes) -> NoiseDataModule:
    return NoiseDataModule(**{"source": MNIST(), "num_channels": 3} | changes)


def test_noise_never_repeats_and_ranks_split_the_batches_of_one_process():
    whole = [*data(batch_size=4, steps_per_epoch=3).train_dataloader()]
    assert torch.cat([batch["index"] for batch in whole]).tolist() == [*range(12)]
    assert len({image.numpy().tobytes() for batch in whole for image in batch["image"]}) == 12
    shares = [NoiseLoader((1, 28, 28), 2, 3, num_channels=3, rank=rank, world_size=2) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        for name, value in batch.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), value)
    other = next(iter(data(batch_size=4, seed=1).train_dataloader()))
    assert not torch.equal(other["image"], whole[0]["image"])


def test_noise_is_of_the_given_mean_and_deviation():
    noise = next(iter(data(batch_size=500, mean=0.1307, std=0.3081).train_dataloader()))["image"]
    assert noise.mean().item() == pytest.approx(0.1307, abs=0.002)
    assert noise.std().item() == pytest.approx(0.3081, abs=0.002)
    assert torch.equal(noise[:, 0], noise[:, 2])


def test_each_channel_has_noise_of_its_own_mean_and_deviation():
    colour = data(source=Shapes(3), num_channels=None, batch_size=2000, mean=[0.0, 0.5, 1.0], std=[0.1, 0.2, 0.3])
    noise = next(iter(colour.train_dataloader()))["image"]
    assert noise.shape == (2000, 3, 5, 6)
    assert noise.mean((0, 2, 3)).tolist() == pytest.approx([0.0, 0.5, 1.0], abs=0.01)
    assert noise.std((0, 2, 3)).tolist() == pytest.approx([0.1, 0.2, 0.3], rel=0.03)
    assert (torch.corrcoef(noise.transpose(0, 1).flatten(1)) - torch.eye(3)).abs().max() < 0.02
    assert colour.example_input_array.shape == (1, 3, 5, 6)
    other = next(iter(data(image_shape=[1, 8, 9], batch_size=5).train_dataloader()))["image"]
    assert other.shape == (5, 3, 8, 9)


@pytest.mark.parametrize("start", range(7))
def test_training_resumes_at_any_batch(start):
    loader = data(batch_size=2, steps_per_epoch=4).train_dataloader()
    truth = [batch for _ in range(3) for batch in loader]
    assert loader.state_dict() == {"position": 12}
    resumed = data(batch_size=2, steps_per_epoch=4).train_dataloader()
    resumed.load_state_dict({"position": start})
    done = NoiseLoader((1, 28, 28), 2, 4, num_channels=3, completed_batches=lambda: start)
    for given in (resumed, done):
        for batch, expected in zip(given, truth[start : start + 4], strict=False):
            assert all(torch.equal(batch[name], expected[name]) for name in batch)


def test_the_test_is_on_the_real_test_set_and_there_are_no_training_rows():
    ours, plain = (next(iter(module.test_dataloader())) for module in (data(), MNISTDataModule()))
    assert all(map(torch.equal, ours, plain))
    given = data(source=(source := Shapes()), num_channels=None)
    assert given.val_dataloader() == []
    given.prepare_data()
    for stage in ("fit", "test", "predict"):
        given.setup(stage)
    assert source.reads == ["test"]
    assert not isinstance(given, ProvidesTrainingRows)
    assert not hasattr(given, "train_rows")
    assert set(given.hparams) == {"batch_size", "steps_per_epoch", "seed", "eval_batch_size", "num_channels"} | {
        "image_shape",
        "mean",
        "std",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps_per_epoch": 0}, "steps_per_epoch=0 is not a whole number of at least 1"),
        ({"steps_per_epoch": None}, "steps_per_epoch=None is not a whole number of at least 1"),
        ({"image_shape": [28, 28]}, r"image_shape=\[28, 28\] is not \[channels, height, width\], e.g. \[3, 32, 32\]"),
        ({"image_shape": [2, 28, 28]}, r"num_channels=3, but image_shape=\[2, 28, 28\] has 2 channels"),
        ({"mean": [0.1, 0.2]}, r"mean=\[0.1, 0.2\] must be one number, or one for each of 1 channels"),
        ({"std": [0.1, 0.2]}, r"std=\[0.1, 0.2\] must be one number, or one for each of 1 channels"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        data(**changes).train_dataloader()
    with pytest.raises(UsageError, match="has no validation images: use test"):
        data().setup("validate")
