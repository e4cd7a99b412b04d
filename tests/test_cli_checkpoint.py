"""``kbit quantize``, ``inspect``, ``eval`` and ``dequantize`` on folders as ``transformers`` saves them."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from kbitlib.cli import main
from kbitlib.data.batches import windows
from kbitlib.models.checkpoint import load_quantized
from kbitlib.models.quantized import QuantizedLinear, quantized_copy
from kbitlib.quant import quantize

transformers = pytest.importorskip("transformers", reason="the extra `hub` is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="the extra `hub` is not installed")

VOCABULARY, POSITIONS, WIDTH = 300, 64, 48
COMMON = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "hidden_size": WIDTH}
HEADS = {"num_hidden_layers": 2, "num_attention_heads": 2}
GPT2 = {"vocab_size": VOCABULARY, "n_positions": POSITIONS, "n_embd": WIDTH, "n_layer": 2, "n_head": 2}
ARCHITECTURES = {
    "GPT2LMHeadModel": ("GPT2Config", {**GPT2, "bos_token_id": 0, "eos_token_id": 0}),
    "OPTForCausalLM": ("OPTConfig", {**COMMON, **HEADS, "ffn_dim": 80, "word_embed_proj_dim": 24}),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", {**COMMON, **HEADS, "intermediate_size": 80}),
    "BloomForCausalLM": ("BloomConfig", {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 2, "n_head": 2}),
    "LlamaForCausalLM": ("LlamaConfig", {**COMMON, **HEADS, "intermediate_size": 80}),
    "BertForMaskedLM": ("BertConfig", {**COMMON, **HEADS, "intermediate_size": 80}),
}  # fmt: skip
TEXT = "\n".join(f"line {n} says that {n} times {n} is {n * n}" for n in range(200))

Make = Callable[[str], Path]


def kbit(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def answer(*arguments: object) -> dict[str, Any]:
    result = kbit(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a small model of an architecture, with weights large enough to matter, and a tokenizer trained here."""
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(special.values()), show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT], trainer)
    made: dict[str, Path] = {}

    def make_one(name: str) -> Path:
        if name not in made:
            config, settings = ARCHITECTURES[name]
            transformers.set_seed(0)
            model = getattr(transformers, name)(getattr(transformers, config)(**settings))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.1 * torch.randn(parameter.shape)
            made[name] = tmp_path_factory.mktemp("models") / name
            model.save_pretrained(made[name], max_shard_size="60kB")
            transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(made[name])
        return made[name]

    return make_one


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_quantize_inspect_eval_dequantize(name: str, make: Make, text: Path, tmp_path: Path) -> None:
    source, out, back = make(name), tmp_path / "out", tmp_path / "back.safetensors"
    assert (source / "model.safetensors.index.json").is_file()
    original = tensors_of(source)
    told = answer("quantize", source, "--format", "int4-b32", "--out", out)
    assert {row["name"] for row in told["tensors"]} == original.keys()
    assert answer("inspect", out) == told

    reference = getattr(transformers, name).from_pretrained(source, dtype="float32").eval()
    head = reference.get_output_embeddings()
    linear = [
        module
        for module in reference.modules()
        if module is not head and (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")
    ]
    quantized = {row["name"]: row for row in told["tensors"] if row["format"]}
    assert len(quantized) == len(linear) >= 8

    answer("dequantize", out, "--out", back)
    restored = load_file(back)
    assert {n: (t.shape, t.dtype) for n, t in restored.items()} == {n: (t.shape, t.dtype) for n, t in original.items()}
    for tensor, before in original.items():
        if tensor not in quantized:
            assert torch.equal(restored[tensor], before), tensor
            continue
        turned = type(reference).__name__ == "GPT2LMHeadModel"  # all of its block layers are Conv1D
        packed = quantize(before.T if turned else before, "int4-b32")
        assert torch.equal(restored[tensor], packed.dequantize().T if turned else packed.dequantize()), tensor
        error = (restored[tensor] - before).norm() / before.norm()
        assert quantized[tensor]["error"] == pytest.approx(float(error), rel=1e-5)  # both summed in float32
        assert quantized[tensor]["bits_per_weight"] == packed.bits_per_weight

    filled = tmp_path / "filled"
    shutil.copytree(source, filled, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    save_file(restored, filled / "model.safetensors", metadata={"format": "pt"})
    reference = getattr(transformers, name).from_pretrained(filled, dtype="float32").eval()
    model = load_quantized(out).eval()
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == len(linear)
    tokens = torch.arange(2 * POSITIONS).view(2, POSITIONS)
    with torch.no_grad():
        logits, expected = model(tokens).logits, reference(tokens).logits
    # the same numbers, but a kernel may sum them in another order: some float32 roundings of the largest logit
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))

    losses = {folder: answer("eval", folder, "--text", text) for folder in (source, filled, out)}
    assert losses[out]["loss"] == pytest.approx(losses[filled]["loss"], abs=1e-5)
    assert losses[out]["loss_se"] == pytest.approx(losses[filled]["loss_se"], abs=1e-5)
    assert losses[out]["loss"] != losses[source]["loss"]
    assert 0 < losses[out]["loss_se"] < losses[out]["loss"]
    assert losses[out]["bits"] == 8 * losses[out]["bytes"] == 8 * told["bytes"]
    assert losses[source]["bytes"] == sum(tensor.nbytes for tensor in original.values())
    assert losses[out]["task"].startswith("masked, 15%" if name == "BertForMaskedLM" else "causal")


