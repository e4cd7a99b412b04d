import numpy as np
import pytest
import torch

from kbitlib.data.corpus import CorpusSettings
from kbitlib.models.layers import block_linears
from kbitlib.models.quantized import quantized_copy
from kbitlib.models.transformer import Shape, Transformer
from kbitlib.training.evaluate import window_losses
from kbitlib.training.finetune import StraightThrough, finetune
from kbitlib.training.trainer import Run, Training


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    words = np.random.default_rng(0).choice(["alpha ", "beta ", "gamma ", "delta "], size=4000)
    return np.frombuffer("".join(words).encode(), dtype=np.uint8)


@pytest.fixture(scope="module")
def settings() -> Training:
    shape = Shape(width=16, depth=1, context=32)
    return Training(corpus=CorpusSettings(), shape=shape, tokens=(1,), batch=8, learning_rate=0.02, held_out=1)


@pytest.fixture(scope="module")
def model(settings: Training, text: np.ndarray) -> Transformer:
    run = Run(settings)
    list(run.advance(text, 150))
    return run.model.eval()


def test_fine_tuning_through_two_bits_beats_rounding_to_them(
    model: Transformer, settings: Training, text: np.ndarray
) -> None:
    tuned, curve = finetune(model, settings, text, format="int2-b64", tokens=15_000, learning_rate=0.005)
    windows = np.lib.stride_tricks.sliding_window_view(text, 33)[:3000:100].astype(np.int64)
    rounded, repaired = (window_losses(quantized_copy(m, "int2-b64")[0], windows).mean() for m in (model, tuned))
    assert len(curve) == round(15_000 / (8 * 32))
    assert repaired < rounded - 0.05


def test_the_model_given_is_not_changed_and_the_one_returned_is_plain(
    model: Transformer, settings: Training, text: np.ndarray
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tuned, _ = finetune(model, settings, text, format="int3-b64", tokens=600, learning_rate=0.01)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert set(tuned.state_dict()) == set(before)
    assert not any(torch.equal(before[f"{name}.weight"], linear.weight) for name, linear in block_linears(tuned))


def test_the_weights_returned_are_the_unrounded_ones(model: Transformer, settings: Training, text: np.ndarray) -> None:
    tuned, _ = finetune(model, settings, text, format="int2-tensor", tokens=600, learning_rate=0.01)
    linear = next(linear for _, linear in block_linears(tuned))
    assert len(linear.weight.unique()) > 4


def test_without_a_format_it_is_plain_training(model: Transformer, settings: Training, text: np.ndarray) -> None:
    one, first = finetune(model, settings, text, format=None, tokens=600, learning_rate=0.01)
    other, second = finetune(model, settings, text, format=None, tokens=600, learning_rate=0.01)
    assert first == second
    assert torch.equal(one.unembedding.weight, other.unembedding.weight)


def test_a_gradient_passes_the_rounding_unchanged() -> None:
    from kbitlib.quant import Format

    weight = torch.randn(4, 8, requires_grad=True)
    factor = torch.randn(4, 8)
    (StraightThrough(Format.parse("int2-b64"))(weight) * factor).sum().backward()
    assert torch.equal(weight.grad, factor)
