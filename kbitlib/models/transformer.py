"""A decoder-only transformer over bytes, whose sizes differ in width and depth alone.

What is notable: rotary position embeddings, RMS normalisation without gains, normalised queries and keys, squared ReLU,
no biases, an output projection of its own. The blocks therefore hold linear weights and nothing else, so that the
number of
non-embedding parameters is exactly ``12 * width**2 * depth`` and all of them are quantized.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

VOCABULARY = 256  # bytes
ROTARY_BASE = 10_000.0  # Su et al. 2021, section 3.3


class Shape(BaseModel):
    """The size of a model: width, depth, and what all members of a family share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(ge=8, le=8192)
    depth: int = Field(ge=1, le=128)
    heads: int = Field(default=2, ge=1)
    context: int = Field(default=128, ge=2)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Shape:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is not a multiple of twice the {self.heads} heads")
        return self

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


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of queries or keys (batch, heads, time, channels) (Su et al. 2021, equation 34)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


class Block(nn.Module):
    """One layer: causal self-attention, then a feed-forward part four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, time, width = x.shape
        qkv = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, time, channels)
        q, k = rotate(rms_norm(q), cos, sin), rotate(rms_norm(k), cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, time, width))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attend(rms_norm(x), cos, sin)
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
        channels = shape.width // shape.heads // 2
        rates = ROTARY_BASE ** (-torch.arange(channels) / channels)
        angles = torch.outer(torch.arange(shape.context), rates)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

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

    def forward(self, tokens: Tensor) -> Tensor:
        time = tokens.shape[-1]
        if time > self.shape.context:
            raise ValueError(f"{time} tokens do not fit the context of {self.shape.context}")
        cos, sin = self.cos[:time], self.sin[:time]
        x = rms_norm(self.embedding(tokens))
        for block in self.blocks:
            x = block(x, cos, sin)
        logits: Tensor = self.unembedding(rms_norm(x))
        return logits


@torch.no_grad()
def generate(
    model: nn.Module, prompt: bytes, *, length: int, context: int, seed: int = 0, temperature: float = 0.7
) -> bytes:
    """Continue a prompt by ``length`` bytes drawn from a byte-level model's predictions, the same for the same seed.

    Raises ValueError for an empty prompt, from which nothing can be predicted.
    """
    if not prompt:
        raise ValueError("the prompt is empty; a model needs at least one byte to go on from")
    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt)
    for _ in range(length):
        logits = model(torch.tensor([tokens[-context:]]))[0, -1].float()
        tokens.append(int(torch.multinomial((logits / temperature).softmax(0), 1, generator=generator)))
    return bytes(tokens[len(prompt) :])
