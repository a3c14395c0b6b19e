"""What a source gives is checked before it is trained on."""

from __future__ import annotations

import pytest
import torch

from kd_lightning import UsageError
from kd_lightning.data import LabeledImages, ResidentDataModule
from kd_lightning.data.sources.base import check_facts
from tests.data.shapes import Shapes


class Spoiled(Shapes):
    """Gives what a function makes of its images."""

    def __init__(self, spoil) -> None:
        super().__init__()
        self.spoil = spoil

    def _images(self, count: int) -> LabeledImages:
        return LabeledImages(*self.spoil(*super()._images(count)))


@pytest.mark.parametrize("stage", ["fit", "test"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (x / 255, y), r"images torch.float32 \(\d+, 2, 5, 6\) and labels .*: return uint8 images"),
        (lambda x, y: (x[:, 0], y), r"images torch.uint8 \(\d+, 5, 6\) and labels torch.int64 \(\d+,\): return uint8"),
        (lambda x, y: (x, y.int()), "labels torch.int32"),
        (lambda x, y: (x, y.unsqueeze(1)), r"labels torch.int64 \(\d+, 1\)"),
        (lambda x, y: (x[:-1], y), r"returns \d+ images and \d+ labels: return one label for each image"),
        (lambda x, y: (x[:0], y[:0]), "returns 0 images and 0 labels"),
        (lambda x, y: (x, y + 1), "returns labels from 1 to 4, but num_classes=4: correct one of them"),
        (lambda x, y: (x, y - 1), "returns labels from -1 to 2, but num_classes=4: correct one of them"),
    ],
)
def test_sources_of_wrong_shape_or_type_are_refused_in_one_line(spoil, message, stage):
    with pytest.raises(UsageError, match=rf"^Spoiled.{'train' if stage == 'fit' else 'test'}\(\) returns .*") as caught:
        ResidentDataModule(Spoiled(spoil), val_size=20).setup(stage)
    assert caught.match(message)
    assert "\n" not in str(caught.value)


def test_facts_are_compared_one_by_one():
    data = LabeledImages(torch.zeros(6, 3, 4, 5, dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert check_facts(data, "here", 6, (3, 4, 5), 3) is data
    for facts in ((7, (3, 4, 5), 3), (6, (1, 4, 5), 3), (6, (3, 5, 4), 3), (6, (3, 4, 5), 4)):
        with pytest.raises(UsageError, match=r"^here: 6 images of 3 x 4 x 5 in 3 classes; expected \d images of "):
            check_facts(data, "here", *facts)
