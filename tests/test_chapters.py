"""The chapters as a user runs them: with the smoke profile, killed and resumed, with pretrained models."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from kbitlib.data.corpus import CorpusSettings, identify
from kbitlib.experiments.settings import CHAPTERS
from kbitlib.models.pretrained import Pretrained, identify_folder, load_pretrained
from kbitlib.runs.store import Store

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = [
    *("model", "seed", "params_nonemb", "params", "tokens", "format", "method", "element", "k", "block"),
    *("bits_per_weight", "total_bits", "loss", "loss_se", "delta", "delta_se"),
]
TINY = {"widths": [8, 16], "depths": [1, 1], "seeds": [2, 1], "tokens": [4096, 8192, 12_288], "held_out": 2048}


def given(**values: object) -> list[str]:
    return [part for name, value in values.items() for part in ("-p", name, json.dumps(value))]


def snapshot(store: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in store.glob("*/*/record.json")}


def test_every_chapter_is_done_and_has_its_page(smoke: Path) -> None:
    chapters = json.loads((smoke / "run.json").read_text())["chapters"]
    assert {name: chapter["status"] for name, chapter in chapters.items()} == dict.fromkeys(CHAPTERS, "done")
    for name in CHAPTERS:
        page = (smoke / f"{name}.html").read_text(encoding="utf-8")
        assert "A figure without a description" not in page
        assert "Traceback" not in page
    index = (smoke / "index.html").read_text(encoding="utf-8")
    assert all(f"{name}.html" in index for name in CHAPTERS)


@pytest.mark.parametrize("table", ["family", "quantization", "finetuning", "methods"])
def test_records_stand_beside_the_store_in_the_promised_columns(smoke: Path, table: str) -> None:
    frame = pd.read_csv(smoke / "records" / f"{table}.csv")
    assert list(frame.columns[: len(COLUMNS)]) == COLUMNS
    assert frame[COLUMNS].notna().all().all()


def test_speeds_are_recorded_with_what_was_timed(smoke: Path) -> None:
    timed = pd.read_csv(smoke / "records" / "matmul.csv")
    written = pd.read_csv(smoke / "records" / "generation.csv")
    assert {"kbitlib", "torch", "dequantize first"} <= set(timed.implementation)
    assert (timed[timed.task == "matmul"][["ms", "bytes"]] > 0).all().all()
    assert {16, 4, 2} <= set(written.k)
    assert (written.tokens_per_s > 0).all()


def test_what_the_quantization_table_holds(smoke: Path) -> None:
    frame = pd.read_csv(smoke / "records" / "quantization.csv")
    family = pd.read_csv(smoke / "records" / "family.csv")
    assert frame["total_bits"].dtype.kind == "i"  # counted, whichever chapter kept the table last
    full = family[family.tokens == family.tokens.max()].set_index(["model", "seed"]).loss
    at = frame[frame.block == 64]
    assert set(at[at.element == "int"].k) == set(range(2, 9))
    assert {"int", "nf", "float", "pot", "log", "quantile", "kmeans", "binary", "ternary"} == set(at.element)
    assert not frame.duplicated(["model", "seed", "format"]).any()
    for row in frame.itertuples():
        assert row.loss - row.delta == pytest.approx(full[row.model, row.seed], abs=1e-9)
        assert row.total_bits == pytest.approx(row.bits_per_weight * row.params_nonemb)
        assert row.total_bits_all == pytest.approx(row.total_bits + 16 * (row.params - row.params_nonemb))
        assert row.bits_per_weight > row.k


def gains(path: Path, method: str) -> pd.DataFrame:
    """By how much a method's loss lies below rounding to nearest in the same format, by width and model; its error."""
    frame = pd.read_csv(path).set_index(["k", "model", "format"])
    nearest, other = frame[frame.method == "rtn"], frame[frame.method == method]
    both = other.join(nearest.add_suffix("_nearest"), how="inner")
    error = (both.delta_se**2 + both.delta_se_nearest**2) ** 0.5
    return pd.DataFrame({"gain": both.delta_nearest - both.delta, "error": error})


def test_gptq_loses_less_than_rounding_to_nearest(smoke: Path) -> None:
    found = gains(smoke / "records" / "methods.csv", "gptq")
    assert set(found.index.get_level_values("k")) == {2, 3, 4}
    assert (found.gain[2] > 0).all()
    assert (found.gain > -2 * found.error).all()  # at 4 bits these toys hardly lose anything
    assert (found.groupby("k").gain.mean() > 0).all()


def test_in_the_published_run_gptq_loses_less_at_every_size_and_width() -> None:
    found = gains(ROOT / "reports" / "published" / "laptop" / "methods.csv", "gptq")
    assert len(found) == 18
    assert (found.gain > 0).all()


def test_every_method_is_measured_at_each_width_on_every_size_with_its_error(smoke: Path) -> None:
    frame = pd.read_csv(smoke / "records" / "methods.csv")
    assert set(frame.method) == {"rtn", "gptq", "awq", "hqq", "rotation", "outliers"}
    assert "vq" in set(frame.element)
    cases = frame.groupby(["method", "element", "k"]).model.nunique()
    assert (cases == 6).all()
    assert len(cases) == 7 * 3
    assert (frame.delta_se > 0).all()


def test_the_answer_is_what_the_records_say_to_a_script_that_shares_no_code(smoke: Path) -> None:
    script = ROOT / "tests" / "laws" / "recompute_best_k.py"
    command = [sys.executable, str(script), str(smoke / "records" / "quantization.csv")]
    recomputed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    answer = json.loads((smoke / "records" / "answer.json").read_text())
    assert answer["k"] == recomputed["best_k"]
    assert answer["share"] == pytest.approx(recomputed["share"])
    assert answer["range"] == pytest.approx(recomputed["budgets"])
    assert [[c["from"], c["to"]] for c in answer["handovers"]] == [change[:2] for change in recomputed["hand_over"]]


