"""Products with k-bit weights: packed once, read as they are."""

from kbitlib.kernels.layout import PackedWeight, obstacle, pack
from kbitlib.kernels.matmul import decode, linear, path

__all__ = ["PackedWeight", "decode", "linear", "obstacle", "pack", "path"]
