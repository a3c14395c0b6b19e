"""What a teacher showed of every training row: looked up by the row's index, and compared by its fingerprint."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kd_lightning.core.activations import Activations
from kd_lightning.core.errors import UsageError
from kd_lightning.speed.teacher_cache.file import Kind
from kd_lightning.speed.teacher_cache.training_rows import Inputs


class CacheMismatchError(RuntimeError):
    """A row's input is not the one that the teacher was asked about.

    Attributes:
        row: Its index.
        others: How many others of the batch, where that is known.
        known: Whether the row is in the tables at all.
    """

    def __init__(self, row: int, others: int | None, known: bool) -> None:
        super().__init__(row)
        self.row, self.others, self.known = row, others, known


class Tables:
    """What a teacher showed of R rows in V views, and the fingerprints of what it was shown.

    Args:
        inputs: The rows, and the fingerprints of what they look like.
        shown: The teacher's activations (V * R + 1, ...) by layer; what stands last is given for no row.
    """

    def __init__(self, inputs: Inputs, shown: Activations) -> None:
        index = inputs.indices
        self.rows = len(index)
        self.none = len(inputs.fingerprints)
        self.fingerprints = torch.cat([inputs.fingerprints, inputs.fingerprints.new_zeros(1)])
        self.shown = shown
        self.waits = index.device.type != "cpu"
        # On a CPU, no row stands where there is nothing, which is an error of torch's at once. Elsewhere that would end
        # the process, and to notice anything would mean to wait at each step: there no row has a place, and the largest
        # index of a row that changed is kept until somebody looks.
        self.no_row = self.none if self.waits else self.none + 1
        self.last = int(index.max()) + 1  # stands for all indices that are larger
        self.row_of = index.new_full((self.last + 1,), self.no_row)
        self.row_of[index] = torch.arange(self.rows, device=index.device)
        self.changed = index.new_tensor(-1)

    def look_up(self, index: Tensor, inputs: Tensor | None, view: int = 0) -> Activations:
        """What the teacher showed of the rows of a batch, on their device.

        Args:
            index: Their indices.
            inputs: The fingerprints of what the teacher would be shown; without them, that is known.
            view: The view of the batch.

        Raises:
            CacheMismatchError: An input is not the one that the teacher was asked about, or there is no such row.
            UsageError: There are not as many indices as inputs.
        """
        if self.waits:
            return self._take(self._find_later(index, inputs, view))
        try:
            at = self.row_of.index_select(0, index)
            if view:
                at = at + view * self.rows
            if inputs is not None and not torch.equal(known := self.fingerprints.index_select(0, at), inputs):
                if known.shape != inputs.shape:
                    raise UsageError(
                        f"a batch has {len(known)} indices and {len(inputs)} rows of input: give each row its own"
                    )
                raise self._error(index, known != inputs, known=True)
            return self._take(at)
        except IndexError:
            missing = self.row_of[index.clamp(0, self.last)] == self.no_row
            if not missing.any():
                raise
            raise self._error(index, missing, known=False) from None

    def settle(self) -> None:
        """Waits for the device, and looks whether a row has changed in the batches so far.

        Raises:
            CacheMismatchError: One has.
        """
        if self.waits and (row := int(self.changed)) >= 0:
            raise CacheMismatchError(row, None, True)

    def _take(self, at: Tensor) -> Activations:
        return {layer: table.index_select(0, at.to(table.device)).to(at.device) for layer, table in self.shown.items()}

    def _find_later(self, index: Tensor, inputs: Tensor | None, view: int) -> Tensor:
        at = self.row_of.index_select(0, index.clamp(0, self.last))
        if view:
            at = (at + view * self.rows).clamp(max=self.none)
        if inputs is not None:
            known = self.fingerprints.index_select(0, at)
            changed = index.where(known != inputs, -1).amax()
            torch.maximum(self.changed, changed, out=self.changed)  # in place, for a step may be replayed
        return at

    def _error(self, index: Tensor, wrong: Tensor, known: bool) -> CacheMismatchError:
        rows = index[wrong]
        return CacheMismatchError(int(rows[0]), len(rows) - 1, known)


def empty(kind: Kind, device: torch.device) -> Tensor:
    """A table to be filled: what stands last is of no row."""
    table = torch.empty(kind.shape, dtype=kind.dtype, device=device)
    table[-1:] = sentinel_row(kind)
    return table


def sentinel_row(kind: Kind) -> Tensor:
    """What a teacher shows of no row, (1, ...): NaN, where the numbers can be."""
    return torch.full((1, *kind.shape[1:]), math.nan if kind.dtype.is_floating_point else 0, dtype=kind.dtype)
