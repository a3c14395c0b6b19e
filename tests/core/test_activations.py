from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning import UsageError
from kd_lightning.core.activations import record_activations, record_calls, tap
from kd_lightning.core.compiled_calls import HookGuardedCall, hook_guards
from kd_lightning.networks import freeze


class Net(nn.Module):
    """Two blocks and a head; `outputs` says in what the logits come."""

    def __init__(self, inplace: bool = False, outputs: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace), nn.Linear(3, 3))
        self.head = nn.Linear(3, 2)
        self.unused = nn.Linear(3, 2)
        self.outputs = outputs

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        logits = self.head(self.body(scale * x))
        return self.outputs(logits) if self.outputs else logits

    def by_hand(self, x: Tensor) -> dict[str, Tensor]:
        """What each layer gives, computed from the weights alone."""
        first, last = self.body[0], self.body[2]
        hidden = x @ first.weight.T + first.bias
        rectified = hidden.clamp(min=0)
        body = rectified @ last.weight.T + last.bias
        head = body @ self.head.weight.T + self.head.bias
        return {"body.0": hidden, "body.1": rectified, "body": body, "head": head, "input": x, "logits": head}


def hooks(network: nn.Module) -> list[Any]:
    return [
        hook
        for module in network.modules()
        for table in (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_with_kwargs)
        for hook in table.values()
    ]


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))


def assert_taps(network: nn.Module, layers: list[str], seed: int = 0, expected: Net | None = None) -> None:
    """The taps are the layers' outputs, in the order asked for, and their gradients those of the layers'."""
    x = inputs(seed)
    seen = tap(network, x, [*layers, "logits"])
    truth = {layer: (expected or network).by_hand(x)[layer] for layer in [*layers, "logits"]}
    assert list(seen) == list(truth)
    for layer, activation in truth.items():
        torch.testing.assert_close(seen[layer], activation)
    if seen["logits"].requires_grad:
        parameters = [value for name, value in network.named_parameters() if "unused" not in name]
        gradients = torch.autograd.grad(sum((value**2).sum() for value in seen.values()), parameters)
        their_own = [value for name, value in (expected or network).named_parameters() if "unused" not in name]
        torch.testing.assert_close(
            gradients, torch.autograd.grad(sum((value**2).sum() for value in truth.values()), their_own)
        )


# ---- what is seen


@pytest.mark.parametrize("layers", [[], ["body.1"], ["head", "body"], ["input", "body.0"], ["body.2", "body", "head"]])
def test_taps_are_the_layers_outputs_and_gradients_flow_through_them(layers: list[str]):
    network = Net()
    if "body.2" in layers:  # the same tensor by two names
        seen = tap(network, inputs(), layers)
        assert seen["body.2"] is seen["body"]
    else:
        assert_taps(network, layers)
    assert hooks(network) == []


def test_a_layer_named_twice_is_recorded_once():
    assert list(tap(Net(), inputs(), ["head", "logits", "head"])) == ["head", "logits"]


@pytest.mark.parametrize(
    "outputs",
    [
        lambda logits: SimpleNamespace(logits=logits, loss=None),
        lambda logits: {"loss": None, "logits": logits},
        lambda logits: OrderedDict(hidden=logits * 2, logits=logits),
    ],
)
def test_logits_are_found_in_an_object_or_a_mapping(outputs: Any):
    assert_taps(Net(outputs=outputs), ["body"])


def test_a_mapping_becomes_named_inputs_and_input_is_the_first():
    network = Net()
    seen = tap(network, {"x": inputs(), "scale": 2.0}, ["input", "body"])
    torch.testing.assert_close(seen["body"], network.by_hand(2 * inputs())["body"])
    assert torch.equal(seen["input"], inputs())


def test_only_named_layers_are_recorded():
    assert list(tap(Net(), inputs())) == ["logits"]
    assert list(tap(Net(), inputs(), ["body"])) == ["body"]
    losses = Net(outputs=lambda logits: {"loss": logits.sum()})  # as detectors return them in training
    assert list(tap(losses, inputs(), ["body", "input"])) == ["body", "input"]
    assert tap(losses, inputs(), []) == {}


