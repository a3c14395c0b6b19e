from __future__ import annotations

import pytest
import torch
from torch import nn

from kd_lightning.networks import Captioner, LabelEncoder, RelationNetwork, SceneEncoder


def test_an_answer_is_of_the_scene_and_of_the_question():
    torch.manual_seed(0)
    network = RelationNetwork(SceneEncoder(4), words=5, width=6, answers=3)
    scene, question = torch.rand(2, 1, 56, 56), torch.tensor([[1, 2], [3, 4]])
    logits = network(scene=scene, question=question)
    assert logits.shape == (2, 3)
    assert not torch.equal(logits, network(scene=scene.flip(0), question=question))
    assert not torch.equal(logits, network(scene=scene, question=question.flip(0)))
    # every pair of the four quarters, written out
    read = network.reader(network.words(question))[1][0]
    places = network.encoder.convolutions(scene)
    quarters = [places[:, :, y : y + 4, x : x + 4].flatten(1) for y in (0, 4) for x in (0, 4)]
    objects = [network.object(quarters[i]) + network.places[i] for i in range(4)]
    related = sum(network.relate(torch.cat((one, other, read), dim=1)) for one in objects for other in objects)
    torch.testing.assert_close(logits, network.classifier(network.relation(related)))


def test_a_caption_has_its_words_one_after_the_other():
    torch.manual_seed(0)
    network = Captioner(LabelEncoder(), words=7, length=3, width=6)
    digits = torch.tensor([[0, 1, 2, 3], [9, 9, 9, 9]])
    logits = network(digits=digits)
    assert logits.shape == (2, 3, 7)
    with torch.no_grad():
        network.places[2] += 1.0
    again = network(digits=digits)
    assert torch.equal(again[:, :2], logits[:, :2])
    assert not torch.equal(again[:, 2], logits[:, 2])


def test_an_encoder_says_what_it_gives():
    with pytest.raises(ValueError, match="Flatten must say what it gives: set its `objects` and its `features`"):
        Captioner(nn.Flatten())
    with pytest.raises(ValueError, match="across=3 does not divide the 8 places"):
        SceneEncoder(across=3)
    assert LabelEncoder()(torch.tensor([[1, 0, 0, 0]]))[0, 0, 1] == 1
