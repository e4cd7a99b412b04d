"""A decoder-only transformer over bytes, whose sizes differ in width and depth alone.

What is notable: rotary position embeddings, RMS normalisation without gains, normalised queries and keys, squared ReLU,
no biases, an output projection of its own. The blocks therefore hold linear weights and nothing else, so that the
number of
non-embedding parameters is exactly ``12 * width**2 * depth`` and all of them are quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kbitlib.models.cache import KVCache

VOCABULARY = 256  # bytes
ROTARY_BASE = 10_000.0  # Su et al. 2021, section 3.3
Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # new keys and values -> those of all tokens so far


@dataclass(frozen=True)
class Shape:
    """The size of a model: width, depth, and what all members of a family share.

    ValueError for a number out of range, and for a width that is not a multiple of twice the heads.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # where settings hold one

    width: int
    depth: int
    heads: int = 2
    context: int = 128

    def __post_init__(self) -> None:
        for name, least, most in (("width", 8, 8192), ("depth", 1, 128), ("heads", 1, 4096), ("context", 2, 2**20)):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {least} to {most}, not {getattr(self, name)}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is not a multiple of twice the {self.heads} heads")

    @property
    def name(self) -> str:
        return f"w{self.width}-d{self.depth}"

    @property
    def params_nonemb(self) -> int:
        """Parameters without embeddings: 4 width^2 in attention and 8 width^2 in the feed-forward part of each
        layer."""
        return 12 * self.width**2 * self.depth

    @property
    def params(self) -> int:
        """All parameters: the embedding and the output projection hold 256 vectors each."""
        return self.params_nonemb + 2 * VOCABULARY * self.width

    def flops_per_token(self) -> int:
        """Training FLOPs a token: 6 a parameter in a matrix product, and 12 width a position attended to (Kaplan et
        al. 2020)."""
        products = self.params_nonemb + VOCABULARY * self.width
        return 6 * products + 6 * self.depth * self.width * self.context


def rms_norm(x: Tensor) -> Tensor:
    """Root mean square normalisation without a gain (Zhang & Sennrich 2019)."""
    return F.rms_norm(x, (x.shape[-1],))


def rotations(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles (context, channels / 2) by which positions turn queries and keys."""
    channels = shape.width // shape.heads // 2
    rates = ROTARY_BASE ** (-torch.arange(channels) / channels)
    angles = torch.outer(torch.arange(shape.context), rates)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of queries or keys (batch, heads, time, channels) (Su et al. 2021, equation 34)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each query's mixture of values, for the last queries (batch, heads, time, channels) of all keys and values."""
    time, total = q.shape[2], k.shape[2]
    if time in (1, total):
        return F.scaled_dot_product_attention(q, k, v, is_causal=time == total)
    seen = torch.ones(time, total, dtype=torch.bool, device=q.device).tril(total - time)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


class Block(nn.Module):
    """One layer: causal self-attention, then a feed-forward part four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor, extend: Extend | None = None) -> Tensor:
        batch, time, width = x.shape
        qkv = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, time, channels)
        q, k = rotate(rms_norm(q), cos, sin), rotate(rms_norm(k), cos, sin)
        if extend is not None:
            k, v = extend(k, v)
        y = causal_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, time, width))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, extend: Extend | None = None) -> Tensor:
        x = x + self.attend(rms_norm(x), cos, sin, extend)
        return x + self.down(F.relu(self.up(rms_norm(x))).square())


class Transformer(nn.Module):
    """A byte-level language model of a given shape; ``forward`` maps bytes (batch, time) to logits (batch, time,
    256)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(VOCABULARY, shape.width)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads) for _ in range(shape.depth))
        self.unembedding = nn.Linear(shape.width, VOCABULARY, bias=False)
        cos, sin = rotations(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @torch.no_grad()
    def initialise(self, seed: int) -> Transformer:
        """Draw weights N(0, 1/fan_in); what writes to the residual stream starts at zero, so each layer starts as
        identity."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if name.endswith(("out.weight", "down.weight", "unembedding.weight")):
                weight.zero_()
            else:
                scale = 1.0 if name == "embedding.weight" else weight.shape[-1] ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
        return self

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits of tokens that follow those in the cache, which takes these up; ValueError beyond the context."""
        start, time = cache.length if cache is not None else 0, tokens.shape[-1]
        if start + time > self.shape.context:
            raise ValueError(f"{start + time} tokens do not fit the context of {self.shape.context}")
        cos, sin = self.cos[start : start + time], self.sin[start : start + time]
        x = rms_norm(self.embedding(tokens))
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, partial(cache.extend, i) if cache is not None else None)
        if cache is not None:
            cache.length += time
        logits: Tensor = self.unembedding(rms_norm(x))
        return logits


def generate(
    model: nn.Module,
    prompt: bytes,
    *,
    length: int,
    context: int,
    seed: int = 0,
    temperature: float = 0.7,
    cache_format: str | None = None,
) -> bytes:
    """Continue a prompt by ``length`` bytes drawn from a byte-level model's predictions, the same for the same seed.

    A `Transformer` keeps keys and values while they fit the context, in ``cache_format`` if there is one (see
    `KVCache`); another model reads its whole window for each byte. ValueError for an empty prompt, from which nothing
    can be predicted, and for the cache format of a model that keeps nothing.
    """
    return bytes(stream(model, prompt, length, context, seed, temperature, cache_format))


@torch.no_grad()
def stream(
    model: nn.Module, prompt: bytes, length: int, context: int, seed: int, temperature: float, cache_format: str | None
) -> Iterator[int]:
    """The bytes of `generate`, each as soon as it is drawn."""
    if not prompt:
        raise ValueError("the prompt is empty; a model needs at least one byte to go on from")
    cache = KVCache(context, cache_format) if isinstance(model, Transformer) else None
    if cache is None and cache_format is not None:
        raise ValueError(f"a {type(model).__name__} keeps no keys and values, so none in {cache_format}")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt)
    for _ in range(length):
        if cache is not None and len(tokens) > context:
            cache.clear()  # the window slides, and with it every position
        new = torch.tensor([tokens[-context:][cache.length if cache is not None else 0 :]], device=device)
        logits = (model(new, cache) if cache is not None else model(new))[0, -1].float().cpu()
        tokens.append(int(torch.multinomial((logits / temperature).softmax(0), 1, generator=generator)))
        yield tokens[-1]
