from __future__ import annotations

import pytest
import torch
from torch import nn

from kd_lightning.networks import Captioner, LabelEncoder, RelationNetwork, SceneEncoder


def test_labels_are_encoded_as_one_hot_vectors():
    encoded = LabelEncoder()(torch.tensor([[1, 0, 9, 3]]))
    assert encoded.shape == (1, 4, 10)
    assert encoded.argmax(dim=2).tolist() == [[1, 0, 9, 3]]
    assert encoded.sum().item() == 4


@pytest.mark.parametrize("network", [Captioner, RelationNetwork])
def test_an_encoder_must_declare_the_size_of_its_output(network):
    with pytest.raises(ValueError, match=r"encoder=Flatten does not declare .* `objects` and `features`"):
        network(nn.Flatten())


@pytest.mark.parametrize("parts", [0, 3])
def test_parts_that_do_not_divide_8_are_refused(parts):
    with pytest.raises(ValueError, match=f"parts_per_side={parts} does not divide the 8 positions"):
        SceneEncoder(parts_per_side=parts)
