"""Causal language models in Hugging Face folders, read from disk and never from a hub."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kbitlib.data.batches import windows
from kbitlib.data.corpus import CorpusSettings, prepare
from kbitlib.data.corpus import load as load_corpus
from kbitlib.runs.store import Store


class Pretrained(BaseModel):
    """A model folder, known by the hash of its files, and the text it is measured on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    content: str  # sha256 of the folder's files, by `identify_folder`
    corpus: CorpusSettings
    context: int = Field(ge=2)
    held_out: int = Field(ge=1)  # tokens of the test split, in the model's own tokens
    device: str = "cpu"

    @property
    def name(self) -> str:
        return Path(self.folder).name


TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length")  # as the configurations name them


def check_config(path: Path, context: int) -> None:
    """Raise ValueError, naming the file, for a configuration that is no JSON object or has too few positions."""
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ValueError(f"{str(path)!r} is no model configuration: it names no model_type")
    for name in POSITIONS:
        if isinstance(config.get(name), int) and config[name] < context:
            raise ValueError(f"{str(path)!r} allows {config[name]} positions, fewer than the context of {context}")


def identify_folder(folder: str, context: int) -> str:
    """The sha256 over a model folder's configuration, tokenizer and safetensors files; raises ValueError if it is no
    such folder."""
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ValueError(f"{folder!r} is not a Hugging Face model folder: it has no config.json")
    shards = sorted(path.glob("*.safetensors"))
    if not shards:
        raise ValueError(f"{folder!r} holds no .safetensors file, the only form of weights that is ever loaded")
    for shard in shards:
        try:
            with safe_open(shard, framework="pt"):  # reads and checks the header alone
                pass
        except SafetensorError as error:
            raise ValueError(f"{shard.name} in {folder!r} is no sound safetensors file: {error}") from None
    if not any((path / name).is_file() for name in TOKENIZERS):
        raise ValueError(f"{folder!r} holds no tokenizer; one of {', '.join(TOKENIZERS)} is needed")
    check_config(path / "config.json", context)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors", ".txt", ".model")):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


class Logits(nn.Module):
    """A ``transformers`` model that maps tokens (batch, time) to logits (batch, time, vocabulary)."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def get_output_embeddings(self) -> nn.Module:
        module: nn.Module = self.inner.get_output_embeddings()
        return module

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.inner(tokens).logits
        return logits


def load_pretrained(settings: Pretrained, store: Store) -> tuple[nn.Module, np.ndarray]:
    """The model in float32 and its held-out windows (n, context + 1) of token numbers.

    Raises ValueError when the extra ``hub`` is missing, or the folder holds no readable causal language model and
    tokenizer.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise ValueError("pretrained models need the extra `hub`: pip install 'kbit-lab[hub]'") from None
    local = {"local_files_only": True, "trust_remote_code": False}
    model: Any
    loading: dict[str, Any]
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            settings.folder, use_safetensors=True, dtype="float32", output_loading_info=True, **local
        )
        tokenizer = AutoTokenizer.from_pretrained(settings.folder, **local)
    except Exception as error:  # what a foreign folder may make a library raise has no end
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{settings.folder!r} does not load as a causal language model with its tokenizer: {reason}"
        ) from None
    if lacking := sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]])):
        raise ValueError(f"{settings.folder!r} lacks weights that its model needs: {', '.join(lacking[:3])}")
    text = load_corpus(store.get_or_compute(prepare, settings.corpus))["test"]
    needed = 16 * settings.held_out  # bytes; few tokens are longer
    tokens = np.asarray(tokenizer(text[:needed].tobytes().decode("utf-8", "replace"))["input_ids"])
    if not len(tokens):
        raise ValueError(f"the tokenizer in {settings.folder!r} finds no tokens in the text")
    return Logits(model).to(settings.device).eval(), windows(
        tokens, count_tokens=settings.held_out, context=settings.context
    )
