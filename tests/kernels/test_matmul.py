"""Products with packed weights: right to the bars, for every k, format, type, shape and implementation."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kbitlib.kernels import PackedWeight, cpu, decode, linear, pack, path
from kbitlib.kernels.matmul import reference, rounded_to_int8
from kbitlib.quant import compiled, quantize

BARS = {torch.float32: 1e-5, torch.bfloat16: 2.5e-3, torch.float16: 4e-4}  # float16 rounds at 2^-11, uniformly: 2.8e-4
KINDS = [f"nf{k}-b64" for k in range(2, 9)] + [f"int{k}-b64" for k in range(2, 9)] + [
    "binary", "nf4-b32", "nf3-b128", "nf5-row", "nf6-tensor", "int4-b64-zp", "int3-b32-zpf", "int8-row", "int7-b64-zp",
    "nf4-b64-dq", "nf4-b64-fp32", "int4-b64-bf16", "mxfp4", "mxfp8", "nvfp4", "int2-b16-zp", "kmeans5", "quantile3",
    "dynamic8", "q2.4", "int4-b16-zpf", "bnbfp4", "pot5", "int5-b320-zp",
]  # fmt: skip


def packed(rows: int, columns: int, format: str, seed: int = 0) -> PackedWeight:
    generator = torch.Generator().manual_seed(seed)
    return pack(quantize(torch.randn(rows, columns, generator=generator), format))


def inputs(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.fixture(params=["vectors", "avx2", "plain", "pytorch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each implementation on the CPU that this machine can run."""
    flags = {"vectors": None, "avx2": ("-march=haswell", "-fopenmp"), "plain": ("-fopenmp",)}
    if request.param == "pytorch":
        monkeypatch.setattr(cpu, "library", lambda: None)
    elif request.param == "vectors":
        if not cpu.abilities() & cpu.IN_VECTORS:
            pytest.skip(f"this machine's products run in {cpu.path(64)}")
    else:
        if cpu.library() is None:
            pytest.skip("there is no C compiler")
        monkeypatch.setattr(compiled, "FLAGS", (flags[request.param],))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                made = compiled.load(cpu.SOURCE, cpu.FLAGS, ("kbit_linear",), "no test")
            except UserWarning:
                pytest.skip(f"this compiler or processor has no {request.param}")
        assert made is not None
        monkeypatch.setattr(cpu, "library", lambda: made)
        monkeypatch.setattr(cpu, "abilities", made.kbit_abilities)
        assert made.kbit_abilities() == cpu.FLOAT32
    return request.param


@pytest.mark.parametrize("format", KINDS)
def test_error_is_within_the_bars(way: str, format: str) -> None:
    weight = packed(40, 640, format)
    for dtype, bar in BARS.items():
        for batch in (1, 30):
            x = inputs(batch, 640, dtype=dtype)
            found = linear(x, weight)
            assert found.dtype == dtype
            assert found.shape == (batch, 40)
            assert error(found, x.double() @ decode(weight).double().T) < bar


@pytest.mark.parametrize(
    "format", ["nf3", "nf4", "nf6", "nf8", "kmeans4", "int4", "int4-b64-zp", "nf4-b64-dq", "mxfp4"]
)
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_inputs_of_one_sign_do_not_add_errors_up(format: str, shift: float) -> None:
    weight, x = packed(256, 4096, format), (inputs(32, 4096).relu() + shift).bfloat16()
    exact = x.double() @ decode(weight).double().T
    assert error(linear(x, weight), exact) < 2.5e-3
    assert error(linear(x[:1], weight), exact[:1]) < 2.5e-3


