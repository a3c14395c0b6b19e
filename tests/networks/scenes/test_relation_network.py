from __future__ import annotations

import torch

from kd_lightning.networks import RelationNetwork, SceneEncoder


def test_the_logits_depend_on_scene_and_question_and_equal_the_sum_over_pairs():
    torch.manual_seed(0)
    network = RelationNetwork(SceneEncoder(4), words=5, width=6, answers=3)
    scene, question = torch.rand(2, 1, 56, 56), torch.tensor([[1, 2], [3, 4]])
    logits = network(scene=scene, question=question)
    assert logits.shape == (2, 3)
    assert not torch.equal(logits, network(scene=scene.flip(0), question=question))
    assert not torch.equal(logits, network(scene=scene, question=question.flip(0)))
    # every pair of the four quarters, written out
    state = network.question_encoder(network.word_embeddings(question))[1][0]
    maps = network.encoder.convolutions(scene)
    quarters = [maps[:, :, y : y + 4, x : x + 4].flatten(1) for y in (0, 4) for x in (0, 4)]
    objects = [network.project(quarters[i]) + network.position_embeddings[i] for i in range(4)]
    related = sum(network.pair(torch.cat((first, second, state), dim=1)) for first in objects for second in objects)
    torch.testing.assert_close(logits, network.classifier(network.relation(related)))
