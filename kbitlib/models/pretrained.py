"""Causal language models in Hugging Face folders, read from disk and never from a hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
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


CALIBRATION = 2**13  # tokens that methods look at: more changed losses of this family by less than their noise
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
CONTEXT = 1024  # tokens, the longest window that a text is cut into
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


def import_transformers() -> Any:
    """The library, which is an extra; ValueError if it is not there."""
    try:
        import transformers
    except ImportError:
        raise ValueError("pretrained models need the extra `hub`: pip install 'kbit-lab[hub]'") from None
    transformers.logging.set_verbosity_error()  # what is missing is an error below
    transformers.logging.disable_progress_bar()
    return transformers


def architecture(folder: str | Path) -> tuple[Any, Any]:
    """The ``transformers`` class that a folder's configuration names, and the configuration; ValueError if none."""
    if not (path := Path(folder) / "config.json").is_file():
        raise ValueError(f"{str(folder)!r} is not a Hugging Face model folder: it has no config.json")
    check_config(path, context=0)
    transformers = import_transformers()
    config = read_part(transformers.AutoConfig, folder)
    found = getattr(transformers, str(next(iter(config.architectures or []), "")), None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ValueError(f"{str(path)!r} names no architecture that transformers has: {config.architectures}")
    return found, config


def read_weights(model_class: Any, folder: str | Path, **given: Any) -> nn.Module:
    """A folder's model in float32, or one of the configuration and tensors given; ValueError if a weight is missing."""
    how = {"use_safetensors": True, "dtype": "float32", "output_loading_info": True, **given}
    model, loading = read_part(model_class, folder, **how)
    if lacking := sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]])):
        raise ValueError(f"{str(folder)!r} lacks weights that its model needs: {', '.join(lacking[:3])}")
    return model


def read_part(kind: Any, folder: str | Path, **given: Any) -> Any:
    """What a class of ``transformers`` makes of a folder, with no network and no code from it; ValueError if it
    cannot."""
    place = None if "state_dict" in given else folder
    try:
        return kind.from_pretrained(place, local_files_only=True, trust_remote_code=False, **given)
    except Exception as error:  # what a foreign folder may make a library raise has no end
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{str(folder)!r} does not load as a {kind.__name__}: {reason}") from None


def own_names(names: Iterable[str], model: Any) -> dict[str, str]:
    """What a ``transformers`` model calls the tensors of a checkpoint, whose names may be older or lack a prefix."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [one for one in get_model_conversion_mapping(model) if isinstance(one, WeightRenaming)]
    own, prefix = model.state_dict(), model.base_model_prefix
    return {name: rename_source_key(name, renamings, [], prefix, own)[0] for name in names}


def read_tokenizer(folder: str | Path) -> Any:
    """A folder's tokenizer; ValueError if it has none that can be read."""
    return read_part(import_transformers().AutoTokenizer, folder)


def read_windows(folder: str | Path, config: Any, text: str | Path, spare: int = 0) -> tuple[Any, np.ndarray]:
    """A folder's tokenizer, and a whole text file in windows of tokens (n, context + 1) without special ones.

    The context is the longest that the configuration, less some spare positions, and 8 windows, for a standard error,
    allow. ValueError for a file that is not there or has fewer than three tokens, or if these are not the model's.
    """
    if not Path(text).is_file():
        raise ValueError(f"there is no text file {str(text)!r}")
    tokenizer = read_tokenizer(folder)
    content = Path(text).read_text(encoding="utf-8", errors="replace")
    tokens: Any = np.asarray(tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
    if len(tokens) < 3 or tokens.max() >= config.vocab_size:
        found = f"{len(tokens)} tokens" if len(tokens) < 3 else f"token {tokens.max()}"
        raise ValueError(f"{str(text)!r} has {found}; at least 3 are needed, all below {config.vocab_size}")
    given = [getattr(config, name, None) for name in POSITIONS]
    most = min([CONTEXT, *(one - spare for one in given if isinstance(one, int)), (len(tokens) - 1) // 8])
    context = max(1, most)
    return tokenizer, windows(tokens, count_tokens=(len(tokens) - 1) // context * context, context=context)


def load_pretrained(settings: Pretrained, store: Store) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """The model in float32, and the corpus in its own tokens (n,) by split: to be measured on, and to calibrate on.

    Raises ValueError when the extra ``hub`` is missing, or the folder holds no readable causal language model and
    tokenizer.
    """
    transformers = import_transformers()
    model = read_weights(transformers.AutoModelForCausalLM, settings.folder)
    splits = load_corpus(store.get_or_compute(prepare, settings.corpus))
    tokenizer, tokens = read_tokenizer(settings.folder), {}
    for split, count in (("test", settings.held_out), ("train", CALIBRATION)):
        text = splits[split][: 16 * count]  # bytes; few tokens are longer
        tokens[split] = np.asarray(tokenizer(text.tobytes().decode("utf-8", "replace"))["input_ids"])
        if not len(tokens[split]):
            raise ValueError(f"the tokenizer in {settings.folder!r} finds no tokens in the text")
    return Logits(model).to(settings.device).eval(), tokens
