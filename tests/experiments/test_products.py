"""Products against the clock: what is timed, what is told of it, and what it comes to."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from kbitlib.experiments.clock import cache_bytes
from kbitlib.experiments.peers import copies, others
from kbitlib.experiments.products import measure_products, product_formats
from kbitlib.experiments.speed import in_own_process
from kbitlib.experiments.timing import Products, as_options
from kbitlib.kernels import obstacle
from kbitlib.quant import Format
from kbitlib.report.speed import Target, bandwidth, limits, products, products_text, published_on_gpu, targets

FORMATS = ["nf4-b64", "int8-b64"]


@pytest.fixture(scope="module")
def records() -> pd.DataFrame:
    return pd.DataFrame(measure_products(FORMATS, rows=80, columns=128, batches=[1, 3], rounds=1))


def test_every_format_is_timed_at_every_batch_beside_unquantized_products(records: pd.DataFrame) -> None:
    timed = products(records)
    found = set(zip(timed.implementation, timed.format, timed.activation_bits, timed.batch, strict=True))
    for batch in (1, 3):
        assert {("torch", "bf16", 16, batch), ("torch", "fp32", 16, batch)} <= found
        assert {("kbitlib", "nf4-b64", 16, batch), ("kbitlib", "int8-b64", 8, batch)} <= found
        assert ("dequantize first", "nf4-b64", 16, batch) in found
    assert (timed.ms > 0).all()
    assert (timed.waited >= 0).all()


def test_bytes_are_those_of_the_weight_the_inputs_and_the_outputs(records: pd.DataFrame) -> None:
    plain = records[(records.implementation == "torch") & (records.format == "bf16") & (records.batch == 3)]
    assert plain.bytes.item() == 2 * (80 * 128 + 3 * 128 + 3 * 80)
    ours = products(records)
    ours = ours[(ours.implementation == "kbitlib") & (ours.batch == 1)].set_index(["format", "activation_bits"])
    stored = 80 * 128 * (4.25 / 8)
    assert stored <= ours.bytes["nf4-b64", 16] - 2 * (80 + 128) <= stored + 64  # and a table of levels
    assert set(ours.bits_per_weight) == {4.25, 8.25}


def test_errors_are_those_of_rounding_alone(records: pd.DataFrame) -> None:
    ours = records[(records.implementation == "kbitlib") & records.cached.eq(False)]
    assert (ours.error_float32 < 1e-5).all()
    assert ours.error_bfloat16.between(5e-4, 4e-3).all()
    assert (ours.error_unrounded <= ours.error_bfloat16).all()


def test_the_operator_and_the_memory_have_their_rows(records: pd.DataFrame) -> None:
    assert bandwidth(records) > 0
    (overhead,) = records[records.task == "overhead"].to_dict("records")
    assert overhead["ms"] > 0 < overhead["bare_ms"]
    assert set(records["rows"]) == {80}
    assert {"device", "processor", "threads", "cache", "torch", "rounds"} <= set(records.columns)


def test_what_is_absent_says_why() -> None:
    present, absent = others(torch.randn(64, 128), 0)
    assert {one.row["implementation"] for one in present} | set(absent) == {
        *("bitsandbytes", "torch int4pack", "torch int8pack")
    }
    assert all(absent.values())


def test_no_peer_is_given_a_size_on_which_one_crashes() -> None:
    present, absent = others(torch.randn(30, 50), 0)
    assert present == []
    assert all("multiples of 64" in reason for reason in absent.values())


def test_without_peers_ours_meets_bfloat16_alone() -> None:
    found = measure_products(["nf2-b64"], rows=64, columns=64, batches=[1], rounds=1, peers=False)
    names = {(row["implementation"], row["format"]) for row in found if row["task"] == "matmul"}
    assert names == {("torch", "bf16"), ("kbitlib", "nf2-b64"), ("dequantize first", "nf2-b64")}


def test_copies_exceed_what_is_to_be_rotated_within_bounds() -> None:
    assert len(copies(0, 10, 95, int)) == 10
    assert len(copies(0, 1000, 95, int)) == 2
    assert len(copies(0, 1, 10**9, int)) == 128


def test_a_format_without_a_product_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="ternary"):
        measure_products(["ternary"], rows=64, columns=64, batches=[1], rounds=1)


def test_all_that_is_timed_by_default_can_be_packed() -> None:
    formats = [Format.parse(name) for name in product_formats(range(2, 9))]
    assert not any(obstacle(one, 4096) for one in formats)
    assert {one.k for one in formats} == set(range(1, 9))


def test_the_size_of_the_last_cache_is_known() -> None:
    assert 2**18 <= cache_bytes() <= 2**32


def test_settings_become_options_that_the_measuring_process_takes() -> None:
    settings = Products(rows=64, columns=64, batches=(1, 2), rounds=1, formats=("nf4-b64",), device="cpu", peers=False)
    options = as_options(settings)
    assert options[-1] == "--no-peers"
    rows = in_own_process("matmul", *options)
    assert {row["batch"] for row in rows if row["task"] == "matmul"} == {1, 2}


def made_up(**changes: float) -> pd.DataFrame:
    """Records of a machine that reads a thousand bytes a millisecond."""
    ms = {"bf16": 10.0, "nf2-b64": 2.0, "nf4-b64": 4.0, "bitsandbytes": 5.0} | changes
    common = {"task": "matmul", "batch": 1, "activation_bits": 16, "cached": False, "device": "cpu", "waited": 0.0}
    error = {"error_float32": 1e-6, "error_bfloat16": 2e-3, "error_unrounded": 1e-3, "bits_per_weight": 4.25}
    rows = [{**common, "implementation": "torch", "format": "bf16", "k": 16, "bytes": 5000, "ms": ms["bf16"]}]
    for k, cached in ((2, 1.9), (4, 1.0)):
        own = {**common, **error, "implementation": "kbitlib", "format": f"nf{k}-b64", "k": k, "bytes": 800 * k}
        rows += [{**own, "ms": ms[f"nf{k}-b64"]}, {**own, "ms": cached, "cached": True}]
    rows.append({**common, "implementation": "bitsandbytes", "format": "nf4-b64-fp32", "k": 4, "bytes": 3500})
    rows[-1]["ms"] = ms["bitsandbytes"]
    rows.append({"task": "memory", "implementation": "memory", "format": "read", "bytes": 1000, "ms": 1.0})
    about = {"rows": 4096, "columns": 4096, "processor": "none", "threads": 2, "rounds": 1, "device": "cpu"}
    return pd.DataFrame([{**row, **about} for row in rows])


def test_the_larger_of_reading_and_computing_is_the_limit() -> None:
    table = limits(made_up(), ["nf2-b64", "nf3-b64", "nf4-b64"], bandwidth(made_up())).set_index("format")
    assert table.limited_by.to_dict() == {"nf2-b64": "instructions", "nf4-b64": "memory"}
    assert table.times_limit["nf2-b64"] == pytest.approx(2.0 / 1.9)
    assert table.times_limit["nf4-b64"] == pytest.approx(4.0 / 3.2)


def test_a_weight_that_no_cache_holds_is_limited_by_what_is_known() -> None:
    records = made_up()
    table = limits(records[~records.cached.eq(True)], ["nf2-b64"], bandwidth(records))
    assert table.limited_by.item() == "memory"
    assert pd.isna(table.cached_ms.item())


def test_targets_are_met_or_missed_by_the_numbers() -> None:
    found = {one.what: one for one in targets(made_up())}
    assert found["batch 1: k = 4 over bitsandbytes"].met
    assert not found["batch 1: k = 4, times as fast as bfloat16"].met
    assert found["batch 1: k = 2 over k = 4"].found == 0.5
    assert not {one.what: one for one in targets(made_up(bitsandbytes=4.0))}["batch 1: k = 4 over bitsandbytes"].met
    assert json.loads(json.dumps([one.row for one in found.values()]))[0]["task"] == "target"
    assert str(Target("speed", 5.0, 4.0, least=True)) == "met    speed: 5, to be ≥ 4"
    assert str(Target("time", 5.0, 4.0)) == "MISSED time: 5, to be ≤ 4"


def test_the_text_holds_every_product(records: pd.DataFrame) -> None:
    lines = products_text(records.to_dict("records")).splitlines()
    assert len(lines) >= 1 + len(products(records))
    assert any(line.startswith("kbitlib") and "int8-b64-a8" in line for line in lines)


def test_a_busy_machine_is_told() -> None:
    rows = made_up().assign(waited=0.5).to_dict("records")
    assert "busy" in products_text(rows)
    assert "busy" not in products_text(made_up().to_dict("records"))


def test_published_records_of_a_gpu_are_shown_by_size_and_with_their_origin(tmp_path: Path) -> None:
    assert published_on_gpu(tmp_path) == []
    for name, device in (("laptop", "cpu"), ("server", "cuda")):
        (tmp_path / name).mkdir()
        records = pd.concat([made_up().assign(device=device, rows=rows) for rows in (8192, 28672)])
        records.to_csv(tmp_path / name / "matmul.csv", index=False)
        about = {"started": "2026-03-01T14:05:09+00:00", "commit": "0123456789abcdef", "packages": {"torch": "2.11"}}
        (tmp_path / name / "provenance.json").write_text(json.dumps({**about, "command": "kbit bench matmul"}))
    found = published_on_gpu(tmp_path)
    assert [set(run["rows"]) for _, run in found] == [{8192}, {28672}]
    assert all("1 March 2026" in words and "0123456789," in words and "server" in words for words, _ in found)
    assert all(products(run).ratio.notna().all() for _, run in found)
    assert targets(found[0][1])
