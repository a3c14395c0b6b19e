"""Searches the gates of a knowledge transfer graph, as Minami et al. do, and prints the best as YAML.

python -m benchmarks.graph_search --teacher packaged:mnist/teacher-0 [--graphs 64] [--processes 2]

The nodes are a student, a peer of the same architecture and a frozen teacher. Every possible edge has a random gate. A
graph's score is the student's accuracy on 2,000 validation images after 990 steps on 1,000 training images; test images
are not used. Graphs in which the student or the peer has no loss are not drawn.
"""

from __future__ import annotations

import argparse
import logging
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything

from kd_lightning import Term, load_teacher
from kd_lightning.data import MNISTDataModule
from kd_lightning.losses import KDLoss, TaskLoss
from kd_lightning.networks import StudentConvNet, TeacherConvNet
from kd_lightning.schemes import (
    CorrectGate,
    CutOffGate,
    Edge,
    EdgeGate,
    KnowledgeTransferGraph,
    LinearGate,
    ThroughGate,
)

STEPS = 990
GATES = {
    "through": ThroughGate,
    "cutoff": CutOffGate,
    "linear": lambda: LinearGate(duration=STEPS),
    "correct": CorrectGate,
}
LABELS = ("through", "cutoff", "linear")  # whose student is never without a loss
EDGES = {  # target, source, temperature: a teacher's outputs are softened, a peer's are not
    "task": ("student", None, 0.0),
    "peer_task": ("peers.0", None, 0.0),
    "from_teacher": ("student", "peers.1", 4.0),
    "from_peer": ("student", "peers.0", 1.0),
    "to_peer": ("peers.0", "student", 1.0),
    "teacher_to_peer": ("peers.0", "peers.1", 4.0),
}


def draw(count: int, seed: int) -> list[dict[str, str]]:
    """Draw different graphs: a gate for each edge."""
    numbers = random.Random(seed)
    found: list[dict[str, str]] = []
    while len(found) < count:
        graph = {
            name: numbers.choice(LABELS if source is None else list(GATES)) for name, (_, source, _) in EDGES.items()
        }
        taught = {EDGES[name][0] for name, gate in graph.items() if gate != "cutoff"}
        if taught == {"student", "peers.0"} and graph not in found:
            found.append(graph)
    return found


def edge(name: str, gate: EdgeGate) -> Edge:
    target, source, temperature = EDGES[name]
    term = Term(TaskLoss(), teacher=None) if source is None else Term(KDLoss(temperature))
    return Edge(target, term, source, gate)


def worth(graph: dict[str, str], teacher: Path, seed: int) -> float:
    """Train a graph and return the student's accuracy on the validation images."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    seed_everything(seed, verbose=False)
    student, peer = StudentConvNet(), StudentConvNet()
    learner = KnowledgeTransferGraph(
        student,
        [peer, load_teacher(TeacherConvNet(), teacher)],
        {name: edge(name, GATES[gate]()) for name, gate in graph.items()},
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.001),
    )
    data = MNISTDataModule(train_size=1000, val_size=2000, steps_per_epoch=STEPS, seed=seed)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(learner, data)
    return trainer.callback_metrics["val/acc/student"].item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="a checkpoint or weights of a TeacherConvNet")
    parser.add_argument("--graphs", type=int, default=64)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=100, help="of the search, of the data and of the networks")
    given = parser.parse_args()
    graphs = draw(given.graphs, given.seed)
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        jobs = [pool.submit(worth, graph, given.teacher, given.seed) for graph in graphs]
        found = [(job.result(), graph) for job, graph in zip(jobs, graphs, strict=True)]
    for accuracy, graph in sorted(found, key=lambda pair: -pair[0]):
        print(f"{100 * accuracy:.2f} %  " + "  ".join(f"{name}: {gate}" for name, gate in graph.items()))


if __name__ == "__main__":
    main()