@pytest.mark.parametrize("k", range(1, 9))
def test_any_levels_will_do(way: str, k: int) -> None:
    weight = packed(33, 256, "binary" if k == 1 else f"int{k}")
    weight = replace(weight, levels=torch.randn(2**k))
    x = inputs(2, 256)
    assert error(linear(x, weight), x.double() @ decode(weight).double().T) < 1e-5


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (16, 32), (17, 33), (31, 1000), (100, 48), (3, 4096)])
@pytest.mark.parametrize("format", ["nf4-b32", "int3-b64-zp", "int8-b16", "nf2-row"])
def test_odd_shapes(way: str, shape: tuple[int, int], format: str) -> None:
    weight = packed(*shape, format)
    for batch in (1, 2, 13):
        x = inputs(batch, shape[1])
        exact = x.double() @ decode(weight).double().T
        assert torch.allclose(linear(x, weight).double(), exact, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("format", ["nf4", "int3-b32-zp", "nf4-b64-dq", "int5-b16-zpf"])
@pytest.mark.parametrize("dtype", BARS)
def test_many_rows(way: str, format: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "DECODED_AT_ONCE", 2 * 48 * 100)
    weight = packed(130, 100, format)
    for batch in (250, 800):  # more than go through the caches at once; so many that the weight is decoded first
        x = inputs(batch, 100, dtype=dtype)
        assert error(linear(x, weight), x.double() @ decode(weight).double().T) < BARS[dtype]


def test_leading_dimensions_empty_batches_and_strides(way: str) -> None:
    weight = packed(48, 64, "nf4")
    x = inputs(2, 3, 64)
    whole = linear(x, weight)
    assert torch.equal(linear(x[1, 2], weight), linear(x[1, 2][None], weight)[0])
    assert linear(x[:0], weight).shape == (0, 3, 48)
    wide = inputs(6, 128)
    assert torch.equal(linear(wide[::2, ::2], weight), linear(wide[::2, ::2].contiguous(), weight))
    assert torch.allclose(whole.flatten(0, 1), linear(x.flatten(0, 1), weight))
    assert linear(inputs(2, 64), packed(0, 64, "nf4")).shape == (2, 0)


@pytest.mark.parametrize("format", ["int4-b64", "int8-b64", "int8-row", "int4-b64-zp", "int2-b32-zp", "int3-b16"])
@pytest.mark.parametrize("dtype", BARS)
def test_eight_bit_activations_are_multiplied_as_integers(way: str, format: str, dtype: torch.dtype) -> None:
    weight = packed(40, 512, format)
    for batch in (1, 5, 30):
        x = inputs(batch, 512, dtype=dtype)
        whole, scale = rounded_to_int8(x)
        exact = (whole.double() * scale.double()) @ decode(weight).double().T
        assert error(linear(x, weight, 8), exact) < BARS[dtype]


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_row(way: str, wrong: float, bits: int) -> None:
    weight, x = packed(20, 96, "int4"), inputs(3, 96)
    right = linear(x, weight, bits)
    x[1, 50] = wrong
    found = linear(x, weight, bits)
    assert not found[1].isfinite().any()
    assert torch.equal(found[[0, 2]], right[[0, 2]])


def test_eight_bit_activations_are_the_format_int8() -> None:
    x = inputs(5, 100)
    x[2] = 0
    whole, scale = rounded_to_int8(x)
    assert torch.equal(whole * scale, quantize(x, "int8-row-fp32").dequantize())


def test_results_do_not_depend_on_threads_or_repetition(way: str) -> None:
    weight, x = packed(256, 512, "nf4"), inputs(20, 512, dtype=torch.bfloat16)
    few = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            found.append([linear(x, weight), linear(x[:1], weight), linear(x, packed(256, 512, "int4"), 8)])
    finally:
        torch.set_num_threads(few)
    if way != "pytorch":  # whose products are PyTorch's own
        assert all(torch.equal(a, b) for one in found for a, b in zip(one, found[0], strict=True))


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 200),
    batch=st.integers(1, 15),
    k=st.integers(2, 8),
    block=st.sampled_from([16, 32, 64, 96, 0]),
    zero=st.sampled_from(["", "-zp", "-zpf"]),
    bits=st.sampled_from([8, 16]),
)
def test_any_shape_and_format(rows: int, columns: int, batch: int, k: int, block: int, zero: str, bits: int) -> None:
    weight = packed(rows, columns, f"int{k}-{f'b{block}' if block else 'row'}{zero}", seed=rows)
    x = inputs(batch, columns, seed=columns)
    found, plain = linear(x, weight, bits), reference(x, weight.stored, bits)
    assert torch.allclose(
        found, plain, rtol=1e-4, atol=2e-5 * float(x.norm(dim=1).max() * decode(weight).norm(dim=1).max())
    )


