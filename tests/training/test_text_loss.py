"""The masked loss; causal ones are held against transformers' own in tests/test_cli_checkpoint.py."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kbitlib.training.text_loss import SEED, masked_losses

VOCABULARY, MASK, CLS, SEP = 50, 47, 48, 49


class Told(nn.Module):
    """Sees what it is given, and answers each position with what it was told."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, tokens: Tensor) -> SimpleNamespace:
        self.seen = tokens
        return SimpleNamespace(logits=self.logits)


def tokenizer(ends: bool) -> SimpleNamespace:
    return SimpleNamespace(mask_token_id=MASK, cls_token_id=CLS if ends else None, sep_token_id=SEP if ends else None)


@pytest.mark.parametrize("ends", [True, False])
def test_fifteen_percent_of_each_window_are_masked_and_only_these_count(ends: bool) -> None:
    tokens = np.random.default_rng(1).integers(0, 40, (6, 20))
    inside = slice(1, -1) if ends else slice(None)
    right = torch.zeros(6, 22 if ends else 20, VOCABULARY)
    right[:, inside].scatter_(2, torch.from_numpy(tokens)[..., None], 3.0)
    model = Told(right)
    losses = masked_losses(model, tokens, tokenizer(ends), np.random.default_rng(SEED))
    shown = model.seen[:, inside].numpy()
    assert ((shown == MASK).sum(1) == 3).all()
    assert (shown[shown != MASK] == tokens[shown != MASK]).all()
    if ends:
        assert (model.seen[:, [0, -1]] == torch.tensor([CLS, SEP])).all()
    expected = np.log(np.exp(3.0) + VOCABULARY - 1) - 3.0
    torch.testing.assert_close(losses, torch.full((6,), expected, dtype=torch.float64), rtol=1e-6, atol=0)
    right[torch.from_numpy(model.seen.numpy() != MASK)] = torch.nan  # no other position has a say
    again = masked_losses(model, tokens, tokenizer(ends), np.random.default_rng(SEED))
    assert torch.equal(again, losses)


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="mask token"):
        masked_losses(Told(torch.zeros(1, 4, VOCABULARY)), np.zeros((1, 4), int), SimpleNamespace(mask_token_id=None),
                      np.random.default_rng(SEED))  # fmt: skip
