"""A teacher's outputs for every training row: looked up by the row's index, and checked by its fingerprint."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kd_lightning.core.activations import Activations
from kd_lightning.core.errors import UsageError
from kd_lightning.speed.teacher_cache.file import TensorSpec
from kd_lightning.speed.teacher_cache.training_rows import RowFingerprints


class CacheMismatchError(RuntimeError):
    """A row's input differs from the one that its cached outputs were computed from.

    Attributes:
        row: Index of the row.
        others: Number of other such rows in the batch; None where it is unknown.
        is_cached: False if the table has no such row.
    """

    def __init__(self, row: int, others: int | None, is_cached: bool) -> None:
        super().__init__(row)
        self.row, self.others, self.is_cached = row, others, is_cached


class LookupTable:
    """A teacher's outputs for R rows in V views, and the fingerprints of their inputs.

    Args:
        rows: Indices and fingerprints of the rows.
        outputs: The teacher's activations (V * R + 1, ...) by layer; the last entry is the sentinel row.
    """

    def __init__(self, rows: RowFingerprints, outputs: Activations) -> None:
        index = rows.indices
        self.num_rows = len(index)
        self.sentinel = len(rows.fingerprints)
        self.fingerprints = torch.cat([rows.fingerprints, rows.fingerprints.new_zeros(1)])
        self.outputs = outputs
        self.defers_checks = index.device.type != "cpu"
        # On a CPU a missing row has a position outside the table, and torch raises at once. On a GPU that would end
        # the process, and a check in each step would wait for the device: there a missing row has the sentinel's
        # position, and the largest index of a changed row is kept until `check_deferred` reads it.
        self.missing = self.sentinel if self.defers_checks else self.sentinel + 1
        self.last = int(index.max()) + 1  # stands for all larger indices
        self.position_of = index.new_full((self.last + 1,), self.missing)
        self.position_of[index] = torch.arange(self.num_rows, device=index.device)
        self.changed = index.new_tensor(-1)

    def look_up(self, index: Tensor, fingerprints: Tensor | None, view: int = 0) -> Activations:
        """Return the teacher's outputs for the rows of a batch, on their device.

        Args:
            index: Indices of the rows, (N,).
            fingerprints: Fingerprints of the rows' inputs, (N,); None for inputs that need no comparison.
            view: View of the batch.

        Raises:
            CacheMismatchError: An input has changed since the pass, or a row is missing.
            UsageError: The numbers of indices and of inputs differ.
        """
        if self.defers_checks:
            return self._take(self._positions_without_waiting(index, fingerprints, view))
        try:
            position = self.position_of.index_select(0, index)
            if view:
                position = position + view * self.num_rows
            if fingerprints is not None and not torch.equal(
                known := self.fingerprints.index_select(0, position), fingerprints
            ):
                if known.shape != fingerprints.shape:
                    raise UsageError(
                        f"a batch has {len(known)} indices and {len(fingerprints)} rows of input: give each row its "
                        "own index"
                    )
                raise self._error(index, known != fingerprints, is_cached=True)
            return self._take(position)
        except IndexError:
            missing = self.position_of[index.clamp(0, self.last)] == self.missing
            if not missing.any():
                raise
            raise self._error(index, missing, is_cached=False) from None

    def check_deferred(self) -> None:
        """Wait for the device, and raise if a row of any batch so far has changed.

        Raises:
            CacheMismatchError: A row has changed.
        """
        if self.defers_checks and (row := int(self.changed)) >= 0:
            raise CacheMismatchError(row, None, True)

    def _take(self, position: Tensor) -> Activations:
        return {
            layer: table.index_select(0, position.to(table.device)).to(position.device)
            for layer, table in self.outputs.items()
        }

    def _positions_without_waiting(self, index: Tensor, fingerprints: Tensor | None, view: int) -> Tensor:
        position = self.position_of.index_select(0, index.clamp(0, self.last))
        if view:
            position = (position + view * self.num_rows).clamp(max=self.sentinel)
        if fingerprints is not None:
            known = self.fingerprints.index_select(0, position)
            changed = index.where(known != fingerprints, -1).amax()
            torch.maximum(self.changed, changed, out=self.changed)  # in place: a CUDA graph may replay the step
        return position

    def _error(self, index: Tensor, wrong: Tensor, is_cached: bool) -> CacheMismatchError:
        rows = index[wrong]
        return CacheMismatchError(int(rows[0]), len(rows) - 1, is_cached)


def empty_table(spec: TensorSpec, device: torch.device) -> Tensor:
    """Allocate a table whose last entry is the sentinel row."""
    table = torch.empty(spec.shape, dtype=spec.dtype, device=device)
    table[-1:] = sentinel_row(spec)
    return table


def sentinel_row(spec: TensorSpec) -> Tensor:
    """Return the outputs (1, ...) that stand for a missing row: NaN, or 0 in integers."""
    return torch.full((1, *spec.shape[1:]), math.nan if spec.dtype.is_floating_point else 0, dtype=spec.dtype)
