from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from kd_lightning import Classifier, tap
from kd_lightning.networks import ConvNet, EarlyExit, ExitHead, MultiExitNetwork, StudentConvNet, freeze, load_student
from kd_lightning.weights.export import export_student

LAYERS = ["conv.1", "conv.3"]
IMAGES = torch.rand(4, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def exits(answer: int | None = None) -> MultiExitNetwork:
    torch.manual_seed(0)
    heads = [ExitHead(8, 8, stride=2, pool=2), ExitHead(8, 8, pool=2)]
    return MultiExitNetwork(ConvNet(8, batch_norm=True), LAYERS, heads, answer)


def by_hand(network: MultiExitNetwork, images: Tensor) -> dict[str, Tensor]:
    """The logits of every classifier, computed by calling the layers one by one."""
    seen, x = {}, images
    for i, layer in enumerate(network.network.conv):
        x = layer(x)
        if i in (1, 3):
            head = network.exits[len(seen)]
            features = nn.Sequential(*head.features)(x)
            seen[f"exits.{len(seen)}"] = torch.nn.functional.linear(
                features.reshape(len(images), -1), head.classifier.weight, head.classifier.bias
            )
    return seen | {"network": network.network.classifier(network.network.pool(x).flatten(1))}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("answer", [None, 0, 1])
def test_every_classifier_runs_and_one_is_the_output(answer, training):
    network = exits(answer).train(training)
    expected = by_hand(copy.deepcopy(network), IMAGES)
    seen = tap(network, IMAGES, [*network.classifiers, "logits"])
    assert network.classifiers == ["exits.0", "exits.1", "network"]
    for name, logits in expected.items():
        torch.testing.assert_close(seen[name], logits, rtol=0, atol=0)
    assert torch.equal(seen["logits"], expected[network.output_layer])
    assert len({tuple(logits[0].tolist()) for logits in expected.values()}) == 3


def test_an_exits_features_have_the_shape_of_the_deepest():
    seen = tap(exits(), IMAGES, ["exits.0.features", "exits.1.features", "network.pool"])
    assert {tuple(value.shape) for name, value in seen.items() if name != "logits"} == {(4, 8, 2, 2)}


def test_the_bottleneck_is_a_quarter_as_wide_and_its_stride_is_that_of_the_middle():
    head = ExitHead(in_channels=12, channels=32, num_classes=7, stride=2)
    shapes = [tuple(layer.weight.shape) for layer in head.features if isinstance(layer, nn.Conv2d)]
    assert shapes == [(8, 12, 1, 1), (8, 8, 3, 3), (32, 8, 1, 1)]
    assert nn.Sequential(*[*head.features][:6])(torch.zeros(2, 12, 9, 9)).shape == (2, 8, 5, 5)
    assert head(torch.zeros(2, 12, 9, 9)).shape == (2, 7)
    assert ExitHead(in_channels=2, channels=2)(torch.zeros(2, 2, 5, 5)).shape == (2, 10)


# ---- an exit alone


@pytest.mark.parametrize("index", [0, 1])
def test_an_early_exit_has_the_same_logits_and_no_deeper_layers(index):
    network = exits().eval()
    alone = network.early_exit(index)
    assert not alone.training
    assert torch.equal(alone(IMAGES), by_hand(network, IMAGES)[f"exits.{index}"])
    used = nn.ModuleList([*network.network.conv[: (2, 4)[index]], network.exits[index]])
    assert set(alone.parameters()) == set(used.parameters())  # the very same, and no others


def test_an_early_exit_can_be_trained_and_exported(tmp_path):
    def build() -> EarlyExit:
        return EarlyExit(ConvNet(8, batch_norm=True), "conv.1", ExitHead(8, 8, stride=2, pool=2))

    learner = Classifier(build())
    assert learner.student.training
    learner.compute_losses((IMAGES, torch.tensor([1, 2, 3, 4])))["task"].backward()
    assert all(parameter.grad is not None for parameter in learner.parameters())  # DistributedDataParallel insists
    trained = exits().eval()
    path = export_student(trained.early_exit(0), tmp_path / "exit.safetensors")
    assert torch.equal(load_student(path, build())(IMAGES), tap(trained, IMAGES, ["exits.0"])["exits.0"])


def test_training_an_early_exit_changes_the_full_network():
    network = exits()
    before = copy.deepcopy(network.state_dict())
    network.early_exit(0)(IMAGES)
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith(("network.conv.0.", "exits.0.features.")) for name in moved)
    assert all("running" in name or "num_batches" in name for name in moved)


