"""Shapes of the kernels: a small fixed set of configurations, timed at the first product of a kind and remembered."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from kbitlib.kernels.triton.matrix import matrix_kernel
from kbitlib.kernels.triton.vector import vector_kernel

INTERPRETED = triton.knobs.runtime.interpret
VECTOR_SHAPES = (32, 4), (64, 4), (64, 8), (128, 4), (128, 8), (128, 16)  # SLOTS, warps
MATRIX_SHAPES = (  # GROUPS, BATCH, TILES, IN_TILE, warps, stages
    (4, 16, 1, False, 4, 5), (4, 16, 2, False, 4, 5), (4, 16, 4, False, 4, 4), (8, 16, 2, False, 8, 4),
    (8, 16, 2, False, 4, 4), (4, 16, 4, True, 4, 4), (4, 16, 8, True, 8, 3),
    (4, 32, 1, False, 4, 4), (4, 32, 2, False, 4, 4), (8, 32, 2, False, 4, 4), (4, 32, 4, True, 4, 4),
    (4, 64, 1, False, 4, 4), (4, 64, 2, False, 4, 4), (4, 64, 2, True, 4, 4),
    (4, 128, 1, False, 4, 4), (8, 128, 2, False, 8, 3), (4, 128, 2, True, 4, 4), (8, 128, 2, True, 8, 4),
    (4, 256, 2, True, 8, 4), (8, 256, 2, True, 8, 3),
)  # fmt: skip
KEY = ["rows", "columns", "BLOCK", "K", "TYPE", "INTEGERS", "SCALE", "ZERO", "SPLIT"]  # what makes a kind of product


def configuration(warps: int, stages: int = 1, **shape: int) -> triton.Config:
    """A kernel's shape, the warps of a program and the stages of its pipeline."""
    return triton.Config(shape, num_warps=warps, num_stages=stages)


def within_registers(configs: list[triton.Config], arguments: dict[str, Any], **constants: Any) -> list[triton.Config]:
    """The configurations whose sums for every row of x a thread can hold."""
    return [config for config in configs if constants["BATCH"] * config.kwargs["SLOTS"] <= 64 * config.num_warps]


def suitable(configs: list[triton.Config], arguments: dict[str, Any], **constants: Any) -> list[triton.Config]:
    """The configurations that suit a product: as many rows of x as there are, columns that share a scale."""
    kind, block, rows = constants["TYPE"], constants["BLOCK"], constants["CLASS"]
    most = 32 if kind == tl.float32 else 128

    def suits(config: triton.Config) -> bool:
        batch, columns, in_tile = config.kwargs["BATCH"], 32 * config.kwargs["TILES"], config.kwargs["IN_TILE"]
        if in_tile:
            return kind == tl.bfloat16 and block > 16 and min(64, rows) <= batch <= rows
        return batch == min(most, rows) and (columns == 32 or block % columns == 0)

    return [config for config in configs if suits(config)]


VECTOR_CONFIGS = [configuration(warps, SLOTS=slots) for slots, warps in VECTOR_SHAPES]
MATRIX_CONFIGS = [
    configuration(warps, stages, GROUPS=groups, BATCH=batch, TILES=tiles, IN_TILE=in_tile)
    for groups, batch, tiles, in_tile, warps, stages in MATRIX_SHAPES
]
if INTERPRETED:  # nothing is timed: the smallest serves
    VECTOR_CONFIGS, MATRIX_CONFIGS = VECTOR_CONFIGS[:1], MATRIX_CONFIGS[:1]
_even = triton.heuristics({"EVEN": lambda given: given["columns"] % (32 * given["TILES"] * given["SPLIT"]) == 0})
tuned_vector = triton.autotune(
    VECTOR_CONFIGS, [*KEY, "BATCH"], prune_configs_by={"early_config_prune": within_registers}
)(vector_kernel)
tuned_matrix = triton.autotune(MATRIX_CONFIGS, [*KEY, "CLASS"], prune_configs_by={"early_config_prune": suitable})(
    _even(matrix_kernel)
)
