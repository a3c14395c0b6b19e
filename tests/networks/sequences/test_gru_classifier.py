from __future__ import annotations

import torch

from kd_lightning.networks import GRUClassifier


def test_it_is_the_gated_recurrent_unit_written_out():
    torch.manual_seed(0)
    network = GRUClassifier(in_features=3, width=4, num_classes=2).double()
    rows = torch.randn(5, 6, 3, dtype=torch.float64)
    gates = network.recurrent
    state = torch.zeros(5, 4, dtype=torch.float64)
    for step in rows.unbind(1):
        seen = step @ gates.weight_ih_l0.T + gates.bias_ih_l0
        kept = state @ gates.weight_hh_l0.T + gates.bias_hh_l0
        reset, update = ((seen[:, i : i + 4] + kept[:, i : i + 4]).sigmoid() for i in (0, 4))
        new = (seen[:, 8:] + reset * kept[:, 8:]).tanh()
        state = (1 - update) * new + update * state
    expected = state @ network.classifier.weight.T + network.classifier.bias
    torch.testing.assert_close(network(rows), expected)
