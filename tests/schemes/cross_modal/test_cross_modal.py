from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning import Term
from kd_lightning.data import (
    MNIST,
    Digits,
    DigitScenes,
    EdgeMap,
    KNNGraphDataModule,
    PairedViews,
    ResidentDataModule,
    RowSequence,
)
from kd_lightning.losses import FeatureMSELoss, KDLoss, LSPLoss, ModalityGraphLoss, TaskLoss
from kd_lightning.networks import (
    MLP,
    Captioner,
    GraphNetwork,
    GRUClassifier,
    LabelEncoder,
    ModalityEnsemble,
    RelationNetwork,
    SceneEncoder,
)
from kd_lightning.schemes import Classifier, CrossModalDistiller
from tests import toys
from tests.schemes.online.test_mutual import kl, without_dropout

MODALITIES = {"teacher": "image", "student": "edges"}


def data(shuffled: str | None = None, **changes: Any) -> ResidentDataModule:
    given = {"num_channels": 3, "batch_size": 16, "train_size": 64, "val_size": 0, "augmentation": toys.Noise()}
    given |= {"views": PairedViews({"edges": EdgeMap(), "rows": RowSequence()}, shuffled)}
    return ResidentDataModule(MNIST(), **given | changes)


def learner(**changes: Any) -> CrossModalDistiller:
    terms = {"kd": Term(KDLoss(temperature=3.0), weight=0.5), "logits": Term(FeatureMSELoss(), weight=0.1)}
    given = {"terms": terms, "modalities": MODALITIES} | changes
    return CrossModalDistiller(toys.network(8, seed=1), toys.network(16, seed=2), **given)


def of_rows() -> CrossModalDistiller:
    torch.manual_seed(1)
    terms = {"kd": Term(KDLoss(temperature=3.0)), "task": Term(TaskLoss(), teacher=None)}
    modalities = {"teacher": "image", "student": "rows"}
    return CrossModalDistiller(GRUClassifier(width=6), toys.network(16, seed=2), terms, modalities)


def graph_data(augmentation: Any = None, train_size: int = 64, **changes: Any) -> KNNGraphDataModule:
    given = {"nodes": "all", "num_labeled": train_size, "batch_size": 16, "val_size": 32, "k": 3}
    return KNNGraphDataModule(Digits(), **given | changes)


def of_graphs() -> CrossModalDistiller:
    torch.manual_seed(1)
    networks = [GraphNetwork(64, [width], convolution="gcn") for width in (4, 6)]
    layers = {"student": "convolutions.0", "teacher": "convolutions.0"}
    terms = {"kd": Term(KDLoss(temperature=3.0)), "lsp": Term(LSPLoss(), target="edge_index", **layers)}
    return CrossModalDistiller(*networks, terms, {"teacher": "graph", "student": "graph"})


def of_features() -> CrossModalDistiller:
    torch.manual_seed(1)
    networks = MLP(64, [6], dropout=0.3), GraphNetwork(64, [6])
    return CrossModalDistiller(*networks, {"kd": Term(KDLoss(1.0))}, {"teacher": "graph", "student": "features"})


def of_several() -> CrossModalDistiller:
    torch.manual_seed(1)
    teacher = ModalityEnsemble({"image": toys.network(16, seed=2), "rows": GRUClassifier(width=6)})
    terms = {"task": Term(TaskLoss(), teacher=None), "graph": Term(ModalityGraphLoss(teachers=2))}
    return CrossModalDistiller(
        toys.network(8, seed=1), teacher, terms, {"teacher": ["image", "rows"], "student": "edges"}
    )


def scenes(augmentation: Any = None, task: Any = "captioning", **changes: Any) -> ResidentDataModule:
    given = {"batch_size": 16, "train_size": 64, "val_size": 0} | changes
    return ResidentDataModule(MNIST(), views=DigitScenes(task), **given)


def questions(**changes: Any) -> ResidentDataModule:
    return scenes(task="vqa", **changes)


def of_scenes(network: type[Captioner] | type[RelationNetwork]) -> CrossModalDistiller:
    torch.manual_seed(1)
    networks = network(SceneEncoder(4), width=6), network(LabelEncoder(), width=6)
    return CrossModalDistiller(*networks, {"kd": Term(KDLoss(2.0))}, {"teacher": "told", "student": "seen"})


def with_labels() -> Classifier:
    torch.manual_seed(1)
    return Classifier(GraphNetwork(64, [6]), input_key="graph")


CASES = {
    "cross_modal": lambda: toys.Case(learner(), data=data),
    "cross_modal_rows": lambda: toys.Case(of_rows(), data=data),
    "cross_modal_graphs": lambda: toys.Case(of_graphs(), data=graph_data),
    "cross_modal_features": lambda: toys.Case(of_features(), data=graph_data),
    "cross_modal_several": lambda: toys.Case(of_several(), data=data),
    "cross_modal_captions": lambda: toys.Case(of_scenes(Captioner), data=scenes),
    "cross_modal_answers": lambda: toys.Case(of_scenes(RelationNetwork), data=questions),
    "classifier_of_a_view": lambda: toys.Case(with_labels(), data=graph_data),
}


