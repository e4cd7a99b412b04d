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


def identify_folder(folder: str) -> str:
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
    try:
        model = AutoModelForCausalLM.from_pretrained(settings.folder, use_safetensors=True, dtype="float32", **local)
        tokenizer = AutoTokenizer.from_pretrained(settings.folder, **local)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{settings.folder!r} does not load as a causal language model with its tokenizer: {reason}"
        ) from None
    text = load_corpus(store.get_or_compute(prepare, settings.corpus))["test"]
    needed = 16 * settings.held_out  # bytes; few tokens are longer
    tokens = np.asarray(tokenizer(text[:needed].tobytes().decode("utf-8", "replace"))["input_ids"])
    return Logits(model).to(settings.device).eval(), windows(
        tokens, count_tokens=settings.held_out, context=settings.context
    )
