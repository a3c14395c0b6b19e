from __future__ import annotations

import torch

from kd_lightning.networks import Captioner, LabelEncoder


def test_a_word_depends_on_its_position_and_on_those_before_it():
    torch.manual_seed(0)
    network = Captioner(LabelEncoder(), words=7, length=3, width=6)
    digits = torch.tensor([[0, 1, 2, 3], [9, 9, 9, 9]])
    logits = network(digits=digits)
    assert logits.shape == (2, 3, 7)
    assert not torch.equal(logits[0], logits[1])
    with torch.no_grad():
        network.position_embeddings[2] += 1.0
    again = network(digits=digits)
    assert torch.equal(again[:, :2], logits[:, :2])
    assert not torch.equal(again[:, 2], logits[:, 2])
