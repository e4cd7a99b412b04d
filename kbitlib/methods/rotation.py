"""Random rotations that spread outliers over all channels."""

from math import isqrt

import torch
from torch import Tensor


def hadamard(n: int, seed: int) -> Tensor:
    """A random orthogonal (n, n) matrix, float64, all of whose entries have the magnitude 1/sqrt(n).

    A Hadamard matrix by Sylvester's doubling of one of Paley's, its columns given random signs (QuaRot, Ashkboos et
    al. 2024, arXiv:2404.00456, section 3). ValueError where these two constructions have none of order n.
    """
    matrix = _hadamard(n)
    if matrix is None:
        raise ValueError(f"no Hadamard matrix of order {n} is known here; 2^a times 1, 12, 20, 28, 36, 44, ... are")
    signs = torch.randint(2, (n,), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return matrix * signs / n**0.5


def _hadamard(n: int) -> Tensor | None:
    """A matrix of 1 and -1 with orthogonal rows, float64; None if these constructions have none of order n."""
    if n == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    half = _hadamard(n // 2) if n > 0 and n % 2 == 0 else None
    if half is not None:
        return torch.kron(torch.tensor([[1, 1], [1, -1]]), half)
    primes = [q for q in (n - 1, n // 2 - 1) if q > 2 and all(q % d for d in range(2, isqrt(q) + 1))]
    return _paley(primes[0]) if n % 4 == 0 and primes else None


def _paley(q: int) -> Tensor:
    """Paley's matrix of a prime q: of order q + 1 for q = 3 mod 4, of order 2 (q + 1) for q = 1 mod 4 (Paley 1933)."""
    numbers = torch.arange(q)
    character = 2 * torch.isin(numbers, numbers**2 % q).double() - 1  # 1 for squares modulo q, else -1
    character[0] = 0
    bordered = torch.ones(q + 1, q + 1, dtype=torch.float64)
    bordered[0, 0] = 0
    bordered[1:, 1:] = character[(numbers[:, None] - numbers) % q]
    if q % 4 == 3:
        bordered[1:, 0] = -1
        return bordered + torch.eye(q + 1)
    pairs = torch.kron(bordered, torch.tensor([[1, 1], [1, -1]]))
    return pairs + torch.kron(torch.eye(q + 1), torch.tensor([[1, -1], [-1, -1]]))
