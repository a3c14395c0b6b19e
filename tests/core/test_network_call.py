from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning import Classifier, OfflineDistiller, Term, UsageError
from kd_lightning.core.activations import tap
from kd_lightning.core.network_call import call, run, tensors_in, without_graph
from kd_lightning.losses import EnsembleLoss, KDLoss
from kd_lightning.networks import Ensemble, ModalityEnsemble, freeze
from kd_lightning.schemes import KDCL, MutualLearning, NaiveEnsemble
from tests import toys
from tests.callbacks import drop_in

CLASSES = 4


class Net(nn.Module):
    """A linear network of any kind of input; the first operation may be in place, or ask for the input's gradient."""

    def __init__(self, change: str = "", width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.layers = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, CLASSES))
        self.change = change

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        if self.change == "in place":
            x = x.sub_(5.0)
        elif self.change == "asks":
            x = x.requires_grad_()
        return self.layers(x if tokens is None else x + tokens)


def images() -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def target() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 0])


TERMS: Any = {"kd": Term(KDLoss(2.0))}
IN_PLACE = "has overwritten its input in place"


def peers(*changes: str) -> MutualLearning:
    first, *rest = (Net(change, 8 + i) for i, change in enumerate(changes))
    return MutualLearning(first, rest, {"kd": Term(KDLoss(2.0))})


def kdcl(*changes: str) -> KDCL:
    first, *rest = (Net(change, 8 + i) for i, change in enumerate(changes))
    return KDCL(first, rest, {"kd": Term(KDLoss(2.0))}, combine=NaiveEnsemble())


def ensemble(*changes: str) -> OfflineDistiller:
    teachers = Ensemble([Net(change, 9 + i) for i, change in enumerate(changes)])
    return OfflineDistiller(Net(), teachers, {"kd": Term(EnsembleLoss(KDLoss(2.0)))})


@pytest.mark.parametrize(
    ("scheme", "writer", "reader"),
    [
        (lambda: OfflineDistiller(Net("in place"), Net(width=9), dict(TERMS)), "Net", "the teacher Net"),
        (lambda: OfflineDistiller(Net(), Net("in place", 9), dict(TERMS)), "the teacher Net", "Net"),
        (lambda: peers("in place", ""), "Net", "Net"),
        (lambda: peers("", "in place", ""), "Net", "Net"),
        (lambda: kdcl("in place", ""), "Net", "Net"),
        (lambda: ensemble("in place", ""), "Net", "Net"),
    ],
    ids=["student", "teacher", "first peer", "middle peer", "kdcl", "ensemble"],
)
def test_no_network_is_shown_what_another_has_overwritten(scheme, writer, reader):
    with pytest.raises(UsageError, match=f"^{writer} {IN_PLACE}, and {reader} gets the same tensor: clone"):
        scheme().compute_losses((images(), target()))


@pytest.mark.parametrize("scheme", [lambda: peers("", ""), lambda: ensemble("", "")], ids=["peers", "ensemble"])
def test_networks_that_leave_their_input_alone_may_share_it(scheme):
    x = images()
    assert scheme().compute_losses((x, target()))["kd"].isfinite()
    assert torch.equal(x, images())


def test_a_network_alone_may_overwrite_its_input_in_every_step():
    batch = (images(), target())
    learner = Classifier(Net("in place"))
    for _ in range(2):  # the same tensor again: the network's own
        learner.compute_losses(batch)["task"].backward()


def test_a_network_in_the_place_of_a_deleted_one_has_not_overwritten_its_input():
    x = torch.randn(2, 3)
    for _ in range(20):  # of which some get the memory, and so the id, of the first
        writer = nn.ReLU(inplace=True)
        place = id(writer)
        call(writer, x)
        del writer
        readers = [nn.ReLU() for _ in range(50)]
        assert any(id(reader) == place for reader in readers)
        for reader in readers:
            with pytest.raises(UsageError, match="ReLU has overwritten its input"):
                call(reader, x)
        x = torch.randn(2, 3)


def test_peers_are_evaluated_on_the_same_input_too():
    learner, x = peers("in place", ""), images()  # a loader's batch, made outside of inference mode
    with torch.inference_mode(), pytest.raises(UsageError, match=IN_PLACE):
        learner.evaluated_logits(x)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: {"x": x, "tokens": torch.zeros(5, 6)},
        lambda x: {"x": x.view(30).view(5, 6)},
    ],
    ids=["mapping", "view"],
)
def test_inputs_by_name_are_compared_as_well(wrap):
    named = wrap(images())
    run(Net("in place"), named)
    with pytest.raises(UsageError, match=IN_PLACE):
        run(Net(), named)


def test_the_whole_of_a_tensor_that_was_overwritten_through_a_view_counts_as_overwritten():
    x = images()
    run(Net("in place"), x.view(5, 6))
    with pytest.raises(UsageError, match=IN_PLACE):
        run(Net(), x)
    rows = images()
    run(Net("in place"), rows[:2])
    run(Net(), rows[2:])  # other rows


