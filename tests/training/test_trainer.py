from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch.nn import functional

from kbitlib.data.batches import random_batch
from kbitlib.data.corpus import CorpusSettings, identify
from kbitlib.models.transformer import Shape, Transformer
from kbitlib.runs.store import Store
from kbitlib.training.evaluate import compare, window_losses
from kbitlib.training.trainer import Run, Training, language_model_loss, load_model, train

SHAPE = Shape(width=16, depth=1, context=32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusSettings:
    """A text with structure to learn, no two parts alike."""
    words = np.array(["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"])
    lines = np.random.default_rng(0).choice(words, size=(6000, 6))
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n".join(" ".join(line) for line in lines))
    return identify(CorpusSettings(source=str(path)))


def settings(corpus: CorpusSettings, **changes: object) -> Training:
    base = {
        "corpus": corpus,
        "shape": SHAPE,
        "tokens": (10_240, 20_480),
        "batch": 8,
        "learning_rate": 0.01,
        "held_out": 1024,
    }
    return Training(**(base | changes))


def test_a_model_learns(corpus: CorpusSettings, tmp_path: Path) -> None:
    short, longer = (
        Store(tmp_path).get_or_compute(train, settings(corpus, tokens=t)).rows[0] for t in ((10_240,), (10_240, 40_960))
    )
    assert longer["loss"] < short["loss"] - 0.1 < np.log(256)
    assert longer["loss_se"] > 0
    assert abs(longer["validation_loss"] - longer["loss"]) < 0.5


def test_going_on_from_a_branch_gives_the_bits_of_a_run_in_one_piece(corpus: CorpusSettings, tmp_path: Path) -> None:
    through_a_branch = Store(tmp_path / "a").get_or_compute(train, settings(corpus))
    in_one_piece = Store(tmp_path / "b").get_or_compute(train, settings(corpus, tokens=(20_480,)))
    assert through_a_branch.read("weights.safetensors") == in_one_piece.read("weights.safetensors")
    assert through_a_branch.read("curve.json") == in_one_piece.read("curve.json")


def test_a_restored_run_goes_on_as_if_never_stopped(corpus: CorpusSettings) -> None:
    text = np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8)
    whole, stopped = Run(settings(corpus)), Run(settings(corpus))
    losses = list(whole.advance(text, 6))
    first = list(stopped.advance(text, 3))
    resumed = Run(settings(corpus))
    resumed.restore(stopped.state())
    assert first + list(resumed.advance(text, 6)) == losses
    assert whole.state() == resumed.state()


def test_accumulation_changes_nothing_but_rounding(corpus: CorpusSettings) -> None:
    text = np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8)
    runs = [Run(settings(corpus, accumulate=parts)) for parts in (1, 4)]
    losses = [list(run.advance(text, 5)) for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_rate_warms_up_stays_and_falls_to_zero(corpus: CorpusSettings) -> None:
    text = np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8)
    run = Run(settings(corpus))
    rates = []
    for _ in run.advance(text, 80):
        rates.append(run.optimiser.param_groups[0]["lr"])
    for _ in run.advance(text, 100, decay_from=80):
        rates.append(run.optimiser.param_groups[0]["lr"])
    peak = run.settings.rate
    assert rates[0] == pytest.approx(peak / 50)
    assert rates[49:81] == pytest.approx([peak] * 32)
    assert rates[-1] == pytest.approx(peak / 20)
    assert rates[80:] == sorted(rates[80:], reverse=True)


def test_wider_models_get_a_lower_rate(corpus: CorpusSettings) -> None:
    narrow, wide = (settings(corpus, shape=Shape(width=w, depth=1)).rate for w in (16, 64))
    assert narrow == pytest.approx(2 * wide)
    assert wide == pytest.approx(0.01)


def test_a_saved_model_is_the_one_that_was_measured(corpus: CorpusSettings, tmp_path: Path) -> None:
    record = Store(tmp_path).get_or_compute(train, settings(corpus))
    assert set(load(record.read("weights.safetensors"))) == set(Transformer(SHAPE).state_dict())
    assert not load_model(settings(corpus), record).training


@pytest.mark.parametrize("tokens", [(), (0,), (200, 100), (100, 100)])
def test_lengths_that_do_not_increase_are_refused(corpus: CorpusSettings, tokens: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="increasing positive lengths"):
        settings(corpus, tokens=tokens)


def test_a_batch_that_does_not_divide_is_refused(corpus: CorpusSettings) -> None:
    with pytest.raises(ValueError, match="batch 8 does not divide into 3 parts"):
        settings(corpus, accumulate=3)


def test_loss_is_the_cross_entropy_of_the_next_byte() -> None:
    model = Transformer(SHAPE).initialise(0)
    windows = random_batch(np.arange(256, dtype=np.uint8), batch=4, context=32, seed=0, step=0)
    tokens = torch.from_numpy(windows)
    expected = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert window_losses(model, windows).mean().item() == pytest.approx(expected.item(), rel=1e-6)
    assert language_model_loss(model, tokens, "float32").item() == pytest.approx(expected.item(), rel=1e-6)
    assert expected.item() == pytest.approx(np.log(256))


def test_what_is_hard_for_both_models_cancels_in_the_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    hardness = torch.randn(200, generator=generator).double()
    effect = 0.01 * torch.randn(200, generator=generator).double()
    columns = compare(2 + hardness + 0.1 + effect, 2 + hardness)
    assert columns["delta"] == pytest.approx(0.1, abs=0.003)
    assert columns["delta_se"] == pytest.approx(0.01 / 200**0.5, rel=0.2)
    assert columns["loss_se"] > 50 * columns["delta_se"]
