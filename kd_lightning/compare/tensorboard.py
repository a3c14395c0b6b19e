"""All runs side by side in TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from urllib.parse import urlencode

from kd_lightning.compare.plan import Plan
from kd_lightning.compare.worker import Tell

FOLDER = "_compare"
# Never the weighted sum: its scale follows weights and temperatures. A tag is a regular expression here.
LAYOUT = {
    "Comparison": {
        "validation accuracy": ["Multiline", ["^val/acc$"]],
        "validation NLL": ["Multiline", ["^val/nll$"]],
        "task loss": ["Multiline", ["^train/task$"]],
        "distillation loss": ["Multiline", ["^train/kd$"]],
        "test accuracy": ["Multiline", ["^test/acc$"]],
    }
}


@dataclass(frozen=True)
class Layout:
    """A task for a worker: one chart a tag with all runs in it, for the custom-scalars page."""

    root: str

    def __call__(self, tell: Tell) -> None:
        """Writes it, once."""
        from torch.utils.tensorboard.writer import SummaryWriter

        if not (Path(self.root) / FOLDER).exists():
            with SummaryWriter(f"{self.root}/{FOLDER}") as writer:
                writer.add_custom_scalars(LAYOUT)


def how_to_open(plan: Plan, root: Path) -> list[str]:
    """The command, and a link for each group: its runs, unsmoothed, for smoothing hides short ones."""
    links = {
        group.title: urlencode({"smoothing": "0", "runFilter": f"^{group.name}/", "tagFilter": "^(val|test)/"})
        for group in plan.groups
    }
    return [
        f"tensorboard --logdir {quote(str(root))} --host 127.0.0.1 --port 6006 --load_fast=false",
        *(f"http://127.0.0.1:6006/?{query}#timeseries  ({title})" for title, query in links.items()),
    ]
