from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kd_lightning import Classifier, UsageError
from kd_lightning.data import MNIST, Affine, MNISTDataModule, PseudoLabels, ResidentDataModule
from kd_lightning.data.sources.pseudo_labels import ensembled_probabilities
from tests import toys


class Brightness(nn.Module):
    """Whether an image is bright or dark: the classes 0 and 1, and others never."""

    def __init__(self, scale: float = 30.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, images: Tensor) -> Tensor:
        bright = (images.mean((1, 2, 3)) - 0.12) * self.scale
        return torch.cat((torch.stack((bright, -bright), dim=1), torch.full((len(images), 8), -50.0)), dim=1)


OF_THE_SOURCE = ("labeler", "file", "num_labeled", "transformations", "threshold")


def data(folder: Path, **changes: Any) -> ResidentDataModule:
    given = {"labeler": Brightness(), "file": folder / "found.safetensors", "num_labeled": 20}
    given |= {"num_channels": 3, "train_size": 200, "val_size": 100, "batch_size": 16} | changes
    source = PseudoLabels(MNIST(), **{name: given.pop(name) for name in OF_THE_SOURCE if name in given})
    return ResidentDataModule(source, **given)


def prepared(folder: Path, **changes: Any) -> ResidentDataModule:
    module = data(folder, **changes)
    module.prepare_data()
    return module


def test_a_pseudo_label_is_the_mean_over_transformations_and_few_digits_keep_their_label(tmp_path):
    changes = [Affine(), Affine(right=3), Affine(degrees=20)]
    module, plain = prepared(tmp_path, transformations=changes), MNISTDataModule(train_size=20, val_size=100)
    labeled = set(plain.split[0].tolist())
    seen = {}
    for x, y, index in module.train_dataloader():
        seen |= {row: (image, label.item()) for row, image, label in zip(index.tolist(), x, y, strict=True)}
    assert len(seen) >= 190  # the last batch is dropped
    for row, (image, label) in seen.items():
        if row in labeled:
            assert label == plain.train_set.labels[row]
            continue
        given = [Brightness()(change(image.unsqueeze(0))).softmax(dim=1) for change in changes]
        assert label == torch.stack(given).mean(dim=0).argmax().item()
    assert {label for row, (_, label) in seen.items() if row not in labeled} == {0, 1}
    _, y, index = next(iter(module.val_dataloader()))
    assert torch.equal(y, plain.train_set.labels[index])  # those who are held out have their own
    assert torch.equal(module.split[1], MNISTDataModule(train_size=200, val_size=100).split[1])


def test_a_file_is_read_again_without_a_labeler(tmp_path):
    first = prepared(tmp_path)
    found = load_file(tmp_path / "found.safetensors")
    assert found["probabilities"].shape == (180, 10)
    torch.testing.assert_close(found["probabilities"].sum(dim=1), torch.ones(180))
    again = prepared(tmp_path, labeler=None)
    assert torch.equal(again.train_set.labels, first.train_set.labels)
    assert [path.name for path in tmp_path.iterdir()] == ["found.safetensors"]


def test_images_below_the_threshold_are_not_trained_on(tmp_path):
    module = prepared(tmp_path, threshold=0.6)
    found = load_file(tmp_path / "found.safetensors")
    sure = found["probabilities"].amax(dim=1) >= 0.6
    assert 0 < sure.sum() < 180
    labeled = MNISTDataModule(train_size=20, val_size=100).split[0].tolist()
    assert module.split[0].tolist() == sorted([*found["index"][sure].tolist(), *labeled])


def test_classes_are_chosen_by_the_labels_that_are_trained_on(tmp_path):
    module = prepared(tmp_path, classes=[1, 7])
    chosen = module.train_set.labels[module.split[0]]
    everything = data(tmp_path)
    labels = everything.train_set.labels[everything.split[0]]
    assert set(chosen.tolist()) == {1, 7}
    assert module.split[0].tolist() == everything.split[0][(labels == 1) | (labels == 7)].tolist()


def test_a_grey_image_is_labeled_in_the_form_that_is_trained_on(tmp_path):
    class Channels(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            assert images.shape[1] == 3
            return super().forward(images)

    prepared(tmp_path, labeler=Channels(), train_size=50)
    with pytest.raises(AssertionError):
        prepared(tmp_path / "other", labeler=Channels(), train_size=50, num_channels=None, file=tmp_path / "other")


def test_a_fit_writes_into_its_folder_and_learns_from_it(tmp_path):
    module = data(tmp_path, file=None)
    toys.trainer(tmp_path, max_epochs=1).fit(Classifier(toys.network()), module)
    assert (tmp_path / "pseudo_labels.safetensors").is_file()
    assert module.train_rows().num_rows == 200


def test_arguments_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist, and there is no labeler to write it: give one"):
        data(tmp_path, labeler=None).prepare_data()
    prepared(tmp_path)
    with pytest.raises(UsageError, match="was written by another labeler: name another file"):
        data(tmp_path, labeler=Brightness(5.0)).setup("fit")
    with pytest.raises(UsageError, match="has labels of other images than those that num_labeled, train_size"):
        data(tmp_path, seed=1).setup("fit")
    save_file({"x": torch.zeros(1)}, tmp_path / "found.safetensors")
    with pytest.raises(UsageError, match="has labels of other images"):
        data(tmp_path).setup("fit")
    with pytest.raises(UsageError, match="num_labeled=300 must be no more than train_size=200"):
        data(tmp_path, num_labeled=300).setup("fit")
    with pytest.raises(UsageError, match="num_labeled=9 must be at least 10"):
        data(tmp_path, num_labeled=9)
    with pytest.raises(UsageError, match=r"threshold=1.5 must lie in \[0, 1\)"):
        data(tmp_path, threshold=1.5)
    with pytest.raises(UsageError, match=r"scale=0.0, .* must be finite, and scale above 0"):
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


def test_a_labeler_is_left_unchanged():
    network = toys.network()
    network.train()
    before = toys.weights(network)
    ensembled_probabilities(network, torch.randint(256, (8, 1, 28, 28), dtype=torch.uint8), [Affine()], 3)
    assert network.training
    assert toys.same(toys.weights(network), before)