def test_a_call_that_someone_else_makes_is_recorded():
    network = Net()
    with record_activations(network, ["body", "logits"]) as seen:
        output = network(inputs(), scale=2.0)
    assert seen["logits"] is output
    torch.testing.assert_close(seen["body"], network.by_hand(2 * inputs())["body"])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_taps_need_no_graph(mode: Any):
    network = Net()
    with mode():
        seen = tap(network, inputs(), ["body.1", "input"])
    torch.testing.assert_close(seen["body.1"], network.by_hand(inputs())["body.1"])
    assert not any(activation.requires_grad for activation in seen.values())
    assert_taps(network, ["body.1"])  # and training goes on


def test_a_frozen_network_gives_taps_without_a_graph_unless_its_input_needs_one():
    network = freeze(Net())
    assert all(activation.grad_fn is None for activation in tap(network, inputs(), ["body"]).values())
    x = inputs().requires_grad_()
    (gradient,) = torch.autograd.grad(tap(network, x, ["body"])["body"].sum(), x)
    assert gradient.any()


def test_calls_are_recorded_with_their_arguments_and_whether_these_were_overwritten():
    network, x = Net(), inputs()
    with record_calls(network) as calls:
        network(x, scale=2.0)
        network(x)
    assert [call.kwargs for call in calls] == [{"scale": 2.0}, {}]
    assert all(call.args[0] is x for call in calls)
    assert not calls[0].was_overwritten()
    x.add_(1.0)
    assert calls[0].was_overwritten()
    assert hooks(network) == []


# ---- what is refused


@pytest.mark.parametrize(
    ("layer", "nearest"),
    [("haed", "head"), ("body.3", "body.0, body.1, body.2"), ("conv", "body"), ("unsued", "unused")],
)
def test_a_layer_that_does_not_exist_is_refused_with_the_nearest_names(layer: str, nearest: str):
    network = Net()
    with pytest.raises(ValueError, match=f"^Net has no layer '{layer}'; the nearest names are ") as refusal:
        tap(network, inputs(), ["body", layer])
    named = str(refusal.value).split(" are ")[1].split(", ")
    assert set(nearest.split(", ")) <= set(named)
    assert hooks(network) == []  # not even the first one's


class Twice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body[1](self.body[1](self.body[0](x))))


def test_a_layer_that_runs_twice_is_refused():
    with pytest.raises(UsageError, match=r"layer 'body.1' ran 2 times"):
        tap(Twice(), inputs(), ["body.1"])
    tap(Twice(), inputs(), ["body.0"])


def test_a_network_that_runs_twice_or_never_while_watched_is_refused():
    network = Net()
    with pytest.raises(UsageError, match="the network ran 2 times"), record_activations(network):
        network(network(inputs()).repeat(1, 2))
    with pytest.raises(UsageError, match="the network did not run"), record_activations(network):
        pass


def test_a_layer_that_never_runs_is_refused():
    with pytest.raises(UsageError, match=r"layer 'unused' did not run .* takes part in the forward pass"):
        tap(Net(), inputs(), ["unused"])


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_a_layer_that_gives_no_tensor_is_refused():
    network = nn.Sequential(Pair(), nn.Identity())
    with pytest.raises(UsageError, match="layer '0' gave tuple, not a tensor: name a layer that gives one"):
        tap(network, inputs(), ["0"])
    with pytest.raises(UsageError, match=r"the network gave tuple, not a tensor: return one, or an object with"):
        tap(network, inputs())
    with pytest.raises(UsageError, match=r"the network gave dict, .*, or address a part of it: output\.prediction$"):
        tap(Net(outputs=lambda logits: {"prediction": logits}), inputs())


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_a_tap_that_a_later_layer_overwrites_in_place_is_refused(mode: Any):
    with mode():
        with pytest.raises(UsageError, match=r"layer 'body.0' was overwritten in place .*inplace=False"):
            tap(Net(inplace=True), inputs(), ["body.0"])
        tap(Net(inplace=True), inputs(), ["body.1", "body"])


# ---- what is left behind: nothing


def test_hooks_are_gone_when_the_network_or_the_caller_fails():
    network = Net()
    with pytest.raises(UsageError, match="shapes cannot be multiplied"):
        tap(network, torch.zeros(5, 7), ["body", "input"])
    assert hooks(network) == []
    with pytest.raises(KeyboardInterrupt), record_activations(network, ["body"]):
        raise KeyboardInterrupt
    assert hooks(network) == []


def test_the_hooks_that_were_there_stay():
    network = Net()
    calls: list[str] = []
    network.body.register_forward_hook(lambda *_: calls.append("theirs"))
    tap(network, inputs(), ["body"])
    assert len(hooks(network)) == 1
    assert calls == ["theirs"]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_tapped_network_can_be_copied_and_pickled_and_its_copy_tapped(duplicate: Any):
    network = Net()
    tap(network, inputs(), ["body", "input"])
    twin = duplicate(network)
    assert_taps(twin, ["body"])
    assert hooks(twin) == []


