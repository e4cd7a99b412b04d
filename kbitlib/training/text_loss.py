"""The loss of a model folder, quantized or not, on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kbitlib.models.checkpoint import MANIFEST, load_quantized
from kbitlib.models.pretrained import Logits, architecture, read_weights, read_windows
from kbitlib.models.tensor_files import entries, shards, size
from kbitlib.training.evaluate import Estimate, window_losses

TOKENS_AT_ONCE = 4096
MASKED, SEED = 0.15, 0  # BERT's share (Devlin et al. 2019, section 3.1)


def text_loss(folder: str | Path, text: str | Path) -> dict[str, Any]:
    """Loss in nats a token with its standard error over windows, and the bits and bytes of everything stored.

    Causal models predict each token from those before it in its window, masked ones 15 % of a window's tokens, chosen
    by a fixed seed, from the others. ValueError for other models, for a folder or text that cannot be read.
    """
    model_class, config = architecture(folder)
    masked = model_class.__name__.endswith("ForMaskedLM")
    if not masked and not model_class.__name__.endswith(("ForCausalLM", "LMHeadModel")):
        raise ValueError(f"{model_class.__name__} is no causal or masked language model, so it has no loss on a text")
    tokenizer, cut = read_windows(folder, config, text, spare=4 * masked)
    quantized = (Path(folder) / MANIFEST).is_file()
    model = load_quantized(folder) if quantized else read_weights(model_class, folder)
    step, generator = max(1, TOKENS_AT_ONCE // cut.shape[1]), np.random.default_rng(SEED)
    losses = [
        masked_losses(model, batch[:, 1:], tokenizer, generator) if masked else window_losses(Logits(model), batch)
        for batch in (cut[start : start + step] for start in range(0, len(cut), step))
    ]
    loss, task = Estimate.of(torch.cat(losses)), f"masked, {MASKED:.0%} of tokens, seed {SEED}" if masked else "causal"
    stored = sum(size(entry) for path in shards(Path(folder)) for entry in entries(path).values())
    counted = {"bits": 8 * stored, "bytes": stored, "task": task, "windows": len(cut), "context": cut.shape[1] - 1}
    return {"loss": loss.mean, "loss_se": loss.se, **counted}


@torch.no_grad()
def masked_losses(model: nn.Module, tokens: np.ndarray, tokenizer: Any, generator: np.random.Generator) -> Tensor:
    """Cross-entropy (n,) of the masked tokens of each window (n, time), in nats a token; as many in each window."""
    if tokenizer.mask_token_id is None:
        raise ValueError("the folder's tokenizer has no mask token, so there is no masked loss")
    truth = torch.from_numpy(tokens)
    count = max(1, round(MASKED * truth.shape[1]))
    at = torch.from_numpy(generator.random(truth.shape).argsort(axis=1)[:, :count])
    ends = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    first, last = ([truth.new_full((len(truth), 1), one)] if one is not None else [] for one in ends)
    shown = torch.cat([*first, truth.scatter(1, at, tokenizer.mask_token_id), *last], 1)
    logits = Logits(model.eval())(shown).float()[:, len(first) :][torch.arange(len(truth))[:, None], at]
    losses = F.cross_entropy(logits.flatten(0, 1), truth.gather(1, at).flatten(), reduction="none")
    return losses.view(len(truth), -1).double().mean(1)