class Residual(nn.Module):
    """A network with an unused branch, and a sum that is not a module."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.aside, self.body, self.classifier = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        aside = self.aside(x)
        x = torch.relu(x + self.body(x))
        if self.dropout:
            x = torch.nn.functional.dropout(x, self.dropout, self.training)
        return self.classifier(x + aside)


def test_a_layer_is_kept_whole_and_unneeded_layers_are_removed():
    network = nn.Sequential(nn.Linear(3, 3), Residual(), nn.Linear(2, 2))
    inputs = torch.randn(5, 3)
    whole = EarlyExit(network, "1", nn.Identity())
    torch.testing.assert_close(whole(inputs), network[1](network[0](inputs)))
    assert set(whole.parameters()) == set(network[:2].parameters())
    inner = EarlyExit(network, "1.classifier", nn.Identity())
    torch.testing.assert_close(inner(inputs), whole(inputs))
    body = EarlyExit(network, "1.body", nn.Identity())
    torch.testing.assert_close(body(inputs), network[1].body(network[0](inputs)))
    assert set(body.parameters()) == {*network[0].parameters(), *network[1].body.parameters()}


def test_a_computation_that_differs_in_eval_is_refused():
    assert EarlyExit(Residual(dropout=0.5), "body", nn.Identity())(torch.zeros(2, 3)).shape == (2, 3)
    with pytest.raises(ValueError, match="Residual computes 'classifier' differently in training and evaluation"):
        EarlyExit(Residual(dropout=0.5), "classifier", nn.Identity())


def test_a_layer_that_does_not_run_is_refused():
    network = Residual()
    network.idle = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="layer 'idle' does not run in Residual"):
        EarlyExit(network, "idle", nn.Identity())


def test_an_early_exit_does_not_change_the_modes_of_layers():
    network = exits()
    network.network.conv[0].eval()  # as whoever freezes BatchNorm does
    before = {name: module.training for name, module in network.named_modules()}
    network.early_exit(0)
    assert {name: module.training for name, module in network.named_modules()} == before


# ---- what happens to networks


def copies(network: nn.Module) -> dict[str, nn.Module]:
    return {"copied": copy.deepcopy(network), "pickled": pickle.loads(pickle.dumps(network))}


@pytest.mark.parametrize("kind", ["copied", "pickled"])
@pytest.mark.parametrize("build", [exits, lambda: exits().early_exit(1)], ids=["MultiExitNetwork", "EarlyExit"])
def test_a_copy_shares_nothing_with_the_original(kind, build):
    network = build().eval()
    truth = network(IMAGES)
    copied = copies(network)[kind]
    assert torch.equal(copied(IMAGES), truth)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert not copied(IMAGES).any()
    assert torch.equal(network(IMAGES), truth)


def test_the_keys_are_those_of_the_parts():
    keys = {key.split(".")[0] for key in exits().state_dict()}
    assert keys == {"network", "exits"}
    assert {key.split(".")[0] for key in exits().early_exit(0).state_dict()} == {"trunk", "head"}
    exits(0).load_state_dict(exits().state_dict())


# torch hides this warning of its own tracing when warnings are shown, but not when they are errors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
@pytest.mark.parametrize(("compiled", "training"), [("network", True), ("part", False)])
def test_a_compiled_network_has_the_same_output(compiled, training):
    torch.compiler.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    network, twin = exits().train(training), exits().train(training)
    (network if compiled == "network" else network.network).compile(backend=backend)
    steps = [[], network.classifiers, ["exits.1.features", "network.pool"], network.classifiers, []]
    for layers in steps:
        seen, truth = tap(network, IMAGES, layers), tap(twin, IMAGES, layers)
        for name, value in truth.items():
            torch.testing.assert_close(seen[name], value)
    known = len(graphs)
    for layers in steps:
        tap(network, IMAGES, layers)
    assert 0 < known == len(graphs)
    torch.compiler.reset()


def test_frozen_it_stays_in_eval():
    network = freeze(exits())
    before = copy.deepcopy(network.state_dict())
    nn.Sequential(network).train()(IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_inputs_by_name_and_outputs_that_have_logits():
    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.classifier = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, *, x: Tensor) -> Output:
            return Output(self.classifier(self.hidden(x)))

    network = MultiExitNetwork(Named(), ["hidden"], [nn.Linear(4, 2)])
    assert torch.equal(network(x=torch.ones(5, 3)), network.network(x=torch.ones(5, 3)).logits)


# ---- what is refused


def test_an_unknown_layer_is_refused_with_the_nearest_names():
    remedy = "StudentConvNet has no layer 'conv1' for an exit; the nearest names are conv.1, "
    with pytest.raises(ValueError, match=remedy):
        MultiExitNetwork(StudentConvNet(), ["conv1"], [nn.Identity()])
    with pytest.raises(ValueError, match=remedy):
        EarlyExit(StudentConvNet(), "conv1", nn.Identity())


@pytest.mark.parametrize(("layers", "heads"), [([], 0), (["conv.1"], 2), (["conv.1", "conv.3"], 1)])
def test_layers_without_heads_are_refused(layers, heads):
    with pytest.raises(
        ValueError, match=f"{len(layers)} layers and {heads} heads: give at least one layer, and a head for each"
    ):
        MultiExitNetwork(StudentConvNet(), layers, [nn.Identity() for _ in range(heads)])


@pytest.mark.parametrize("answer", [-1, 2])
def test_an_unknown_exit_cannot_be_the_output(answer):
    with pytest.raises(ValueError, match=f"output_exit={answer} must lie between 0 and 1"):
        exits(answer)