def test_the_loss_of_a_causal_model_is_that_which_transformers_computes(make: Make, tmp_path: Path) -> None:
    folder = make("LlamaForCausalLM")
    (tmp_path / "text.txt").write_text(TEXT[:400])
    told = answer("eval", folder, "--text", tmp_path / "text.txt")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = transformers.AutoTokenizer.from_pretrained(folder)(TEXT[:400], return_tensors="pt")["input_ids"][0]
    step = told["context"]
    starts = torch.arange(told["windows"]) * (len(ids) - 1 - step) // (told["windows"] - 1)
    windows = torch.stack([ids[start : start + step + 1] for start in starts])
    with torch.no_grad():
        losses = torch.stack([model(one[None], labels=one[None]).loss for one in windows])
    assert told["loss"] == pytest.approx(float(losses.mean()), abs=1e-5)
    assert told["loss_se"] == pytest.approx(float(losses.std() / len(losses) ** 0.5), abs=1e-5)


def test_a_bfloat16_model_comes_back_in_bfloat16(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = transformers.AutoModelForCausalLM.from_pretrained(make("LlamaForCausalLM"), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for method in ("rtn", "rotation"):
        told = answer("quantize", folder, "--format", "nf4", "--method", method, "--out", tmp_path / method)
        assert {row["dtype"] for row in told["tensors"]} == {"BF16"}
        answer("dequantize", tmp_path / method, "--out", tmp_path / f"{method}.safetensors")
        assert {t.dtype for t in load_file(tmp_path / f"{method}.safetensors").values()} == {torch.bfloat16}


METHOD_FORMATS = {
    "gptq": "int3-b32", "awq": "int3-b32", "hqq": "int3-b32-zpf", "rotation": "int3-b32", "outliers": "int8-row"
}  # fmt: skip


@pytest.mark.parametrize("method", METHOD_FORMATS)
def test_a_folder_made_by_any_method_is_the_model_that_the_library_makes(
    method: str, make: Make, text: Path, tmp_path: Path
) -> None:
    source = make("LlamaForCausalLM")
    calibration = [] if method in ("hqq", "rotation") else ["--calibration", text]
    format = METHOD_FORMATS[method]
    told = answer("quantize", source, "--format", format, "--method", method, *calibration, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "prepared").exists()
    assert told["method"] == method
    assert {row["name"] for row in told["tensors"]} == tensors_of(source).keys()
    tokens = np.array(transformers.AutoTokenizer.from_pretrained(source)(TEXT)["input_ids"])
    count = (len(tokens) - 1) // POSITIONS * POSITIONS
    seen = windows(tokens, count_tokens=count, context=POSITIONS)[:128, :-1]
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype="float32").eval()
    expected, size = quantized_copy(model, format, method, seen)
    assert size.quantized_bits == 8 * sum(
        row["bits_per_weight"] * np.prod(row["shape"]) / 8 for row in told["tensors"] if row["format"]
    )
    with torch.no_grad():
        batch = torch.from_numpy(seen[:2])
        logits, wanted = load_quantized(tmp_path / "out").eval()(batch).logits, expected(batch).logits
    # equal weights, summed in another order
    torch.testing.assert_close(logits, wanted, rtol=0, atol=2e-6 * float(wanted.abs().max()))


def test_gptq_is_better_than_rounding_on_what_it_was_calibrated_on(make: Make, text: Path, tmp_path: Path) -> None:
    source, outputs = make("GPT2LMHeadModel"), {}
    tokens = torch.tensor(transformers.AutoTokenizer.from_pretrained(source)(TEXT)["input_ids"][:POSITIONS])[None]
    for method in ("rtn", "gptq"):
        answer("quantize", source, "--format", "int2-b32", "--method", method, "--calibration", text,
               "--out", tmp_path / method)  # fmt: skip
        with torch.no_grad():
            outputs[method] = load_quantized(tmp_path / method).eval()(tokens).logits
    with torch.no_grad():
        true = transformers.AutoModelForCausalLM.from_pretrained(source).eval()(tokens).logits
    assert (outputs["gptq"] - true).norm() < (outputs["rtn"] - true).norm()


def test_a_tied_output_projection_stays_tied(make: Make, tmp_path: Path) -> None:
    answer("quantize", make("GPT2LMHeadModel"), "--format", "int4", "--out", tmp_path / "out")
    model: Any = load_quantized(tmp_path / "out")
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(model.lm_head.weight, tensors_of(make("GPT2LMHeadModel"))["transformer.wte.weight"])


def test_names_without_the_base_models_prefix_are_found(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(make("GPT2LMHeadModel"), folder, ignore=shutil.ignore_patterns("model*"))
    tensors = {n.removeprefix("transformer."): t for n, t in tensors_of(make("GPT2LMHeadModel")).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    told = answer("quantize", folder, "--format", "int4", "--out", tmp_path / "out")
    assert sum(row["format"] is not None for row in told["tensors"]) == 8
    assert sum(isinstance(module, QuantizedLinear) for module in load_quantized(tmp_path / "out").modules()) == 8


def test_convolutions_are_quantized_and_loaded(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=3)
    model = transformers.ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "model")
    told = answer("quantize", tmp_path / "model", "--format", "int8", "--out", tmp_path / "out")
    roles = {row["role"] for row in told["tensors"] if row["format"]}
    assert roles == {"convolution", "linear"}
    expected = copy.deepcopy(model)
    for module in expected.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.weight.data = quantize(module.weight, "int8").dequantize()
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load_quantized(tmp_path / "out").eval()(image).logits, expected(image).logits)


def test_what_people_read_names_what_was_kept(make: Make, text: Path, tmp_path: Path) -> None:
    told = kbit("quantize", make("LlamaForCausalLM"), "--format", "nf4", "--out", tmp_path / "out").output
    assert "lm_head.weight  F32  (300, 48)  32.0000 bits  kept: output projection" in told
    assert "model.norm.weight  F32  (48,)  32.0000 bits  kept: other" in told
    assert "nats a token (causal)" in kbit("eval", tmp_path / "out", "--text", text).output
    assert "bytes" in kbit("dequantize", tmp_path / "out", "--out", tmp_path / "back.safetensors").output


def refused(*arguments: object, words: list[str], code: int = 2) -> None:
    result = kbit(*arguments)
    assert result.exit_code == code, result.output
    (sentence,) = [line for line in result.output.splitlines() if line.startswith("Error:")]
    assert result.output.endswith(sentence + "\n")
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "nf9"], ["nf9"]),
        (["--format", "int4", "--method", "magic"], ["'magic'", "gptq"]),
        (["--format", "int4", "--method", "gptq"], ["gptq", "calibration"]),
        (["--format", "int4", "--method", "gptq", "--calibration", "no/such.txt"], ["no/such.txt"]),
        (["--format", "int4", "--method", "hqq"], ["hqq", "zpf"]),
    ],
)
def test_bad_options_are_refused(options: list[str], words: list[str], make: Make, tmp_path: Path) -> None:
    refused("quantize", make("LlamaForCausalLM"), *options, "--out", tmp_path / "out", words=words)
    assert not list(tmp_path.iterdir())


