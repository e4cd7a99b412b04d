"""Input statistics against their definitions."""

import pytest
import torch
from torch import Tensor, nn

from kbitlib.methods.calibration import InputStatistics, collect, matrix_of
from kbitlib.models.transformer import Shape, Transformer


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_statistics_are_those_of_all_tokens_however_they_come() -> None:
    x = inputs(30, 5)
    parts = [x[:2], x[2:17].view(3, 5, 5), x[17:]]
    found = InputStatistics.of(parts[0])
    for part in parts[1:]:
        found = found.merged(InputStatistics.of(part))
    assert found.count == 30
    assert torch.equal(found.max_abs, x.abs().amax(0))
    torch.testing.assert_close(found.mean_abs, x.abs().mean(0))
    expected = sum(2 * torch.outer(row, row) for row in x.double()) / 30
    torch.testing.assert_close(found.hessian, expected.float())


def test_a_model_is_watched_and_left_as_it_was() -> None:
    model = Transformer(Shape(width=8, depth=2, context=6)).initialise(0).train()
    tokens = torch.arange(24).view(4, 6)
    layers = {"first": model.blocks[0].qkv, "last": model.blocks[1].down}
    found = collect(model, [tokens[:3], tokens[3:]], layers)
    seen = torch.nn.functional.rms_norm(model.embedding(tokens).detach(), (8,))
    seen = torch.nn.functional.rms_norm(seen, (8,)).view(-1, 8)
    assert (found["first"].count, found["last"].count) == (24, 24)
    assert found["last"].hessian.shape == (32, 32)
    torch.testing.assert_close(found["first"].hessian, 2 * seen.T @ seen / 24)
    assert model.training
    assert not any(layer._forward_pre_hooks for layer in layers.values())


def test_dropout_is_off_while_a_model_is_watched() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(4, 4))
    found = collect(model, [torch.ones(10, 4)], {"1": model[1]})
    assert torch.equal(found["1"].mean_abs, torch.ones(4))


def test_a_layer_that_nothing_reaches_is_named() -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="the layer other"):
        collect(model, [torch.ones(2, 4)], {"": model, "other": nn.Linear(4, 4)})


@pytest.mark.parametrize(("shape", "inputs"), [((3,), None), ((3, 5), 4), ((2, 3, 4), 4)])
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], inputs: int | None) -> None:
    statistics = InputStatistics.of(torch.ones(2, inputs)) if inputs else None
    with pytest.raises(ValueError, match=r"must be \(out, "):
        matrix_of(torch.ones(shape), statistics)
