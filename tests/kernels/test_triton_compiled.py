"""The GPU's kernels compiled for GPUs that need not be there, by the assembler that Triton brings along."""

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")

from kbitlib.kernels.layout import PARTS  # noqa: E402
from kbitlib.kernels.triton.matrix import CENTRED, matrix_kernel  # noqa: E402
from kbitlib.kernels.triton.vector import vector_kernel  # noqa: E402


def compiled(kernel: Any, capability: int, warps: int, types: dict[str, str], constants: dict[str, Any]) -> Any:
    """A kernel compiled to the last instruction, its pointers and sizes multiples of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    aligned = [i for i, kind in enumerate(signature.values()) if kind != "constexpr" and not kind.startswith("fp")]
    source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


@pytest.fixture
def assembler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The compiler, its cache in a folder of its own."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    try:
        from triton.backends.nvidia.compiler import get_ptxas

        get_ptxas(90)
    except Exception as error:  # a build of Triton without NVIDIA's assembler
        pytest.skip(f"no ptxas: {error}")
    return triton


POINTERS = {
    "codes": "*i32", "scales": "*fp16", "scale_levels": "*fp32", "outer": "*fp32", "zeros": "*i16", "levels": "*fp32",
    "x_scale": "*fp32", "unit": "fp32", "gain": "fp32",
}  # fmt: skip


def constants(k: int, kind: str, **more: Any) -> dict[str, Any]:
    tl = triton.language
    kinds = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32, "i8": tl.int8}
    return {
        "K": k, "WIDE": PARTS[k][0], "TYPE": kinds[kind], "INTEGERS": int(CENTRED) if kind == "i8" else 0,
        "SCALE": "float", "ZERO": "", "BLOCK": 64, "SPLIT": 1, **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("capability", "k", "kind", "batch"),
    [(90, 2, "bf16", 1), (80, 4, "bf16", 1), (90, 7, "fp16", 4), (80, 4, "fp32", 8)],
)
def test_the_vector_kernel_compiles(assembler: ModuleType, capability: int, k: int, kind: str, batch: int) -> None:
    types = POINTERS | {"x": "*i64", "out": f"*{kind}"}
    found = compiled(
        vector_kernel, capability, 4, types, constants(k, kind, BATCH=batch, SLOTS=32 if batch > 4 else 64)
    )
    assert "ld.global.v4.b32" in found.asm["ptx"]  # sixteen bytes of codes a thread
    assert "atom" not in found.asm["ptx"]
    assert "st.local" not in found.asm["ptx"]


@pytest.mark.parametrize(
    ("capability", "k", "kind", "batch", "core"),
    [
        (90, 4, "bf16", 16, "f32.bf16.bf16"),
        (80, 4, "bf16", 16, "f32.bf16.bf16"),
        (80, 3, "fp16", 32, "f32.f16.f16"),
        (90, 8, "i8", 64, "s32.s8.s8"),
        (90, 4, "bf16", 256, "f32.bf16.bf16"),
    ],
)
def test_the_matrix_kernel_compiles_to_tensor_cores(
    assembler: ModuleType, capability: int, k: int, kind: str, batch: int, core: str
) -> None:
    types = POINTERS | {"x": f"*{kind}", "out": "*bf16" if kind == "i8" else f"*{kind}"}
    shape = {"CLASS": batch, "GROUPS": 4, "BATCH": batch, "TILES": 2, "IN_TILE": batch > 64, "EVEN": True}
    found = compiled(matrix_kernel, capability, 8 if batch > 64 else 4, types, constants(k, kind, **shape))
    assert re.search((r"wgmma\.mma_async\S*" if capability == 90 else r"mma\.sync\S*") + core, found.asm["ptx"])
    assert "cp.async" in found.asm["ptx"]  # codes come while others are multiplied
    assert "atom" not in found.asm["ptx"]
