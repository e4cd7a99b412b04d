import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbitlib.data.batches import random_batch, windows

TOKENS = np.arange(1000, dtype=np.int64).astype(np.uint8)


def positions(length: int) -> np.ndarray:
    """Tokens that tell their own place; the functions only slice and cast, so any integer type will do."""
    return np.arange(length, dtype=np.uint32)


def test_random_batch_has_shape_type_and_contiguous_windows():
    drawn = random_batch(positions(500), batch=7, context=16, seed=3, step=5)
    assert drawn.shape == (7, 17)
    assert drawn.dtype == np.int64
    assert (np.diff(drawn, axis=1) == 1).all()


def test_random_batch_is_a_pure_function_of_seed_and_step():
    arguments = {"batch": 32, "context": 8}
    first = random_batch(positions(10_000), **arguments, seed=1, step=9)
    for step in range(4):  # what was drawn in between does not matter
        random_batch(positions(10_000), **arguments, seed=1, step=step)
    assert (first == random_batch(positions(10_000), **arguments, seed=1, step=9)).all()
    assert (first != random_batch(positions(10_000), **arguments, seed=1, step=10)).any()
    assert (first != random_batch(positions(10_000), **arguments, seed=2, step=9)).any()


def test_random_batch_draws_the_same_places_on_every_machine():
    drawn = random_batch(positions(1_000_000), batch=4, context=1, seed=7, step=11)
    raw = np.random.Philox(key=np.array([7, 11], dtype=np.uint64)).random_raw(4)
    assert drawn[:, 0].tolist() == [int(value) % 999_999 for value in raw.tolist()]
    assert drawn[:, 0].tolist() == [668445, 201817, 398082, 800769]


def test_random_batch_reaches_the_first_and_the_last_token_and_is_uniform():
    starts = random_batch(positions(12), batch=20_000, context=1, seed=0, step=0)[:, 0]
    counts = np.bincount(starts, minlength=11)
    assert len(counts) == 11
    assert abs(counts / 20_000 - 1 / 11).max() < 0.01  # five standard errors


@given(st.integers(2, 300), st.integers(1, 64), st.integers(1, 50))
def test_windows_are_spaced_evenly_over_everything_and_never_predict_a_token_twice(length, context, n):
    if length < n * context + 1:
        with pytest.raises(ValueError, match="tokens"):
            windows(positions(length), count_tokens=n * context, context=context)
        return
    cut = windows(positions(length), count_tokens=n * context, context=context)
    assert cut.shape == (n, context + 1)
    assert (np.diff(cut, axis=1) == 1).all()
    targets = cut[:, 1:].ravel()
    assert len(set(targets.tolist())) == n * context
    assert cut[0, 0] == 0
    if n > 1:
        assert cut[-1, -1] == length - 1
        spaces = np.diff(cut[:, 0])
        assert spaces.max() - spaces.min() <= 1
        if n * (context + 1) <= length:
            assert len(np.unique(cut)) == cut.size


def test_windows_hold_at_least_the_tokens_asked_for():
    assert windows(TOKENS, count_tokens=100, context=32).shape == (4, 33)
    assert windows(TOKENS, count_tokens=96, context=32).shape == (3, 33)


def test_a_memory_map_serves_as_well(tmp_path):
    (tmp_path / "tokens.bin").write_bytes(TOKENS.tobytes())
    mapped = np.memmap(tmp_path / "tokens.bin", dtype=np.uint8, mode="r")
    drawn = random_batch(mapped, batch=3, context=9, seed=0, step=0)
    assert type(drawn) is np.ndarray
    assert (drawn == random_batch(TOKENS, batch=3, context=9, seed=0, step=0)).all()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"batch": 0}, "batch must be at least 1, not 0"),
        ({"context": 0}, "context must be at least 1, not 0"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"step": -2}, "step must be at least 0, not -2"),
        ({"context": 1000}, "need 1,001 tokens, but there are only 1,000"),
        ({"tokens": TOKENS.reshape(2, -1)}, r"one axis, not shape \(2, 500\)"),
    ],
)
def test_random_batch_refuses_in_one_sentence(changed, said):
    arguments = {"tokens": TOKENS, "batch": 1, "context": 999, "seed": 0, "step": 0} | changed
    with pytest.raises(ValueError, match=said):
        random_batch(**arguments)


def test_windows_refuse_in_one_sentence():
    with pytest.raises(
        ValueError, match=r"4 held-out windows of context 250 need 1,001 tokens, but there are only 1,000"
    ):
        windows(TOKENS, count_tokens=1000, context=250)
    with pytest.raises(ValueError, match="count_tokens must be at least 1, not 0"):
        windows(TOKENS, count_tokens=0, context=250)
