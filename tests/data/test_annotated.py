from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kd_lightning import Classifier
from kd_lightning.data import Affine, AnnotatedMNISTDataModule, MNISTDataModule
from kd_lightning.data.annotated import ensembled
from tests import toys


class Brightness(nn.Module):
    """Whether an image is bright or dark: the classes 0 and 1, and others never."""

    def __init__(self, scale: float = 30.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, images: Tensor) -> Tensor:
        bright = (images.mean((1, 2, 3)) - 0.12) * self.scale
        return torch.cat((torch.stack((bright, -bright), dim=1), torch.full((len(images), 8), -50.0)), dim=1)


def data(folder: Path, **changes: Any) -> AnnotatedMNISTDataModule:
    given = {"file": folder / "found.safetensors", "labels": 20, "train_size": 200, "val_size": 100, "batch_size": 16}
    return AnnotatedMNISTDataModule(**{"annotator": Brightness()} | given | changes)


def prepared(folder: Path, **changes: Any) -> AnnotatedMNISTDataModule:
    module = data(folder, **changes)
    module.prepare_data()
    return module


def test_an_annotation_is_the_mean_over_transformations_and_few_digits_keep_their_label(tmp_path):
    changes = [Affine(), Affine(right=3), Affine(degrees=20)]
    module, plain = prepared(tmp_path, transformations=changes), MNISTDataModule(train_size=20, val_size=100)
    labelled = set(plain.split[0].tolist())
    seen = {}
    for x, y, index in module.train_dataloader():
        seen |= {row: (image, label.item()) for row, image, label in zip(index.tolist(), x, y, strict=True)}
    assert len(seen) >= 190  # the last batch is dropped
    for row, (image, label) in seen.items():
        if row in labelled:
            assert label == plain.train_set.labels[row]
            continue
        said = [Brightness()(change(image.unsqueeze(0))).softmax(dim=1) for change in changes]
        assert label == torch.stack(said).mean(dim=0).argmax().item()
    assert {label for row, (_, label) in seen.items() if row not in labelled} == {0, 1}
    _, y, index = next(iter(module.val_dataloader()))
    assert torch.equal(y, plain.train_set.labels[index])  # those who are held out have their own


def test_what_is_written_is_read_again_without_an_annotator(tmp_path):
    first = prepared(tmp_path)
    found = load_file(tmp_path / "found.safetensors")
    assert found["probabilities"].shape == (180, 10)
    torch.testing.assert_close(found["probabilities"].sum(dim=1), torch.ones(180))
    again = prepared(tmp_path, annotator=None)
    assert torch.equal(again.train_set.labels, first.train_set.labels)
    assert [path.name for path in tmp_path.iterdir()] == ["found.safetensors"]


def test_a_threshold_leaves_out_what_the_annotator_is_unsure_of(tmp_path):
    module = prepared(tmp_path, threshold=0.6)
    sure = module.annotations["probabilities"].amax(dim=1) >= 0.6
    assert 0 < sure.sum() < 180
    expected = set(module.annotations["index"][sure].tolist()) | set(module._labelled.tolist())
    assert set(module.split[0].tolist()) == expected


def test_a_fit_writes_into_its_folder_and_learns_from_it(tmp_path):
    module = data(tmp_path, file=None)
    toys.trainer(tmp_path, max_epochs=1).fit(Classifier(toys.network()), module)
    assert (tmp_path / "annotations.safetensors").is_file()


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there, and no annotator to write it: give one"):
        data(tmp_path, annotator=None).prepare_data()
    prepared(tmp_path)
    with pytest.raises(ValueError, match="is another annotator's: name another file"):
        _ = data(tmp_path, annotator=Brightness(5.0)).annotations
    with pytest.raises(ValueError, match="annotates other digits than those that labels, train_size"):
        _ = data(tmp_path, seed=1).annotations
    save_file({"x": torch.zeros(1)}, tmp_path / "found.safetensors")
    with pytest.raises(ValueError, match="annotates other digits"):
        _ = data(tmp_path).annotations
    with pytest.raises(ValueError, match="labels=300 must be at least 10 and no more than train_size=200"):
        data(tmp_path, labels=300)
    with pytest.raises(ValueError, match=r"threshold=1.5 must lie in \[0, 1\)"):
        data(tmp_path, threshold=1.5)
    with pytest.raises(ValueError, match=r"scale=0.0, .* must be finite, and scale above 0"):
        Affine(scale=0.0)


def test_an_affine_map_turns_enlarges_and_moves():
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 6] = 1.0  # two to the right of the middle

    def place(change: Affine) -> tuple[int, int]:
        return divmod(change(image)[0, 0].argmax().item(), 9)

    assert place(Affine()) == (4, 6)
    assert place(Affine(right=1)) == (4, 7)
    assert place(Affine(down=2)) == (6, 6)
    assert place(Affine(degrees=90)) == (2, 4)  # counter-clockwise: above the middle
    assert place(Affine(scale=0.5)) == (4, 5)
    assert place(Affine(degrees=90, down=1, right=2)) == (3, 6)  # turned, and then moved


def test_an_annotator_is_left_as_it_was():
    network = toys.network()
    network.train()
    before = toys.weights(network)
    ensembled(network, torch.randint(256, (8, 1, 28, 28), dtype=torch.uint8), [Affine()])
    assert network.training
    assert toys.same(toys.weights(network), before)
