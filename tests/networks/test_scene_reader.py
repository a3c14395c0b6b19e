from __future__ import annotations

import pytest
import torch
from torch import nn

from kd_lightning.networks import Answerer, Captioner, DigitsEncoder, SceneEncoder


def test_an_answer_is_of_the_scene_and_of_the_question():
    torch.manual_seed(0)
    network = Answerer(SceneEncoder(4), words=5, width=6, answers=3)
    scene, question = torch.rand(2, 1, 56, 56), torch.tensor([[1, 2], [3, 4]])
    logits = network(scene=scene, question=question)
    assert logits.shape == (2, 3)
    assert not torch.equal(logits, network(scene=scene.flip(0), question=question))
    assert not torch.equal(logits, network(scene=scene, question=question.flip(0)))
    read = network.reader(network.words(question))[1][0]
    met = network.of_scene(network.encoder(scene)).tanh() * network.of_question(read).tanh()
    torch.testing.assert_close(logits, network.classifier(network.product(met)))


def test_a_caption_has_its_words_one_after_the_other():
    torch.manual_seed(0)
    network = Captioner(DigitsEncoder(), words=7, length=3, width=6)
    digits = torch.tensor([[0, 1, 2, 3], [9, 9, 9, 9]])
    logits = network(digits=digits)
    assert logits.shape == (2, 3, 7)
    with torch.no_grad():
        network.places[2] += 1.0
    again = network(digits=digits)
    assert torch.equal(again[:, :2], logits[:, :2])
    assert not torch.equal(again[:, 2], logits[:, 2])


def test_an_encoder_says_how_much_it_gives():
    with pytest.raises(ValueError, match="Flatten does not say how many features it gives: set its `features`"):
        Captioner(nn.Flatten())
    assert DigitsEncoder()(torch.tensor([[1, 0, 0, 0]]))[0, 1] == 1