@pytest.mark.parametrize(
    ("x", "bits", "message"),
    [
        (torch.zeros(2, 63), 16, r"the last dimension of the input is 64, not that of \(2, 63\)"),
        (torch.zeros(()), 16, "the last dimension of the input is 64"),
        (torch.zeros(2, 64).double(), 16, r"takes float32, float16 or bfloat16, not torch\.float64"),
        (torch.zeros(2, 64).int(), 16, r"not torch\.int32"),
        (torch.zeros(2, 64, device="meta"), 16, "lie on one device, not on meta and cpu"),
        (torch.zeros(2, 64), 4, "activations have 8 or 16 bits, not 4"),
        (torch.zeros(2, 64), 8, "this weight's levels are not consecutive"),
    ],
)
def test_what_is_refused(x: Tensor, bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear(x, packed(16, 64, "nf4"), bits)


def test_derivative_in_forward_mode() -> None:
    weight, x, along = packed(24, 64, "nf3"), inputs(5, 64), inputs(5, 64, seed=2)
    y, tangent = torch.func.jvp(lambda given: linear(given, weight), (x,), (along,))
    torch.testing.assert_close(y, linear(x, weight))
    torch.testing.assert_close(tangent, linear(along, weight))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("codes", lambda t: t[:1]),
        ("codes", lambda t: t.long()),
        ("codes", lambda t: t.transpose(0, 1)),
        ("scales", lambda t: t[:1]),
        ("scales", lambda t: t.double()),
        ("scales", lambda t: t.to("meta")),
        ("levels", lambda t: t[:3]),
        ("levels", lambda t: t.bfloat16()),
        ("rows", lambda n: 10**7),
        ("columns", lambda n: 300_000),
        ("block", lambda n: 0),
        ("block", lambda n: 24),
        ("gain", lambda g: 0.0),
    ],
)
def test_a_weight_that_does_not_hold_together_is_refused(name: str, change) -> None:
    weight = packed(64, 256, "nf4-b32")
    with pytest.raises(ValueError, match=r"are torch|lie on|no weight has"):
        replace(weight, **{name: change(getattr(weight, name))})


def test_the_operator_itself_refuses_other_inputs() -> None:
    weight = packed(64, 256, "nf4-b32")
    for x in (inputs(3, 7), inputs(3, 320), inputs(3, 256).int()):
        with pytest.raises(ValueError, match="takes 256 columns of floats, not"):
            torch.ops.kbit.linear(x, *weight.stored, 16)


def test_a_block_longer_than_any_row_is_a_row() -> None:
    weight, x = packed(20, 64, f"nf4-b{2**63 - 1}"), inputs(2, 64)
    assert error(linear(x, weight), x.double() @ decode(weight).double().T) < 1e-5
    assert decode(weight).any()


@pytest.mark.parametrize("format", ["nf4", "int3-b64-zp", "nf4-b64-dq", "int4-b64-zpf"])
@pytest.mark.parametrize("gradient", [False, True])
def test_the_operator_keeps_its_contract(format: str, gradient: bool) -> None:
    weight, x = packed(32, 64, format), inputs(3, 64).requires_grad_(gradient)
    torch.library.opcheck(torch.ops.kbit.linear.default, (x, *weight.stored, 16))


@pytest.mark.parametrize("bits", [16, 8])
def test_compiled_whole(bits: int) -> None:
    weight = packed(32, 64, "int4")

    def twice(x: Tensor) -> Tensor:
        return linear(torch.relu(x), weight, bits) * 2

    made = torch.compile(twice, fullgraph=True)
    for batch in (1, 5):
        x = inputs(batch, 64)
        torch.testing.assert_close(made(x), twice(x))


def test_gradient_of_the_input() -> None:
    weight, x = packed(24, 64, "nf3"), inputs(5, 64).requires_grad_()
    linear(x, weight).square().sum().backward()
    exact = x.detach().clone().requires_grad_()
    torch.nn.functional.linear(exact, decode(weight)).square().sum().backward()
    torch.testing.assert_close(x.grad, exact.grad, rtol=1e-4, atol=1e-4)


def test_without_a_compiler_pytorch_does_the_work_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    weight, x = packed(16, 64, "nf4"), inputs(2, 64)
    exact = x.double() @ decode(weight).double().T
    cpu.library.cache_clear()
    cpu.abilities.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no C compiler .* products decode the weight in PyTorch") as said:
            found = [linear(x, weight) for _ in range(2)]
        assert len(said) == 1
        assert torch.equal(*found)
        assert path("cpu", weight) == "PyTorch: no C compiler compiles the kernels"
    finally:
        cpu.library.cache_clear()
        cpu.abilities.cache_clear()
    assert error(found[0], exact) < 1e-5


def test_a_damaged_compiled_file_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if cpu.library() is None:
        pytest.skip("there is no C compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "FLAGS", ((),))
    functions = ("kbit_linear", "kbit_abilities")
    assert compiled.load(cpu.SOURCE, ("-O0",), functions, "no test")
    (file,) = (tmp_path / "kbit-lab").glob("*.so")
    file.unlink()  # the loaded one stays as it is
    file.write_bytes(b"not a library")
    assert compiled.load(cpu.SOURCE, ("-O0",), functions, "no test")
    assert any(other.read_bytes() != b"not a library" for other in (tmp_path / "kbit-lab").glob("*.so"))


def test_the_path_is_told() -> None:
    weight = packed(16, 64, "nf4")
    assert path("cpu", weight) == cpu.path(64)
    if not torch.cuda.is_available():
        assert path("cuda", weight) == "nothing: PyTorch finds no CUDA device"
    assert path("meta", weight) == "PyTorch: there is no kernel for meta"
