"""Loss on held-out tokens with its standard error, and paired differences between two models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEQUENCES_AT_ONCE = 32


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error, both in nats a token."""

    mean: float
    se: float

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """The mean of values (n,) and its standard error; the values count as independent, so give one a window."""
        return cls(values.mean().item(), (values.std(correction=1) / len(values) ** 0.5).item())


@torch.no_grad()
def window_losses(model: nn.Module, windows: np.ndarray, device: str = "cpu") -> Tensor:
    """Cross-entropy of each held-out window, in nats a token.

    ``windows`` holds tokens (n, context + 1); the result is float64 (n,). Tokens of one window depend on each other,
    windows
    hardly, so a standard error is taken over windows and not over tokens.
    """
    model.eval()
    losses = []
    for start in range(0, len(windows), SEQUENCES_AT_ONCE):
        tokens = torch.from_numpy(windows[start : start + SEQUENCES_AT_ONCE]).to(device)
        logits = model(tokens[:, :-1]).float()
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        losses.append(loss.view(len(tokens), -1).double().mean(dim=1).cpu())
    return torch.cat(losses)


def compare(losses: Tensor, baseline: Tensor) -> dict[str, float]:
    """The columns ``loss, loss_se, delta, delta_se`` of a record, from the losses (n,) of two models on the same
    windows.

    The standard error of ``delta`` is that of the paired differences: what is hard for both models cancels.
    """
    loss, delta = Estimate.of(losses), Estimate.of(losses - baseline)
    return {"loss": loss.mean, "loss_se": loss.se, "delta": delta.mean, "delta_se": delta.se}