def damaged(folder: Path, damage: str) -> None:
    index = folder / "model.safetensors.index.json"
    shards = sorted(folder.glob("*.safetensors"))
    content = json.loads(index.read_text())
    if damage in ("missing shard", "broken shard", "pickle"):
        shards[1].write_bytes(b"\x80\x04junk")
    if damage in ("missing shard", "pickle"):
        shards[1].unlink()
    if damage == "pickle":
        index.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    if damage == "path":
        shutil.copy(shards[1], folder.parent / "outside.safetensors")
        content["weight_map"] = dict.fromkeys(content["weight_map"], "../outside.safetensors")
    if damage == "index":
        content = {"weight_map": [1, 2]}
    if damage in ("path", "index"):
        index.write_text(json.dumps(content))
    config = json.loads((folder / "config.json").read_text())
    changes = {"width": {"hidden_size": 96}, "architecture": {"architectures": ["Nothing"]}, "size": {"vocab_size": -5}}
    config |= changes.get(damage, {})
    (folder / "config.json").write_text(json.dumps(config))
    if damage == "config":
        (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing shard", ["index.json", "model-00002", "no safetensors file"]),
        ("broken shard", ["model-00002", "no sound safetensors"]),
        ("pickle", ["neither", "model.safetensors"]),
        ("path", ["../outside.safetensors"]),
        ("index", ["weight_map"]),
        ("config", ["config.json"]),
        ("width", ["shape", "configuration"]),
        ("architecture", ["Nothing"]),
        ("size", ["configuration of no LlamaForCausalLM"]),
    ],
)
def test_a_damaged_model_folder_is_refused(damage: str, words: list[str], make: Make, tmp_path: Path) -> None:
    shutil.copytree(make("LlamaForCausalLM"), tmp_path / "model")
    damaged(tmp_path / "model", damage)
    refused("quantize", tmp_path / "model", "--format", "int4", "--out", tmp_path / "out", words=words)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name and path.suffix != ".safetensors"]


