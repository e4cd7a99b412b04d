"""The straight-through estimator."""

import pytest
import torch

from kbitlib.quant import Format, quantize
from kbitlib.quant.fake import fake_quantize


@pytest.mark.parametrize("format", ["int2-b64", "nf3-b32", "ternary-row", "kmeans2-b64"])
def test_forward_rounds_and_backward_is_the_identity(format: str) -> None:
    weight = torch.randn(6, 70, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rounded = fake_quantize(weight, format)
    assert torch.equal(rounded, quantize(weight, format).dequantize())
    gradient = torch.randn(6, 70)
    rounded.backward(gradient)
    assert torch.equal(weight.grad, gradient)


def test_a_format_object_and_another_dtype() -> None:
    weight = torch.randn(4, 64, dtype=torch.bfloat16, requires_grad=True)
    rounded = fake_quantize(weight, Format.parse("int4-b64"))
    rounded.sum().backward()
    assert rounded.dtype == weight.grad.dtype == torch.bfloat16
    assert (weight.grad == 1).all()


def test_training_through_it_finds_weights_that_round_well() -> None:
    target = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    weight = torch.nn.Parameter(torch.tensor([[0.3, 0.2, -0.1, -0.4]]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (fake_quantize(weight, "binary-row-fp32") - target).square().sum().backward()
        optimizer.step()
    assert torch.allclose(fake_quantize(weight, "binary-row-fp32"), target, atol=0.2)