def test_three_steps_are_those_of_a_plain_loop():
    ours, student, teacher = learner(), toys.network(8, seed=1), toys.network(16, seed=2)
    without_dropout([ours, student])
    teacher.eval()
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (ours.student, student)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        image, edges = torch.rand(2, 16, 3, 28, 28, generator=generator)
        losses = ours.compute_losses({"image": image, "edges": edges})
        z, t = student(edges), teacher(image).detach()
        expected = {"kd": kl(z, t, 3.0), "logits": (z - t).square().mean()}
        for name, value in expected.items():
            assert losses[name].item() == pytest.approx(value.item(), rel=1e-5)
        for optimizer, loss in zip(
            optimizers,
            (ours.weighted_sum(losses), 0.5 * expected["kd"] + 0.1 * expected["logits"]),
            strict=True,
        ):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for value, truth in zip(ours.student.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(value, truth)


class Unread(dict):
    """A batch whose labels cannot be read."""

    def __getitem__(self, key: str) -> Tensor:
        assert key in ("image", "edges"), f"{key} was read"
        return super().__getitem__(key)


def test_pairs_need_no_labels_and_none_is_read(tmp_path):
    def fitted(target: Tensor) -> dict[str, Tensor]:
        ours = learner()

        class Lies(PairedViews):
            def __call__(self, batch, part):
                return super().__call__(batch, part) | {"target": target}

        toys.trainer(tmp_path, max_epochs=1).fit(ours, data(views=Lies({"edges": EdgeMap()}), augmentation=None))
        return toys.weights(ours)

    assert toys.same(fitted(torch.zeros(16, dtype=torch.int64)), fitted(torch.full((16,), 7)))
    seen = Unread(image=torch.rand(4, 3, 28, 28), edges=torch.rand(4, 3, 28, 28))
    assert set(learner().compute_losses(seen)) == {"kd", "logits"}


def test_the_student_is_evaluated_on_its_own_modality(tmp_path):
    ours, module = learner(), data(val_size=50, augmentation=None)
    (measured,) = toys.trainer(tmp_path).validate(ours, module, verbose=False)
    seen = next(iter(module.val_dataloader()))
    ours.eval()
    logits = ours.student(EdgeMap()(seen["image"]))
    assert measured["val/nll"] == pytest.approx(functional.cross_entropy(logits, seen["target"]).item(), rel=1e-5)


def test_a_shuffled_modality_belongs_to_another_sample_in_training_only(tmp_path):
    module = data(shuffled="image", val_size=50, augmentation=None)
    seen: list[dict[str, Tensor]] = []

    class Keep(CrossModalDistiller):
        def split_batch(self, batch):
            seen.append(batch)
            return super().split_batch(batch)

    terms = {"kd": Term(KDLoss())}
    keep = Keep(toys.network(8, seed=1), toys.network(16, seed=2), terms, MODALITIES)
    toys.trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0).fit(keep, module)
    training, validation = seen[0], seen[-1]
    assert torch.equal(EdgeMap()(training["image"].roll(-1, dims=0)), training["edges"])
    assert torch.equal(EdgeMap()(validation["image"]), validation["edges"])


def test_inputs_that_do_not_fit_raise():
    with pytest.raises(ValueError, match=r"modalities=\{'teacher': 'image'\} must have the keys teacher and student"):
        learner(modalities={"teacher": "image"})
    with pytest.raises(ValueError, match=r"modalities.student: the batch has no 'edges'; the nearest names are edge"):
        learner().compute_losses({"image": torch.zeros(2, 3, 28, 28), "edge": torch.zeros(2, 3, 28, 28)})
    with pytest.raises(ValueError, match="a batch is tuple, and inputs are picked by their names"):
        learner().compute_losses((torch.zeros(2, 3, 28, 28), torch.zeros(2, dtype=torch.int64)))


def test_a_graph_network_teaches_one_without_a_graph_without_any_label():
    """GLNN: the student's loss is the divergence from the teacher's output for the same nodes in the graph."""
    ours = of_features().eval()
    batch = next(iter(graph_data(train_nodes="all").train_dataloader()))
    assert "target" not in batch
    (loss,) = ours.compute_losses(batch).values()
    shown = ours.teacher(**batch["graph"]).softmax(1)
    expected = (shown * (shown.log() - ours.student(batch["features"]).log_softmax(1))).sum() / 16
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_each_teacher_gets_its_own_input_and_inference_needs_only_the_student():
    ours = of_several().eval()
    batch = next(iter(data().test_dataloader()))
    losses = ours.compute_losses(batch)
    shown = torch.stack([ours.teacher.members[view](batch[view]) for view in ("image", "rows")], dim=1)
    expected = ours.terms["graph"].loss(ours.student(batch["edges"]), shown)
    assert losses["graph"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(
        ours.predict_step({"edges": batch["edges"], "image": None, "rows": None}, 0), ours(batch["edges"])
    )


def test_a_classifier_takes_one_input_of_several():
    ours = with_labels().eval()
    batch = next(iter(graph_data().test_dataloader()))
    (loss,) = ours.compute_losses(batch).values()
    logits = ours.student(**batch["graph"])
    assert loss.item() == pytest.approx(functional.cross_entropy(logits, batch["target"]).item(), rel=1e-6)
    with pytest.raises(ValueError, match="input_key: the batch has no 'graph'; the nearest names are"):
        ours.compute_losses({"image": torch.zeros(2, 64), "target": torch.zeros(2, dtype=torch.int64)})
