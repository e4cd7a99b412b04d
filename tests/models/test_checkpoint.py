"""Quantized folders of bare safetensors files: what is stored, what comes back, what is refused, and memory."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kbitlib.models.checkpoint import (
    CODES,
    PIECE,
    Checkpoint,
    Record,
    dequantize_checkpoint,
    layout,
    quantize_checkpoint,
)
from kbitlib.quant import Format, quantize
from kbitlib.quant.format import every_format

MIB = 2**20


def weights(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of every kind of tensor: matrices in four types, and what is no floating matrix."""
    found = weights(a=(6, 70), b=(5, 64), c=(4, 33), d=(3, 8), bias=(7,), kernel=(4, 3, 2), one=())
    found |= {"b": found["b"].bfloat16(), "c": found["c"].half(), "d": found["d"].double()}
    found |= {"ids": torch.arange(12).view(3, 4), "mask": torch.tensor([[True, False]]), "none": torch.empty(0, 4)}
    found["narrow"] = torch.ones(2, 2).to(torch.float8_e4m3fn)
    save_file(found, tmp_path / "source.safetensors")
    return tmp_path / "source.safetensors"


def test_every_name_shape_and_type_comes_back(source: Path, tmp_path: Path) -> None:
    checkpoint = quantize_checkpoint(source, "int4-b32", tmp_path / "out")
    dequantize_checkpoint(tmp_path / "out", tmp_path / "back.safetensors")
    before, after = load_file(source), load_file(tmp_path / "back.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in after.items()} == {n: (t.shape, t.dtype) for n, t in before.items()}
    quantized = {name for name, record in checkpoint.manifest.tensors.items() if record.format}
    assert quantized == {"a", "b", "c", "d", "none"}
    for name, tensor in before.items():
        expected = quantize(tensor, "int4-b32").dequantize() if name in quantized else tensor
        assert torch.equal(after[name].flatten().view(torch.uint8), expected.flatten().view(torch.uint8)), name


@pytest.mark.parametrize("shape", [(43, 50), (3, 64), (5, 4, 3)])
def test_what_is_stored_is_known_before_anything_is_quantized_in_every_format(shape: tuple[int, ...]) -> None:
    more = ("int4-row-zp", "int3-b32-zpf-bf16", "nf4-b64-dq", "nf3-b16-fp32-mse", "int4-tensor", "int5-b64-p99.9")
    for format in (*map(str, every_format()), *more):
        found = quantize(weights(w=shape)["w"], format)
        expected = {f"w.{array}": (CODES[values.dtype], tuple(values.shape)) for array, values in found.arrays.items()}
        assert layout("w", Record(dtype="F32", shape=shape, role="linear", format=format)) == expected, format


@pytest.mark.parametrize("format", ["int4-row-zp", "nf4-b64-dq", "nvfp4", "mxfp6", "kmeans3", "vq2c8", "e8c12", "q2.3"])
def test_arrays_are_those_of_the_quantized_tensor(format: str, tmp_path: Path) -> None:
    found = weights(odd=(43, 50))
    save_file(found, tmp_path / "source.safetensors")
    checkpoint = quantize_checkpoint(tmp_path / "source.safetensors", format, tmp_path / "out")
    expected = quantize(found["odd"], format)
    stored = load_file(tmp_path / "out" / "source.safetensors")
    assert stored.keys() == {f"odd.{array}" for array in expected.arrays}
    for array, values in expected.arrays.items():
        assert torch.equal(stored[f"odd.{array}"].view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(checkpoint.dequantized("odd"), expected.dequantize())
    assert checkpoint.summary()["bits_per_weight"] == expected.bits_per_weight
    assert checkpoint.manifest.tensors["odd"].format == str(Format.parse(format))


@pytest.mark.parametrize("format", ["int3-b64", "ternary-row-bf16", "int5-b32-zp", "log3-b50", "e2m1-b32-e8m0"])
def test_a_matrix_quantized_in_pieces_is_the_matrix_quantized_at_once(format: str, tmp_path: Path) -> None:
    rows = 3 * PIECE // 1000 + 7  # four pieces, the last one short
    matrix = weights(m=(rows, 999))["m"]
    save_file({"m": matrix}, tmp_path / "source.safetensors")
    checkpoint = quantize_checkpoint(tmp_path / "source.safetensors", format, tmp_path / "out")
    expected = quantize(matrix, format)
    for array, values in checkpoint.read("m").arrays.items():
        assert torch.equal(values.view(torch.uint8), expected.arrays[array].view(torch.uint8)), array
    error = (expected.dequantize().double() - matrix).norm() / matrix.double().norm()
    assert checkpoint.manifest.tensors["m"].error == pytest.approx(float(error), rel=1e-5)  # summed in float32


def test_hqq_needs_no_data_and_its_error_in_its_own_norm_is_below_that_of_rounding(tmp_path: Path) -> None:
    found = weights(m=(40, 256))
    save_file(found, tmp_path / "source.safetensors")
    norms = {}
    for method in ("rtn", "hqq"):
        quantize_checkpoint(tmp_path / "source.safetensors", "int3-b64-zpf", tmp_path / method, method)
        restored = Checkpoint(tmp_path / method).dequantized("m")
        norms[method] = (restored - found["m"]).abs().pow(0.7).sum()
    assert norms["hqq"] < norms["rtn"]


def test_files_are_plain_safetensors_aligned_and_without_gaps(source: Path, tmp_path: Path) -> None:
    quantize_checkpoint(source, "int3-b32-zp", tmp_path / "out")
    path = tmp_path / "out" / "source.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert length % 8 == 0
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            assert header[name]["data_offsets"][0] % file.get_tensor(name).itemsize == 0


def refused(*arguments: object, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        quantize_checkpoint(*arguments)
    assert "\n" not in str(caught.value)


def test_nothing_is_left_behind_when_a_weight_is_nan(tmp_path: Path) -> None:
    found = weights(fine=(8, 8), zz=(8, 8))
    found["zz"][3, 3] = torch.nan
    save_file(found, tmp_path / "source.safetensors")
    refused(tmp_path / "source.safetensors", "int4", tmp_path / "out", match=r"tensor zz: 1 of 64 values are NaN")
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]


def test_an_existing_folder_is_never_touched(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    refused(source, "int4", tmp_path / "out", match="exists")
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused(source, "int4", tmp_path / "link", match="exists")


@pytest.mark.parametrize(
    ("content", "match"), [(b"", "no sound"), (b"\x80\x04junk" * 9, "no sound"), (b"\xff" * 8 + b"{}", "no sound")]
)
def test_a_file_that_is_not_sound_is_refused(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(content)
    refused(tmp_path / "broken.safetensors", "int4", tmp_path / "out", match=match)


def test_a_cut_file_is_refused(source: Path, tmp_path: Path) -> None:
    source.write_bytes(source.read_bytes()[:-4])
    refused(source, "int4", tmp_path / "out", match="no sound safetensors")


def test_a_file_without_a_floating_matrix_is_refused(tmp_path: Path) -> None:
    save_file({"bias": torch.ones(4), "ids": torch.ones(4, 4, dtype=torch.int64)}, tmp_path / "s.safetensors")
    refused(tmp_path / "s.safetensors", "int4", tmp_path / "out", match="no floating matrix")


def test_names_that_would_collide_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.ones(4, 4), "w.codes": torch.ones(3)}, tmp_path / "s.safetensors")
    refused(tmp_path / "s.safetensors", "int4", tmp_path / "out", match="names")


def edit(folder: Path, change: str) -> None:
    manifest = json.loads((folder / "kbit.json").read_text())
    shard = folder / "source.safetensors"
    arrays = load_file(shard)
    if change == "version":
        manifest["version"] = 2
    elif change == "not json":
        manifest = "kbit"
    elif change == "shape":
        manifest["tensors"]["a"]["shape"] = [6, 71]
    elif change == "negative":
        manifest["tensors"]["a"]["shape"] = [-6, -70]
    elif change == "type":
        manifest["tensors"]["a"]["dtype"] = "I64"
    elif change == "format":
        manifest["tensors"]["a"]["format"] = "int9"
    elif change == "missing":
        del arrays["a.scales"]
    elif change == "size":
        arrays["a.codes"] = arrays["a.codes"][:-1].clone()
    elif change == "array type":
        arrays["a.scales"] = arrays["a.scales"].view(torch.bfloat16)
    elif change == "kept":
        del arrays["bias"]
    (folder / "kbit.json").write_text(json.dumps(manifest))
    save_file(arrays, shard)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("version", "version"),
        ("not json", r"kbit\.json"),
        ("shape", r"a\.codes"),
        ("negative", "shape"),
        ("type", "a cannot have been quantized from I64"),
        ("format", "int9"),
        ("missing", r"a\.scales"),
        ("size", r"a\.codes"),
        ("array type", r"a\.scales"),
        ("kept", "bias"),
    ],
)
def test_a_folder_that_was_tampered_with_is_refused(change: str, match: str, source: Path, tmp_path: Path) -> None:
    quantize_checkpoint(source, "int4-b32", tmp_path / "out")
    edit(tmp_path / "out", change)
    with pytest.raises(ValueError, match=match) as caught:
        Checkpoint(tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not a quantized folder"):
        Checkpoint(tmp_path)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 384 MiB whose largest tensors have 64 MiB; the same weights for all, since only their size counts."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    matrix = weights(m=(4096, 4096))["m"]
    save_file({f"layer{n}": matrix.clone() for n in range(6)}, path)
    yield path
    path.unlink()


PEAK = """
import re, sys
from pathlib import Path
import torch
from kbitlib.models.checkpoint import quantize_checkpoint
from kbitlib.quant import quantize

def status(field):
    return int(re.search(rf"{field}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

quantize(torch.ones(1, 64), sys.argv[2])  # what is loaded or compiled once is no part of it
baseline = status("VmRSS")
quantize_checkpoint(*sys.argv[1:4])
print(status("VmHWM") - baseline)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_below_three_times_the_largest_tensor(large: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PEAK, str(large), "nf4-b64", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert 0 < int(done.stdout) < 3 * 64 * MIB
    assert len(Checkpoint(tmp_path / "out").manifest.tensors) == 6


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_run_leaves_no_folder_and_the_next_one_works(tmp_path: Path) -> None:
    source, out = tmp_path / "source.safetensors", tmp_path / "out"
    save_file(weights(m=(2048, 2048)), source)
    code = "import sys; from kbitlib.models.checkpoint import quantize_checkpoint; quantize_checkpoint(*sys.argv[1:])"
    with subprocess.Popen([sys.executable, "-c", code, source, "kmeans8-b64", out]) as process:  # takes a second
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".unfinished-*/part/*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".unfinished-*"))
    assert not out.exists()
    quantize_checkpoint(source, "int8-b64", out)
    assert Checkpoint(out).manifest.tensors.keys() == {"m"}
