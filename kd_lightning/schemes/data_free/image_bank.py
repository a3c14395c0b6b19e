"""ImageBank: the synthetic images that a student learns from."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from kd_lightning.core.distributed import all_gather_with_grad, rank, world_size

Rows = Mapping[str, Tensor]
"""Rows of a bank by the name of their column; every tensor has as many."""


class ImageBank(nn.Module):
    """Images, and what belongs to each of them, in buffers that are equal on all processes and in every checkpoint.

    The bank is filled in rounds: each process makes `synthesis_batch_size` rows, and those of all processes are stored
    in rank order, until `memory_size` rows are there. How many there are follows from the number of rounds alone, so
    that a resumed run needs no counter.

    Args:
        memory_size: The number of rows when the bank is full.
        synthesis_batch_size: Rows that each process adds in a round.
        example: One row; its names, shapes and types are those of the buffers.

    Example:
        >>> import torch
        >>> bank = ImageBank(5, 2, {"images": torch.zeros(1, 3, 8, 8), "targets": torch.zeros(1, dtype=torch.long)})
        >>> bank.add_round(0, {"images": torch.ones(2, 3, 8, 8), "targets": torch.tensor([3, 7])})
        >>> bank.size_after(1), bank.size_after(3), bank.column("targets", 2)
        (2, 5, tensor([3, 7]))
    """

    def __init__(self, memory_size: int, synthesis_batch_size: int, example: Rows) -> None:
        super().__init__()
        self.memory_size = memory_size
        self.synthesis_batch_size = synthesis_batch_size
        for name, value in example.items():
            self.register_buffer(name, value.new_zeros(memory_size, *value.shape[1:]))

    def size_after(self, rounds: int) -> int:
        """Return the number of rows after a number of rounds."""
        return min(rounds * self._rows_of_all(), self.memory_size)

    def column(self, name: str, size: int | None = None) -> Tensor:
        """Return the first `size` rows of a buffer, or all of it."""
        return self.get_buffer(name)[:size]

    def own_rows(self, name: str, number: int) -> Tensor:
        """Return the rows of a buffer that this process made in round `number`."""
        start = number * self._rows_of_all() + rank() * self.synthesis_batch_size
        return self.get_buffer(name)[start : start + self.synthesis_batch_size]

    def add_round(self, number: int, rows: Rows) -> None:
        """Store the rows that all processes made in round `number`; those beyond `memory_size` are dropped."""
        start = self.size_after(number)
        for name, value in rows.items():
            gathered = all_gather_with_grad(value)[: self.memory_size - start]
            self.get_buffer(name)[start : start + len(gathered)] = gathered

    def _rows_of_all(self) -> int:
        return self.synthesis_batch_size * world_size()
