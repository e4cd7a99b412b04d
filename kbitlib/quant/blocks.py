"""A tensor seen as rows of blocks: consecutive weights along the input dimension that share a scale.

A block never crosses a row; the last one of a row may be short. Rank 0 and 1 are one row; rank 2 and above are
(out, rest), everything after the first dimension flattened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

ROW, TENSOR = 0, -1  # block sizes that mean a whole row, the whole tensor


@dataclass(frozen=True)
class Blocks:
    """rows x columns weights in blocks of `size` columns, the last of a row possibly short.

    The last `fill` columns are no weights but zeros that make up whole vectors.
    """

    rows: int
    columns: int
    size: int
    fill: int = 0

    @classmethod
    def of(cls, shape: Sequence[int], block: int, vector: int = 1) -> "Blocks":
        """The blocks of a tensor of this shape; block: a number of weights, ROW or TENSOR; vector: weights a code."""
        weights = prod(shape)
        rows = 1 if len(shape) < 2 or block == TENSOR else shape[0]
        columns = weights if rows == 1 else prod(shape[1:])
        fill = -columns % vector
        columns += fill
        return cls(rows, columns, min(block, columns) if block > 0 and columns else max(columns, 1), fill)

    def codes(self, vector: int) -> "Blocks":
        """The same blocks counted in codes of so many weights."""
        return Blocks(self.rows, self.columns // vector, max(self.size // vector, 1)) if vector > 1 else self

    def matrix(self, tensor: Tensor) -> Tensor:
        """A tensor of the shape that these are blocks of, as (rows, columns)."""
        matrix = tensor.reshape(self.rows, self.columns - self.fill)
        return torch.nn.functional.pad(matrix, (0, self.fill)) if self.fill else matrix

    @property
    def per_row(self) -> int:
        """Blocks in a row."""
        return -(-self.columns // self.size)

    @property
    def count(self) -> int:
        """Blocks in the tensor."""
        return self.rows * self.per_row

    def split(self, matrix: Tensor) -> list[Tensor]:
        """(rows, columns) -> views (rows, blocks, width): the whole blocks, and the short last ones where there are."""
        whole = self.columns // self.size
        parts = [matrix[:, : whole * self.size].unflatten(1, (whole, self.size)), matrix[:, None, whole * self.size :]]
        return self._present(parts)

    def split_blocks(self, per_block: Tensor) -> list[Tensor]:
        """(rows, per_row), a number a block -> views (rows, blocks, 1) that go with the parts of `split`."""
        whole = self.columns // self.size
        return self._present([per_block[:, :whole, None], per_block[:, whole:, None]])

    def _present(self, parts: list[Tensor]) -> list[Tensor]:
        whole, short = divmod(self.columns, self.size)
        return [part for part, present in zip(parts, (whole or not short, short), strict=True) if present]

    @staticmethod
    def join(parts: list[Tensor]) -> Tensor:
        """The inverse of either split: parts side by side, (rows, columns) or (rows, per_row)."""
        flat = [part.flatten(1) for part in parts]
        return flat[0] if len(flat) == 1 else torch.cat(flat, 1)
