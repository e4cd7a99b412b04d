"""The five OCP element types against ``ml_dtypes``, value for value."""

import numpy as np
import pytest
import torch

from kbitlib.quant.codebooks import codebook

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml-dtypes is not installed: pip install 'kbit-lab[peers]'")

NAMES = {
    "e2m1": "float4_e2m1fn",
    "e2m3": "float6_e2m3fn",
    "e3m2": "float6_e3m2fn",
    "e4m3": "float8_e4m3fn",
    "e5m2": "float8_e5m2",
}


@pytest.mark.parametrize(("name", "peer"), NAMES.items())
def test_levels_are_the_finite_values_of_the_type(name: str, peer: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, peer))
    bits = {"e2m1": 4, "e2m3": 6, "e3m2": 6}.get(name, 8)
    values = np.arange(2**bits, dtype=np.uint8).view(dtype).astype(np.float32)
    finite = np.unique(values[np.isfinite(values)])
    assert torch.equal(codebook(name).levels.unique(), torch.from_numpy(finite))
