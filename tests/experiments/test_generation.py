"""Models that write from packed bits: built piece by piece, measured each in its own process."""

import json
import subprocess
import sys

import pytest
import torch

from kbitlib.experiments.generation import build, format_of, linear_sizes, measure_generation, predicted_bytes, write
from kbitlib.models.layers import block_linears
from kbitlib.models.quantized import QuantizedLinear, quantized_copy
from kbitlib.models.transformer import Shape, Transformer

SHAPE = Shape(width=96, depth=2, heads=3, context=12)
FOREIGN = ("pydantic", "scipy", "pandas", "papermill", "statsmodels", "yaml", "safetensors", "transformers", "psutil")


def test_a_built_model_has_the_sizes_of_its_shape() -> None:
    plain, built = Transformer(SHAPE), build(SHAPE, 16, seed=0)
    assert {name: layer.weight.shape for name, layer in block_linears(plain)} == linear_sizes(SHAPE)
    found, wanted = built.state_dict(), plain.state_dict()
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in wanted.items()}
    assert {value.dtype for value in (*built.parameters(), *built.buffers())} == {torch.bfloat16}
    assert 0.9 < float(built.blocks[1].down.weight.detach().float().std()) * (4 * 96) ** 0.5 < 1.1


@pytest.mark.parametrize("k", [1, 2, 3, 8])
@torch.no_grad()
def test_a_k_bit_model_is_the_16_bit_one_quantized(k: int) -> None:
    tokens, built = torch.arange(12)[None], build(SHAPE, k, seed=3)
    expected, size = quantized_copy(build(SHAPE, 16, seed=3), format_of(k))
    assert sum(isinstance(module, QuantizedLinear) for module in built.modules()) == 8
    difference = (built(tokens).float() - expected(tokens).float()).norm() / expected(tokens).float().norm()
    assert difference < 0.05
    assert predicted_bytes(SHAPE, k) == size.total_bits_all / 8


def test_16_bits_are_predicted_as_they_are() -> None:
    held = sum(parameter.nbytes for parameter in build(SHAPE, 16, seed=0).parameters())
    assert predicted_bytes(SHAPE, 16) == held == 2 * SHAPE.params


def test_every_byte_of_a_text_is_timed() -> None:
    taken = write(build(SHAPE, 4, seed=0))
    assert len(taken) == SHAPE.context - 1
    assert all(milliseconds > 0 <= waited for milliseconds, waited in taken)


def test_a_row_a_k_each_from_its_own_process() -> None:
    rows = measure_generation(width=64, depth=2, heads=2, bits=[16, 2], tokens=6, seed=1)
    assert [(row["task"], row["k"], row["format"], row["tokens"]) for row in rows] == [
        ("generate", 16, "bf16", 6),
        ("generate", 2, "nf2-b64", 6),
    ]
    for row in rows:
        assert row["tokens_per_s"] == pytest.approx(1e3 / row["ms_per_token"])
        assert row["bytes_held"] == pytest.approx(row["predicted_bytes"], rel=0.1)
        assert row["params"] == 12 * 64**2 * 2 + 2 * 256 * 64
    if sys.platform == "linux":
        assert all(row["peak_bytes"] is not None for row in rows)


@pytest.mark.parametrize(
    ("changed", "message"), [({"width": 100, "heads": 7}, "width 100"), ({"bits": [9]}, "16 bits or 1 to 8, not 9")]
)
def test_what_makes_no_model_is_refused_at_once(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_generation(**{"width": 64, "depth": 1, "heads": 2, "bits": [4], "tokens": 4, **changed})


def test_torch_and_numpy_are_all_that_it_needs() -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({FOREIGN!r}))"
    code += "; from kbitlib.experiments.generation import main; main()"
    options = ["--width", "64", "--depth", "1", "--heads", "2", "--bits", "3", "--tokens", "3"]
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["k"] == 3