def test_an_output_that_the_next_network_overwrites_is_refused_at_once():
    hidden = tap(nn.Linear(6, 6), images(), ["logits"])["logits"]
    with pytest.raises(UsageError, match="ReLU has overwritten its input in place, which is the output of another"):
        run(nn.ReLU(inplace=True), hidden)


def test_members_of_one_modality_may_not_overwrite_it_for_each_other():
    x = images()
    with pytest.raises(UsageError, match=IN_PLACE):
        ModalityEnsemble({"a": Net("in place"), "b": Net()})(a=x, b=x)


def test_a_graph_of_one_call_has_neither_check():
    def both(x: Tensor) -> Tensor:
        return run(first, x) + call(second, x)

    first, second = Net(), Net(width=9)
    compiled = torch.compile(both, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images()), both(images()))


# ---- who asks for a gradient of the input


class Backward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network, self.calls = Net(width=9), 0
        self.network.layers[0].register_full_backward_hook(self.count)

    def count(self, *_: Any) -> None:
        self.calls += 1

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def test_the_teacher_has_no_backward_pass_because_the_student_asked_for_one():
    teacher = Backward()
    learner = OfflineDistiller(Net("asks"), teacher, {"kd": Term(KDLoss(2.0))})
    learner.compute_losses((images(), target()))["kd"].backward()
    assert teacher.calls == 0
    assert learner.student.layers[0].weight.grad.abs().sum() > 0


def test_the_drop_ins_teacher_has_none_either(tmp_path):
    class Asks(drop_in.Theirs):
        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.backbone(batch[0].requires_grad_()), batch[1])

    seen: list[bool] = []
    teacher = drop_in.teacher()
    teacher.register_forward_hook(lambda _m, _a, output: seen.append(output.requires_grad))
    x, y = torch.randn(8, drop_in.FEATURES), torch.arange(8) % drop_in.CLASSES
    trainer = toys.trainer(tmp_path, drop_in.distillation(hint=False, teacher=teacher), max_epochs=1)
    trainer.fit(Asks(), toys.Loader([(x, y)] * 2))
    assert seen == [False, False]


def test_images_of_a_generator_and_learned_images_keep_their_graph():
    generated, learned = 2 * images().requires_grad_(), nn.Parameter(images())
    kept = without_graph(([generated, learned], {"text": "a"}))
    assert kept[0][0] is generated
    assert kept[0][1] is learned


# ---- what torch refuses


@pytest.mark.parametrize(
    ("network", "x", "message"),
    [
        (
            Net().bfloat16(),
            images(),
            r"^Net cannot take its input \(5, 6\) of float32: .*weights are bfloat16.*Autocast",
        ),
        (Net(), images().double(), r"input \(5, 6\) of float64: .*weights are float32.*network\.to\(torch\.float64\)"),
        (Net(), images().to(torch.uint8), r"of uint8: .*convert them, e\.g\. x\.float\(\) / 255"),
        (Net(), images()[:, :4], r"input \(5, 4\) of float32: .*cannot be multiplied"),
        (Net(), {"x": images(), "wrong": 1}, r"cannot take its input .*unexpected keyword argument 'wrong'"),
        (nn.BatchNorm1d(6), images()[:1], r"^BatchNorm1d cannot take .*Expected more than 1 value per channel"),
        (nn.Embedding(3, 2), torch.tensor([[7]]), r"Embedding cannot take its input \(1, 1\) of int64: index out of"),
        (freeze(nn.Conv2d(3, 4, 3)), torch.zeros(2, 1, 8, 8), "^the teacher Conv2d cannot take .* 3 channels"),
        (freeze(Net()), None, "^the teacher Net cannot take its input no tensor"),
    ],
    ids=["half", "double", "uint8", "width", "name", "one sample", "index", "channels", "nothing"],
)
def test_what_torch_refuses_names_the_network_and_the_input(network, x, message):
    with pytest.raises(UsageError, match=message):
        run(network, x)


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, TypeError, KeyError])
def test_an_error_of_a_networks_own_code_stays_as_it_is(kind):
    class Faulty(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise kind("injected")

    with pytest.raises(kind, match="injected") as caught:
        run(Faulty(), images())
    assert type(caught.value) is kind


def test_tensors_are_found_in_objects():
    graph = SimpleNamespace(x=images(), edges=[images()], name="g", size=3)
    assert len(list(tensors_in({"graph": graph, "y": (images(),)}))) == 3


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer"),
        RuntimeError("Application timeout caused pair closure"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_what_is_no_fault_of_an_input_is_not_put_down_to_it(error):
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    with pytest.raises(RuntimeError) as caught:
        call(Fails(), images())
    assert caught.value is error