# ---- compiled networks

STEPS = [[], ["body.1"], ["body.1"], [], ["input", "body.0", "body"], ["body.1"], ["head"], ["head"], [], ["body.1"]]


class Graphs:
    """A compiler that runs the graphs that it is given as they are, and keeps count."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        self.count += 1
        return graph.forward


# torch hides this warning of its own tracing when warnings are shown, but not when they are errors
compiles = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")


@pytest.fixture
def graphs():
    torch.compiler.reset()
    yield Graphs()
    torch.compiler.reset()


@compiles
@pytest.mark.parametrize("first", ["plain", "tapped"])
@pytest.mark.parametrize("compiled", ["network", "part", "wrapper"])
def test_a_compiled_network_is_tapped_after_calls_with_other_layers(graphs: Graphs, compiled: str, first: str):
    truth = Net()
    network: nn.Module = Net()
    if compiled == "wrapper":
        network = torch.compile(network, backend=graphs)
    else:
        (network if compiled == "network" else network.body).compile(backend=graphs)
    if first == "plain":
        network(inputs())
    for seed, layers in enumerate(STEPS):
        assert_taps(network, layers, seed, truth)
    known = graphs.count
    for seed, layers in enumerate(STEPS):  # each set of layers has its graphs now, and no call makes a new one
        assert_taps(network, layers, seed, truth)
    torch.testing.assert_close(network(inputs()), truth.by_hand(inputs())["logits"])
    assert 0 < graphs.count == known
    assert hooks(network) == []


@compiles
def test_a_compiled_teacher_is_seen_into_by_a_real_compiler(graphs: Graphs):
    truth, network = freeze(Net()), freeze(Net())
    network.compile(backend="aot_eager")
    for seed, layers in enumerate([[], ["body.1"], ["body", "input"], ["body.1"]]):
        assert_taps(network, layers, seed, truth)
        with torch.no_grad():
            assert_taps(network, layers, seed, truth)


@compiles
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_in_a_compiled_network_no_tap_is_overwritten(graphs: Graphs, backend: str):
    network = Net(inplace=True)
    network.compile(backend=backend)
    assert_taps(network, ["body.0", "body.1"], expected=Net())


@compiles
def test_a_function_around_a_network_that_was_compiled_before_is_refused_and_the_remedy_works(graphs: Graphs):
    network = Net()
    step = torch.compile(lambda x: network(x), backend=graphs)
    step(inputs())
    refused = pytest.raises(UsageError, match=r"layer 'body.1' did not run .* torch.compiler.reset\(\)")
    with refused, record_activations(network, ["body.1"]):
        step(inputs())
    torch.compiler.reset()
    with hook_guards(), record_activations(network, ["body.1"]) as seen:
        step(inputs())
    torch.testing.assert_close(seen["body.1"], network.by_hand(inputs())["body.1"])


@compiles
def test_only_the_calls_of_a_recorded_network_are_guarded(graphs: Graphs):
    recorded, other = Net(), Net()
    for network in (recorded, other):
        network.compile(backend=graphs)
        network(inputs())
    tap(recorded, inputs(), ["body.1"])
    assert isinstance(recorded._compiled_call_impl, HookGuardedCall)
    assert not isinstance(other._compiled_call_impl, HookGuardedCall)
    assert torch._dynamo.config.skip_nnmodule_hook_guards


@pytest.mark.slow  # a process that imports everything anew
def test_importing_and_recording_leave_torchs_own_settings_alone():
    program = """
        import torch._dynamo
        from torch import nn
        before = dict(torch._dynamo.config.get_config_copy())
        import kd_lightning.callbacks, kd_lightning.cli.engine
        from kd_lightning import tap
        tap(nn.Linear(2, 2), torch.zeros(1, 2), ["input"])
        print(before == dict(torch._dynamo.config.get_config_copy()))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout == "True\n"


def test_a_parameter_gives_itself_by_its_dotted_name():
    network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    seen = tap(network, torch.zeros(5, 4), ["1.weight", "0"])
    assert seen["1.weight"] is network[1].weight
    assert seen["0"].shape == (5, 3)
    seen["1.weight"].square().sum().backward()
    assert torch.equal(network[1].weight.grad, 2 * network[1].weight)
