"""A tensor seen as rows of blocks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kbitlib.quant.blocks import ROW, TENSOR, Blocks


@pytest.mark.parametrize(
    ("shape", "block", "rows", "columns", "per_row"),
    [
        ((), 64, 1, 1, 1),
        ((130,), 64, 1, 130, 3),
        ((5, 130), 64, 5, 130, 3),
        ((5, 13, 10), 64, 5, 130, 3),
        ((5, 13, 2, 5), ROW, 5, 130, 1),
        ((5, 130), TENSOR, 1, 650, 1),
        ((5, 0), 64, 5, 0, 0),
        ((0, 5), 64, 0, 5, 1),
        ((3, 5), 10**30, 3, 5, 1),
    ],
)
def test_rows_and_blocks(shape: tuple[int, ...], block: int, rows: int, columns: int, per_row: int) -> None:
    blocks = Blocks.of(shape, block)
    assert (blocks.rows, blocks.columns, blocks.per_row, blocks.count) == (rows, columns, per_row, rows * per_row)


@given(st.integers(0, 4), st.integers(0, 40), st.integers(1, 17))
def test_split_and_join_are_inverse(rows: int, columns: int, size: int) -> None:
    blocks = Blocks.of((rows, columns), size)
    matrix, per_block = torch.randn(rows, columns), torch.randn(rows, blocks.per_row)
    assert torch.equal(Blocks.join(blocks.split(matrix)), matrix)
    assert torch.equal(Blocks.join(blocks.split_blocks(per_block)), per_block)
    pairs = zip(blocks.split(matrix), blocks.split_blocks(per_block), strict=True)
    assert all(part.shape[:2] == of_block.shape[:2] for part, of_block in pairs)
