"""Which tokens a model sees: random training batches and fixed held-out windows, pure functions of their arguments.

Nothing here keeps a state. A run that is killed and resumed at step s draws the batch it would have drawn, and every
model of a family is judged on the same held-out tokens, so that losses can be compared pairwise.
"""

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint8]
Batch = npt.NDArray[np.int64]


def random_batch(tokens: Tokens, *, batch: int, context: int, seed: int, step: int) -> Batch:
    """Draw windows uniformly at random, with replacement: (L,) -> (batch, context + 1).

    Inputs are `[:, :-1]` and targets `[:, 1:]`. The generator is counter-based, Philox-4x64 keyed by (seed, step)
    (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): any step is drawn without those before it.
    Its raw stream is used, since NumPy promises that one to stay the same from version to version.

    Raises ValueError for a batch or context below 1, a negative seed or step, or fewer than context + 1 tokens.
    """
    _require_at_least(1, batch=batch, context=context)
    _require_at_least(0, seed=seed, step=step)
    _require_tokens(tokens, context + 1, f"a window of context {context} and its targets")
    key = np.array([seed, step], dtype=np.uint64)
    # The bias of a remainder is below L / 2^64 and thus far below anything measurable.
    starts = np.random.Philox(key=key).random_raw(batch) % np.uint64(len(tokens) - context)
    return _gather(tokens, starts.astype(np.int64), context)


def windows(tokens: Tokens, *, count_tokens: int, context: int) -> Batch:
    """Cut fixed windows, evenly spaced from the first token to the last: (L,) -> (n, context + 1).

    n = ceil(count_tokens / context), so that at least `count_tokens` tokens are predicted, each at most once. Windows
    share no token where n * (context + 1) <= L, and at most the one at their border otherwise.

    Raises ValueError for a count or context below 1, or if the tokens do not suffice for n windows.
    """
    _require_at_least(1, count_tokens=count_tokens, context=context)
    n = -(-count_tokens // context)
    _require_tokens(tokens, n * context + 1, f"{n} held-out windows of context {context}")
    last = len(tokens) - (context + 1)
    starts = np.arange(n, dtype=np.int64) * last // max(n - 1, 1)
    return _gather(tokens, starts, context)


def _gather(tokens: Tokens, starts: Batch, context: int) -> Batch:
    positions = starts[:, None] + np.arange(context + 1)
    return np.asarray(tokens[positions], dtype=np.int64)


def _require_at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}.")


def _require_tokens(tokens: Tokens, needed: int, purpose: str) -> None:
    if tokens.ndim != 1:
        raise ValueError(f"tokens must have one axis, not shape {tokens.shape}.")
    if len(tokens) < needed:
        raise ValueError(f"{purpose} need {needed:,} tokens, but there are only {len(tokens):,}.")