def test_a_source_that_is_not_there_or_no_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"\x80\x04")
    (tmp_path / "empty").mkdir()
    for source in ("none.safetensors", "model.bin", "empty"):
        refused("quantize", tmp_path / source, "--format", "int4", "--out", tmp_path / "out", words=[source])


def test_folders_and_files_that_exist_are_refused(make: Make, tmp_path: Path) -> None:
    source = make("LlamaForCausalLM")
    refused("quantize", source, "--format", "int4", "--out", source, words=["exists"])
    answer("quantize", source, "--format", "int4", "--out", tmp_path / "out")
    (tmp_path / "file").touch()
    refused("dequantize", tmp_path / "out", "--out", tmp_path / "file", words=["exists"])
    refused("quantize", source, "--format", "int4", "--out", tmp_path / "file" / "out", words=["cannot use"], code=1)


def test_what_eval_cannot_measure_is_refused(make: Make, text: Path, tmp_path: Path) -> None:
    source = make("LlamaForCausalLM")
    (tmp_path / "empty.txt").touch()
    refused("eval", source, "--text", tmp_path / "empty.txt", words=["empty.txt", "0 tokens"])
    refused("eval", source, "--text", tmp_path / "none.txt", words=["none.txt"])
    refused("eval", tmp_path, "--text", text, words=["config.json"])
    refused("inspect", source, words=["not a quantized folder"])
    transformers.BertModel(transformers.BertConfig(**COMMON, **HEADS, intermediate_size=80)).save_pretrained(
        tmp_path / "base"
    )
    refused("eval", tmp_path / "base", "--text", text, words=["BertModel", "no causal or masked"])
    shutil.copytree(source, tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    refused("eval", tmp_path / "mute", "--text", text, words=["mute"])
