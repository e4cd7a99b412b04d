"""Quantization-aware fine-tuning: the forward pass sees k-bit weights, the backward pass looks straight through.

The weights that are updated stay in full precision; each is rounded in every forward pass, and the gradient of the
rounded
weight is given to the unrounded one (Bengio et al. 2013; Jacob et al. 2018).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kbitlib.data.batches import random_batch
from kbitlib.models.layers import block_linears, weight_of
from kbitlib.models.transformer import Transformer
from kbitlib.quant import Format
from kbitlib.quant.fake import fake_quantize
from kbitlib.training.trainer import BETAS, CLIP, Training, language_model_loss

SEED_APART = 1_000_000  # fine-tuning draws other batches than training did


class StraightThrough(nn.Module):
    """Rounds a weight to a format on the way forward and passes its gradient on unchanged."""

    def __init__(self, format: Format) -> None:
        super().__init__()
        self.format = format

    def forward(self, weight: Tensor) -> Tensor:
        return fake_quantize(weight, self.format)


def finetune(
    model: Transformer, settings: Training, train: np.ndarray, *, format: str | None, tokens: int, learning_rate: float
) -> tuple[Transformer, list[float]]:
    """Train a copy of a model for so many more tokens, through weights rounded to ``format`` if one is given.

    Returns the copy, with unrounded weights, and the loss of every step. The rate falls linearly from
    ``learning_rate`` to 0.
    """
    tuned = copy.deepcopy(model)
    linears = [module for _, module in block_linears(tuned)]
    if format is not None:
        for linear in linears:
            parametrize.register_parametrization(linear, "weight", StraightThrough(Format.parse(format)))
    steps = max(1, round(tokens / (settings.batch * settings.shape.context)))
    curve = list(_updates(tuned, settings, train, steps, learning_rate))
    if format is not None:
        for linear in linears:
            latent = linear.get_parameter("parametrizations.weight.original").detach().clone()
            parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)
            weight_of(linear).copy_(latent)
    return tuned.eval(), curve


def _updates(
    model: Transformer, settings: Training, train: np.ndarray, steps: int, learning_rate: float
) -> Iterator[float]:
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), betas=BETAS, weight_decay=0.0, fused=True)
    for step in range(steps):
        batch = random_batch(
            train, batch=settings.batch, context=settings.shape.context, seed=settings.seed + SEED_APART, step=step
        )
        loss = language_model_loss(model, torch.from_numpy(batch).to(settings.device), settings.dtype)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        yield loss.item()
