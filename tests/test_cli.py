"""What the command line refuses, and how: one sentence that names the value and what is allowed, exit code 2."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from kbitlib.cli import main
from kbitlib.runs.store import Store


def kbit(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KBIT_STORE", str(tmp_path / "out" / "store"))
    return tmp_path / "out" / "store"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--profile", "huge"], ["'huge'", "gpu, laptop, smoke"]),
        (["05_nothing", "--profile", "smoke"], ["'05_nothing'", "00_start_here"]),
        (["--profile", "smoke", "-p", "bitts", "3"], ["'bitts'", "bits"]),
        (["01_quantizer_theory", "--profile", "smoke", "-p", "bits", "9"], ["bits = 9", "8"]),
        (["01_quantizer_theory", "--profile", "smoke", "-p", "bits", "0"], ["bits = 0", "2"]),
        (["02_quantization_runs", "--profile", "smoke", "-p", "block", "-64"], ["block = -64"]),
        (["02_quantization_runs", "--profile", "smoke", "-p", "methods", '["gptqq"]'], ["gptqq", "'gptq'"]),
        (["02_quantization_runs", "--profile", "smoke", "-p", "methods", '["awq"]'], ["methods must hold rtn", "awq"]),
        (["02_quantization_runs", "--profile", "smoke", "-p", "method_bit_widths", "[9]"], ["9", "6"]),
        (["02_quantization_runs", "--profile", "smoke", "-p", "block", "7"], ["vq2c4-b7"]),
        (["02_quantization_runs", "--profile", "smoke", "-p", "elements", '["int", "float3"]'], ["float3"]),
        (["--profile", "smoke", "-p", "corpus", "no/such/text"], ["no/such/text"]),
        (["--profile", "smoke", "-p", "corpus", ""], ["corpus = ''"]),
        (["--profile", "smoke", "-p", "corpus", "5"], ["corpus = 5", "string"]),
        (["--profile", "smoke", "-p", "models", "5"], ["models = 5", "list"]),
        (["--profile", "smoke", "-p", "models", '["a/m", "b/m"]'], ["must differ", "m, m"]),
        (["--profile", "smoke", "-p", "held_out", "1"], ["held_out = 1", "64"]),
        (["--profile", "smoke", "-p", "learning_rate", '"0.1"'], ["learning_rate = '0.1'", "number"]),
        (["--profile", "smoke", "-p", "finetune_tokens", "[1]"], ["finetune_tokens", "1024"]),
        (["--profile", "smoke", "-p", "finetune_bits", "[2, 2]"], ["finetune_bits", "[2, 2]"]),
        (["--profile", "smoke", "--engine", "threads"], ["engine = 'threads'"]),
        (["02_quantization_runs", "--profile", "smoke", "-p", "models", '["/no/model"]'], ["/no/model", "config.json"]),
    ],
)
def test_bad_input_is_refused_before_anything_runs(arguments: list[str], words: list[str], own_store: Path) -> None:
    result = kbit("run", *arguments)
    assert result.exit_code == 2, result.output
    (sentence,) = [line for line in result.output.splitlines() if line.startswith("Error:")]
    assert all(word in sentence for word in words), sentence
    assert not own_store.parent.exists()


def test_an_empty_corpus_is_refused(tmp_path: Path, own_store: Path) -> None:
    (tmp_path / "empty.txt").touch()
    result = kbit("run", "--profile", "smoke", "-p", "corpus", str(tmp_path / "empty.txt"))
    assert result.exit_code == 2
    assert "empty.txt" in result.output
    assert not own_store.parent.exists()


def test_a_second_run_on_a_store_says_so_and_leaves(own_store: Path) -> None:
    with Store(own_store).lock():
        import os

        held = os.environ.pop("KBIT_LOCK_HELD")  # as another process would be
        try:
            result = kbit("run", "01_quantizer_theory", "--profile", "smoke")
        finally:
            os.environ["KBIT_LOCK_HELD"] = held
    assert result.exit_code == 1
    assert "Another run holds the store" in result.output


def test_a_model_whose_weights_are_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    result = kbit("run", "02_quantization_runs", "--profile", "smoke", "-p", "models", json.dumps([str(tmp_path)]))
    assert result.exit_code == 2
    assert "safetensors" in result.output


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": "not json"}, ["config.json", "not JSON"]),
        ({"config.json": "[]"}, ["model_type"]),
        ({"config.json": '{"model_type": "gpt2", "n_positions": 8}'}, ["8 positions", "64"]),
        ({"tokenizer.json": None}, ["no tokenizer"]),
        ({"model.safetensors": "junk"}, ["model.safetensors", "no sound safetensors"]),
    ],
)
def test_a_folder_that_is_no_sound_model_is_refused_before_anything_runs(
    tmp_path: Path, own_store: Path, files: dict[str, str | None], words: list[str]
) -> None:
    sound = {"config.json": '{"model_type": "gpt2"}', "tokenizer.json": "{}", "model.safetensors": None}
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.zeros(1)}, folder / "model.safetensors")
    for name, text in {**sound, **files}.items():
        if text is not None:
            (folder / name).write_text(text)
    result = kbit("run", "02_quantization_runs", "--profile", "smoke", "-p", "models", json.dumps([str(folder)]))
    assert result.exit_code == 2, result.output
    assert all(word in result.output for word in words), result.output
    assert not own_store.parent.exists()


def test_a_store_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KBIT_STORE", str(tmp_path / "file" / "store"))
    result = kbit("run", "01_quantizer_theory", "--profile", "smoke")
    assert result.exit_code == 1
    assert "Error: cannot use" in result.output


def test_formats_lists_every_width_with_exact_bits() -> None:
    rows = json.loads(kbit("formats", "--json").stdout)
    bits = {row["format"]: row["bits_per_weight"] for row in rows}
    assert bits["nf4-b64"] == bits["int4-b64"] == 4.25
    assert bits["binary-b64"] == 1.25
    assert {row["k"] for row in rows} >= {1, 1.58, 2, 3, 4, 5, 6, 7, 8}
    assert "nf4-b64" in kbit("formats").output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["matmul", "--batches", "1,x"], ["--batches", "'x'"]),
        (["matmul", "--batches", "0"], ["--batches", "'0'"]),
        (["matmul", "--formats", "int99"], ["int99"]),
        (["matmul", "--formats", "ternary"], ["ternary"]),
        (["matmul", "--formats", "nf4-b48"], ["48", "multiples of 32"]),
        (["matmul", "--size", "3"], ["--size", "3"]),
        (["matmul", "--device", "cuda"], ["cuda", "cpu is allowed"]),
        (["generate", "--bits", "9"], ["--bits", "'9'"]),
        (["generate", "--width", "100", "--heads", "16"], ["width", "100"]),
        (["sort"], ["sort"]),
    ],
)
def test_what_cannot_be_timed_is_refused(arguments: list[str], words: list[str]) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    result = kbit("bench", *arguments)
    assert result.exit_code == 2, result.output
    assert all(word in result.output for word in words), result.output


def test_products_are_timed_as_a_table_or_as_json() -> None:
    options = ("--rows", "64", "--columns", "128", "--batches", "1,2", "--rounds", "1", "--formats", "nf4-b64,int3-b64")
    rows = json.loads(kbit("bench", "matmul", "--json", *options).stdout)
    assert {row["format"] for row in rows if row.get("implementation") == "kbitlib"} == {"nf4-b64", "int3-b64"}
    assert {(row["rows"], row["columns"]) for row in rows if row["task"] == "matmul"} == {(64, 128)}
    assert all({"what", "found", "bar", "met"} <= set(row) for row in rows if row["task"] == "target")
    assert any(row["task"] == "target" for row in rows)
    text = kbit("bench", "matmul", *options).output
    assert "int3-b64" in text
    assert "GB/s" in text


def test_a_decoder_is_timed_at_each_width() -> None:
    options = ("--width", "64", "--depth", "1", "--heads", "2", "--bits", "16,4", "--tokens", "4")
    rows = json.loads(kbit("bench", "generate", "--json", *options).stdout)
    assert [row["k"] for row in rows] == [16, 4]
    assert "tokens a second" in kbit("bench", "generate", *options).output
