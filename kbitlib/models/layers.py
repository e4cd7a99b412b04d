"""Which layers of a model are linear, and their weights as (out, in)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn

from kbitlib.models.transformer import Transformer


def block_linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers inside a model's blocks, by name: what is quantized. Embedding and output projection are
    not."""
    output = model.unembedding if isinstance(model, Transformer) else cast(Any, model).get_output_embeddings()
    for name, module in model.named_modules():
        if module is not output and is_linear(module):
            yield name, module


def is_linear(module: nn.Module) -> bool:
    """True of `nn.Linear` and of GPT-2's ``Conv1D``, which is a linear layer that keeps its weight transposed."""
    return isinstance(module, nn.Linear) or _transposed(module)


def weight_of(module: nn.Module) -> Tensor:
    """A linear layer's weight as (out, in), or a norm's gain (out,), detached; writing to it writes to the layer."""
    weight = module.get_parameter("weight").detach()
    return weight.T if _transposed(module) else weight


def _transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"
