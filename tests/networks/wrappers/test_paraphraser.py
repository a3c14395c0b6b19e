import pytest
import torch

from kd_lightning import OfflineDistiller, Term, tap
from kd_lightning.losses import FactorTransferLoss, FeatureMSELoss
from kd_lightning.networks import ConvNet, Paraphrased, Paraphraser, freeze, load_teacher


def paraphrased() -> Paraphrased:
    torch.manual_seed(0)
    return Paraphrased(ConvNet(8), "conv.5", Paraphraser(8, rate=0.5))


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def by_hand(values: torch.Tensor, blocks: torch.nn.Sequential) -> torch.Tensor:
    for layer, norm in zip(blocks[::3], blocks[1::3], strict=True):
        transposed = isinstance(layer, torch.nn.ConvTranspose2d)
        function = torch.nn.functional.conv_transpose2d if transposed else torch.nn.functional.conv2d
        values = function(values, layer.weight, layer.bias, padding=1)
        variance, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0, keepdim=True)
        values = (values - mean) / (variance + norm.eps).sqrt()
        values = torch.where(values > 0, values, 0.1 * values)
    return values


def test_factor_and_reconstruction_are_those_of_the_paper():
    paraphraser, maps = Paraphraser(8, rate=0.5).double(), torch.randn(3, 8, 5, 5, dtype=torch.float64)
    seen = tap(paraphraser, maps, ["encoder", "logits"])
    factor = by_hand(maps, paraphraser.encoder)
    assert factor.shape == (3, 4, 5, 5)
    torch.testing.assert_close(seen["encoder"], factor)
    torch.testing.assert_close(seen["logits"], by_hand(factor, paraphraser.decoder))


def test_its_layers_are_as_wide_as_torchdistills():
    wrapper = pytest.importorskip("torchdistill.models.wrapper", reason="torchdistill is not installed: make test-all")
    ours, theirs = Paraphraser(8, rate=0.5), wrapper.Paraphraser4FactorTransfer(k=0.5, num_input_channels=8)
    there = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not there.unexpected_keys
    assert all(key.endswith(".bias") for key in there.missing_keys)  # of convolutions, which their BatchNorm takes away
    maps = torch.randn(3, 8, 5, 5)
    torch.testing.assert_close(ours(maps), theirs(maps))


def test_a_rate_that_leaves_no_channel_is_refused():
    with pytest.raises(ValueError, match=r"rate=0.0 of 8 channels leaves none for the factor"):
        Paraphraser(8, rate=0.0)


def test_the_output_is_the_networks_and_only_the_paraphraser_learns():
    network = paraphrased()
    torch.testing.assert_close(network(images()), network.network(images()))
    assert not network.train().network.training
    assert {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad} == {"paraphraser"}
    with pytest.raises(ValueError, match=r"no layer 'conv\.6' to paraphrase; the nearest names are conv\."):
        Paraphrased(ConvNet(8), "conv.6", Paraphraser(8))


def test_both_stages(tmp_path):
    """The first stage's checkpoint includes the network, so it can be loaded as the second stage's teacher."""
    student = paraphrased()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    teacher = ConvNet(8)
    teacher.load_state_dict(student.network.state_dict())
    reconstruct = Term(FeatureMSELoss(), student="paraphraser.decoder", teacher="conv.5")
    first = OfflineDistiller(student, teacher, {"reconstruct": reconstruct})
    batch = (images(), torch.arange(6))
    optimizer = first.configure_optimizers()
    losses = []
    for _ in range(30):
        loss = first.compute_losses(batch)["reconstruct"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("network."), name

    torch.save({"state_dict": first.state_dict()}, tmp_path / "last.ckpt")
    factor = Term(FactorTransferLoss(4, 4), student="conv.5", teacher="paraphraser.encoder")
    second = OfflineDistiller(ConvNet(4), load_teacher(paraphrased(), tmp_path / "last.ckpt"), {"factor": factor})
    seen = second.teacher_activations(second.split_batch(batch))
    expected = tap(freeze(student), images(), ["paraphraser.encoder"])
    assert torch.equal(seen["paraphraser.encoder"], expected["paraphraser.encoder"])
    second.compute_losses(batch)["factor"].backward()
    assert all(p.grad is None for p in second.teacher.parameters())
    assert all(p.grad.any() for p in second.student.conv.parameters())
    assert not any(key.startswith("teacher") for key in second.state_dict())
