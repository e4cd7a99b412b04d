import pytest
import torch

from kbitlib.methods.rotation import hadamard

ORDERS = [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 60, 64, 80, 96, 128, 160, 192, 256, 384, 512, 576, 768, 1024]


@pytest.mark.parametrize("n", [*ORDERS, 2048])
def test_a_rotation_is_orthogonal_with_entries_of_one_magnitude(n: int) -> None:
    turn = hadamard(n, seed=0)
    assert turn.dtype is torch.float64
    assert torch.allclose(turn.abs(), torch.full((n, n), n**-0.5, dtype=torch.float64), rtol=1e-15)
    # a product of n terms of 1/n each, summed in float64
    assert torch.allclose(turn @ turn.T, torch.eye(n, dtype=torch.float64), atol=1e-15 * n**0.5)


def test_order_4096_by_probing_it_with_vectors() -> None:
    turn = hadamard(4096, seed=0)
    x = torch.randn(4096, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(turn.T @ (turn @ x), x, atol=1e-13)


def test_the_seed_decides() -> None:
    assert torch.equal(hadamard(24, seed=3), hadamard(24, seed=3))
    assert not torch.equal(hadamard(24, seed=3), hadamard(24, seed=4))


@pytest.mark.parametrize("n", [0, -4, 3, 6, 10, 52, 92, 100])
def test_an_order_without_a_construction_is_refused_by_name(n: int) -> None:
    with pytest.raises(ValueError, match=f"order {n} "):
        hadamard(n, seed=0)


def test_one_outlier_is_spread_over_all_channels() -> None:
    spike = torch.zeros(96, dtype=torch.float64)
    spike[17] = 5
    assert torch.allclose((hadamard(96, seed=0) @ spike).abs(), torch.tensor(5 / 96**0.5, dtype=torch.float64))