def test_every_figure_has_its_data_and_vector_file(smoke: Path) -> None:
    drawings = sorted((smoke / "figures").glob("*.svg"))
    assert len(drawings) >= 15
    for drawing in drawings:
        with drawing.with_suffix(".csv").open(newline="") as file:
            assert len(list(csv.reader(file))) > 1


def test_a_second_run_computes_nothing(smoke: Path, kbit) -> None:
    before = snapshot(smoke / "store")
    tables = {path.name: path.read_bytes() for path in (smoke / "records").glob("*.csv")}
    done = kbit("run", "--profile", "smoke", store=smoke / "store")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("unchanged since") == len(CHAPTERS)
    assert snapshot(smoke / "store") == before
    assert {path.name: path.read_bytes() for path in (smoke / "records").glob("*.csv")} == tables


def test_status_tells_done_and_stale_and_never(smoke: Path, kbit, tmp_path: Path) -> None:
    facts = json.loads(kbit("status", "--profile", "smoke", "--json", store=smoke / "store").stdout)
    assert {chapter["status"] for chapter in facts["chapters"].values()} == {"done"}
    assert facts["store"]["never"] == facts["store"]["failed"] == 0
    nothing = json.loads(kbit("status", "--profile", "smoke", "--json", store=tmp_path / "store").stdout)
    assert {chapter["status"] for chapter in nothing["chapters"].values()} == {"never"}
    assert nothing["store"]["records"] == 0


def test_a_run_killed_at_any_moment_goes_on_and_ends_with_the_same_table(kbit, tmp_path: Path) -> None:
    arguments = ("run", "00_start_here", "--profile", "smoke", *given(**TINY))
    undisturbed = kbit(*arguments, store=tmp_path / "whole" / "store")
    assert undisturbed.returncode == 0, undisturbed.stdout + undisturbed.stderr
    store = tmp_path / "killed" / "store"
    command = [sys.executable, "-m", "kbitlib.cli", *arguments]
    process = subprocess.Popen(
        command, env=os.environ | {"KBIT_STORE": str(store)}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(list(store.glob("trainer.train/*/record.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: time for path, time in snapshot(store).items() if "/.work/" not in path}  # being made when it died
    assert len([path for path in kept if "trainer.train" in path]) >= 2
    assert not (tmp_path / "killed" / "records" / "family.csv").exists()
    resumed = kbit(*arguments, store=store)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert kept.items() <= snapshot(store).items()
    tables = [(tmp_path / name / "records" / "family.csv").read_bytes() for name in ("whole", "killed")]
    assert tables[0] == tables[1]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three small GPT-2 models that share a byte tokenizer, as ``transformers`` saves them."""
    transformers = pytest.importorskip("transformers", reason="the extra `hub` is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="the extra `hub` is not installed")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    folders = []
    for width, depth in ((16, 1), (32, 2), (64, 4)):
        folder = tmp_path_factory.mktemp("models") / f"gpt2-{width}"
        config = transformers.GPT2Config(
            vocab_size=256, n_positions=64, n_embd=width, n_layer=depth, n_head=2, bos_token_id=0, eos_token_id=0
        )
        transformers.set_seed(width)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
        folders.append(str(folder))
    return folders


def test_a_model_that_lacks_a_weight_is_refused_by_name(pretrained: list[str], tmp_path: Path) -> None:
    shutil.copytree(pretrained[0], tmp_path / "lacking")
    weights = load_file(tmp_path / "lacking" / "model.safetensors")
    gone = next(name for name in weights if name.endswith("c_fc.weight"))
    del weights[gone]
    save_file(weights, tmp_path / "lacking" / "model.safetensors", metadata={"format": "pt"})
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"line {n} of a text with some {n * n} words" for n in range(6000)))
    settings = Pretrained(
        folder=str(tmp_path / "lacking"),
        content=identify_folder(str(tmp_path / "lacking"), 64),
        corpus=identify(CorpusSettings(source=str(text))),
        context=64,
        held_out=1024,
    )
    with pytest.raises(ValueError, match=r"lacks weights that its model needs: .*c_fc\.weight"):
        load_pretrained(settings, Store(tmp_path / "store"))


def test_pretrained_models_take_the_place_of_the_family(kbit, tmp_path: Path, pretrained: list[str]) -> None:
    small = {"elements": ["int", "nf"], "swept_elements": ["int"], "held_out": 1024}
    chapters = ("02_quantization_runs", "04_scaling_regression", "07_choose_bits")
    done = kbit("run", *chapters, "--profile", "smoke", *given(models=pretrained, **small), store=tmp_path / "store")
    assert done.returncode == 0, done.stdout + done.stderr
    frame = pd.read_csv(tmp_path / "records" / "quantization.csv")
    assert set(frame.model) == {"gpt2-16", "gpt2-32", "gpt2-64"}
    sizes = frame.groupby("model").params_nonemb.first()
    assert dict(sizes) == {"gpt2-16": 12 * 16**2, "gpt2-32": 24 * 32**2, "gpt2-64": 48 * 64**2}
    assert (frame[frame.k == 8].delta.abs() < 0.05).all()
    assert not list((tmp_path / "store").glob("trainer.train/*"))
    methods = pd.read_csv(tmp_path / "records" / "methods.csv")
    assert set(methods.method) == {"rtn", "gptq", "awq", "hqq", "outliers"}
    page = (tmp_path / "02_quantization_runs.html").read_text(encoding="utf-8")
    assert "Not taken by rotation: GPT2LMHeadModel is not rotated: its LayerNorm subtracts a mean" in page
