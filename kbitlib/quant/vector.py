"""Vector quantization: neighbouring weights share one code, which names a point in as many dimensions.

The points are learned from the tensor (`vqDcB`) or are those of the E8 lattice that lie nearest to the origin (`e8cB`).
Their gain over scalars: cells rounder than cubes, and points where vectors are rather than in a cube around them.
"""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DISTANCES = 2**18  # computed at a time, few enough for a cache
SAMPLE = 2**17  # vectors from which points are learned, at most
ROUNDS = 3  # of moving the points after each doubling of their number
LAST_ROUNDS = 12  # at the end, more where there are few points: up to 40, LAST_WORK over their number
LAST_WORK = 2**13
# The scale of the lattice at which its 2^B points take a unit Gaussian with the least error, measured on 2^16 or
# more vectors; good to about half a percent, which costs nothing.
E8_SCALES = {8: 1.654, 9: 1.57, 10: 1.461, 11: 1.364, 12: 1.299, 13: 1.205, 14: 1.133, 15: 1.054, 16: 0.983}
_LARGEST_NORM = 48  # of doubled coordinates: 117,361 points of E8 have a squared norm of up to 12
_BASE = 16  # of the number that names a lattice point


def nearest_point(x: Tensor, points: Tensor) -> Tensor:
    """(n, D) vectors and (m, D) points, float32 -> (n,) int64: which point is nearest, up to float32 rounding."""
    half_norms, rows = points.square().sum(1) / 2, max(1, DISTANCES // len(points))
    found = torch.empty(len(x), dtype=torch.int64, device=x.device)
    for part, chosen in zip(x.split(rows), found.split(rows), strict=True):
        torch.argmin(torch.addmm(half_norms, part, points.T, alpha=-1), 1, out=chosen)
    return found


def learn_points(x: Tensor, weight: Tensor, count: int) -> Tensor:
    """(n, D) vectors that count `weight` (n,) times -> (count, D) points of little squared error; count a power of two.

    Linde, Buzo & Gray 1980: every point is split in two along the axis on which its vectors spread most, and all are
    moved to the mean of what is nearest to them. Learned from a fixed sample; nothing else is random.
    """
    if len(x) > SAMPLE:
        chosen = torch.randint(len(x), (SAMPLE,), generator=torch.Generator().manual_seed(0)).to(x.device)
        x, weight = x[chosen], weight[chosen]
    if len(x) <= count:
        return torch.nn.functional.pad(x, (0, 0, 0, count - len(x)))
    points, spread = _moments(x, weight, x.new_zeros(1, x.shape[1]))
    last = max(LAST_ROUNDS, min(40, LAST_WORK // count))
    while len(points) < count:
        step = spread * (spread == spread.amax(1, keepdim=True))
        points = torch.cat([points - step, points + step])
        for _ in range(ROUNDS if len(points) < count else last):
            points, spread = _moments(x, weight, points)
    return points


def _moments(x: Tensor, weight: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each like points, of the vectors nearest to each point; its own and 0 without any.

    The sums are made on the CPU in float64, in one order, so that they come out the same every time.
    """
    nearest, w = nearest_point(x, points).cpu().numpy(), weight.double().cpu().numpy()
    mass = np.bincount(nearest, w, len(points))
    values = x.double().cpu().numpy()
    sums = [np.bincount(nearest, w * column**power, len(points)) for power in (1, 2) for column in values.T]
    mean, square = np.split(np.stack(sums, 1) / np.where(mass > 0, mass, 1)[:, None], 2, axis=1)
    mean = np.where(mass[:, None] > 0, mean, points.cpu().numpy())
    spread = np.sqrt(np.where(mass[:, None] > 0, np.maximum(square - mean**2, 0), 0))
    return torch.from_numpy(mean).to(points), torch.from_numpy(spread).to(points)


@cache
def e8_points(bits: int) -> Tensor:
    """(2^bits, 8) float32: the points of E8 of smallest norm, of equal ones the first in lexicographic order.

    E8 is D8 (integers of even sum) and D8 + 1/2; its shells have 1, 240, 2160, 6720, ... points. bits at most 16.
    """
    doubled = np.concatenate([_ball(np.arange(-6, 7, 2)), _ball(np.arange(-5, 6, 2))])
    doubled = doubled[doubled.sum(1) % 4 == 0]
    order = np.lexsort([*doubled.T[::-1], (doubled**2).sum(1)])
    return torch.from_numpy(doubled[order[: 2**bits]] / 2).float()


def _ball(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """All (n, 8) with these coordinates and a squared norm of at most _LARGEST_NORM."""
    points = np.zeros((1, 0), np.int64)
    for _ in range(8):
        points = np.hstack([points.repeat(len(values), 0), np.tile(values, len(points))[:, None]])
        points = points[(points**2).sum(1) <= _LARGEST_NORM]
    return points


def nearest_of_e8(x: Tensor, points: Tensor) -> Tensor:
    """(n, 8) vectors -> (n,) int64: which of the points that `e8_points` gives is nearest.

    The lattice's nearest point is decoded; where it is none of them, all are searched.
    """
    keys, order = _keys(points).sort()
    wanted = _keys(nearest_in_e8(x))
    place = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    found, outside = order[place], keys[place] != wanted
    found[outside] = nearest_point(x[outside], points)
    return found


def nearest_in_e8(x: Tensor) -> Tensor:
    """(n, 8) -> (n, 8): the nearest point of the whole lattice (Conway & Sloane 1982, fast quantizing)."""
    whole, half = _nearest_in_d8(x), _nearest_in_d8(x - 0.5) + 0.5
    halves_nearer = (x - half).square().sum(1) < (x - whole).square().sum(1)
    return torch.where(halves_nearer[:, None], half, whole)


def _nearest_in_d8(x: Tensor) -> Tensor:
    """Rounded; where the sum is odd, the coordinate that was rounded furthest goes to its other neighbour."""
    near = x.round()
    rest = x - near
    worst = rest.abs().argmax(1, keepdim=True)
    other_way = 1 - 2 * (rest.gather(1, worst) < 0).to(x)
    return near.scatter_add(1, worst, other_way * near.sum(1, keepdim=True).remainder(2))


def _keys(points: Tensor) -> Tensor:
    """(n, 8) lattice points -> (n,) int64, different for all of `e8_points`, and from theirs for points further out."""
    digits = (2 * points).clamp(-7, 7).long() + _BASE // 2
    return (digits * _BASE ** torch.arange(8, device=points.device)).sum(1)
