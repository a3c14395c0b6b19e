from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from kd_lightning.data import DataFreeMNISTDataModule, MNISTDataModule
from kd_lightning.data.data_free import NoiseLoader
from kd_lightning.methods import SHIPPED, methods

WATCHED = """
import json, sys
opened = []
sys.addaudithook(lambda event, found: opened.append(str(found[0])) if event == "open" else None)
from kd_lightning.__main__ import main
for name in sys.argv[2:]:
    folder = f"--trainer.default_root_dir=watched/{name}"
    inverts = "image_steps" in open(f"{sys.argv[1]}/{name}.yaml").read()
    fewer = ["--model.init_args.image_steps=2", "--model.init_args.round_size=16"] if inverts else []
    short = ["--trainer.limit_train_batches=1", "--trainer.limit_test_batches=1", "--trainer.accelerator=cpu"]
    assert main(["fit", f"--config=configs/{name}.yaml", "--trainer.max_epochs=1", folder, *short, *fewer]) == 0
    assert main(["test", f"--config=watched/{name}/config.yaml", *short]) == 0
print(json.dumps([path for path in opened if "ubyte" in path]))
"""


def test_no_method_without_data_opens_a_file_of_the_training_set(workplace):
    names = [method.name for method in methods() if "DataFreeMNISTDataModule" in method.path.read_text()]
    assert len(names) >= 3
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WATCHED, str(SHIPPED), *names]
    run = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    opened = json.loads(run.stdout.splitlines()[-1])
    assert [path for path in opened if "t10k-images" in path]
    assert not [path for path in opened if "train-" in path]


def test_noise_never_repeats_and_ranks_share_what_one_process_sees():
    whole = [*DataFreeMNISTDataModule(batch_size=4, epoch_steps=3).train_dataloader()]
    assert torch.cat([batch["index"] for batch in whole]).tolist() == [*range(12)]
    assert len({image.numpy().tobytes() for batch in whole for image in batch["image"]}) == 12
    shares = [NoiseLoader(2, 3, rank=rank, world_size=2) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        for name, value in batch.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), value)
    other = next(iter(DataFreeMNISTDataModule(batch_size=4, seed=1).train_dataloader()))
    assert not torch.equal(other["image"], whole[0]["image"])


def test_noise_is_of_the_mean_and_deviation_of_the_pixels():
    noise = next(iter(DataFreeMNISTDataModule(batch_size=500).train_dataloader()))["image"]
    pixels = MNISTDataModule().train_set.images.float() / 255
    assert noise.mean().item() == pytest.approx(pixels.mean().item(), abs=0.002)
    assert noise.std().item() == pytest.approx(pixels.std().item(), abs=0.002)
    assert torch.equal(noise[:, 0], noise[:, 2])


def test_it_goes_on_where_it_stood():
    loader = DataFreeMNISTDataModule(batch_size=2, epoch_steps=4).train_dataloader()
    first = iter(loader)
    next(first), next(first)
    again = DataFreeMNISTDataModule(batch_size=2, epoch_steps=4).train_dataloader()
    again.load_state_dict(loader.state_dict())
    assert next(iter(again))["index"].tolist() == [4, 5]


def test_the_test_is_on_the_real_test_set_and_the_training_set_is_refused():
    ours, plain = (next(iter(data.test_dataloader())) for data in (DataFreeMNISTDataModule(), MNISTDataModule()))
    assert all(map(torch.equal, ours, plain))
    data = DataFreeMNISTDataModule()
    assert data.val_dataloader() == []
    assert data.hparams == {"batch_size": 128, "epoch_steps": 200, "seed": 0, "eval_batch_size": 250, "channels": 3}
    assert not hasattr(data, "train_rows")
    with pytest.raises(ValueError, match="reads no training image: use MNISTDataModule"):
        _ = data.train_set
    with pytest.raises(ValueError, match="epoch_steps=0"):
        DataFreeMNISTDataModule(epoch_steps=0)
