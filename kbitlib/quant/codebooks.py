"""The levels of every data type whose levels do not depend on the data, exact to the bit.

A data type is named by a short word: `int4`, `int4n`, `int4s`, `nf4`, `e2m1`, `pot4`, `log4`, `quantile4`, `kmeans4`,
`dynamic4`, `bnbfp4`, `q2.6`, `binary`, `ternary`, `vq2c8`, `e8c12`. `Element` reads that word, `codebook` gives the
levels of those that have levels (`vector` has what vectors need).
"""

import re
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ELEMENTS = (
    "int2..int8 (also int2n..int8n narrow, int2s..int8s signed maximum), nf2..nf8, eXmY with X at least 1 and 1+X+Y "
    "in 2..8, fp2..fp8, pot2..pot8, log2..log8, quantile2..quantile8, kmeans2..kmeans8, dynamic2..dynamic8, bnbfp4, "
    "qM.N with M at least 1 and M+N in 2..8, binary (int1), ternary, vqDcB with D 2, 4 or 8 and B in 2..12 (more would "
    "take minutes a matrix), e8cB with B in 8..16"
)
# The usual split of k bits into sign, exponent and mantissa; e4m3, e2m1 are OCP's.
FLOAT_OF_BITS = {2: "e1m0", 3: "e2m0", 4: "e2m1", 5: "e2m2", 6: "e3m2", 7: "e3m3", 8: "e4m3"}


@dataclass(frozen=True)
class Element:
    """What a data type's name says.

    name: canonical spelling, such as "int4n". kind: the rule that makes its levels ("int", "intn", "ints", "nf",
    "float", "pot", "log", "quantile", "kmeans", "dynamic", "bnbfp4", "fixed", "binary", "ternary", "vq", "e8"). k: bits
    of code a weight (log2(3), rounded to 1.58, for ternary). weights_per_code: 1 but for vectors.
    """

    name: str
    kind: str
    k: float
    weights_per_code: int = 1

    @classmethod
    @cache
    def parse(cls, text: str) -> "Element":
        """Read an element's name or one of its aliases (fp4, int1). ValueError, listing all elements, for any other."""
        if found := re.fullmatch(r"fp([2-8])", text):
            text = FLOAT_OF_BITS[int(found[1])]
        if text in ("binary", "int1"):
            return cls("binary", "binary", 1)
        if text == "ternary":
            return cls(text, text, 1.58)
        if text == "bnbfp4":
            return cls(text, text, 4)
        if found := re.fullmatch(r"(int|nf|pot|log|quantile|kmeans|dynamic)([2-8])", text):
            return cls(text, found[1], int(found[2]))
        if found := re.fullmatch(r"int([2-8])([ns])", text):
            return cls(text, "int" + found[2], int(found[1]))
        if (found := re.fullmatch(r"e([1-7])m([0-6])", text)) and (k := 1 + int(found[1]) + int(found[2])) <= 8:
            return cls(text, "float", k)
        if (found := re.fullmatch(r"q([1-8])\.([0-7])", text)) and 2 <= (k := int(found[1]) + int(found[2])) <= 8:
            return cls(text, "fixed", k)
        if found := re.fullmatch(r"vq([248])c([2-9]|1[0-2])|e(8)c([89]|1[0-6])", text):
            length, bits = (int(part) for part in found.groups() if part)
            return cls(text, text[:2], bits / length, length)
        raise ValueError(f'unknown element "{text}": allowed are {ELEMENTS}')

    @property
    def family(self) -> str:
        """The word for records: the three integer conventions are all "int"."""
        return "int" if self.kind in ("intn", "ints") else self.kind

    @property
    def learned(self) -> bool:
        """Whether the levels are learned from each tensor."""
        return self.kind in ("quantile", "kmeans", "vq")

    @property
    def has_zero(self) -> bool:
        """Whether zero is always one of the levels."""
        return self.kind not in ("binary", "kmeans", "log", "vq")


@dataclass(frozen=True, eq=False)
class Codebook:
    """Levels and how a value finds its own.

    levels: (n,) float32, ascending. codes: (n,) uint8, the code that stores each level. thresholds: (n-1,) float32;
    x takes level i+1 or a higher one exactly when x > thresholds[i]. uniform: the levels are consecutive integers and
    the codes count them, so that rounding half to even finds the level.
    """

    levels: Tensor
    codes: Tensor
    thresholds: Tensor
    uniform: bool = False

    @cached_property
    def table(self) -> Tensor:
        """(codes,) float32: the level of each code, NaN where a code is not used."""
        table = torch.full((int(self.codes.max()) + 1,), torch.nan, dtype=torch.float32, device=self.levels.device)
        table[self.codes.long()] = self.levels
        return table

    @cached_property
    def in_order(self) -> bool:
        """Whether the codes simply count the levels upwards."""
        return bool((self.codes == torch.arange(len(self.codes), device=self.codes.device)).all())

    def to(self, device: torch.device) -> "Codebook":
        """The same codebook on another device."""
        if device == self.levels.device:
            return self
        return Codebook(self.levels.to(device), self.codes.to(device), self.thresholds.to(device), self.uniform)


def sorted_codebook(levels: Tensor) -> Codebook:
    """A codebook of ascending levels, coded by their rank; a value halfway between two takes the lower one."""
    codes = torch.arange(len(levels), dtype=torch.uint8, device=levels.device)
    return Codebook(levels, codes, (levels[:-1] + levels[1:]) / 2)


@cache
def codebook(name: str, *, unit: bool = False) -> Codebook:
    """The codebook of a data type by name, its levels as the type defines them; unit: divided by the largest.

    ValueError for a data type whose levels depend on the tensor or its blocks (quantile, kmeans, log), and for vectors.
    """
    element = Element.parse(name)
    if element.learned or element.kind in ("log", "e8"):
        raise ValueError(f"{name} has no levels of its own: they depend on the tensor, or are vectors")
    book = _codebook(element)
    if not unit:
        return book
    top = book.levels[-1]
    return Codebook(book.levels / top, book.codes, book.thresholds / top)


def _codebook(element: Element) -> Codebook:
    if element.kind == "float":
        return _float(int(element.name[1]), int(element.name[3]))
    if element.kind == "bnbfp4":
        return _bnbfp4()
    if element.kind == "binary":
        return sorted_codebook(torch.tensor([-1.0, 1.0], dtype=torch.float32))
    if element.kind == "ternary":
        return _integers(-1, 1)
    k = int(element.k)
    if element.kind in ("int", "ints", "fixed"):
        return _integers(-(2 ** (k - 1)), 2 ** (k - 1) - 1)
    if element.kind == "intn":
        return _integers(1 - 2 ** (k - 1), 2 ** (k - 1) - 1)
    levels = {"nf": _normal_float, "pot": _powers_of_two, "dynamic": _dynamic}[element.kind](k)
    return sorted_codebook(torch.tensor(sorted(levels), dtype=torch.float32))


def _integers(low: int, high: int) -> Codebook:
    book = sorted_codebook(torch.arange(low, high + 1, dtype=torch.float32))
    return Codebook(book.levels, book.codes, book.thresholds, uniform=True)


def _normal_float(k: int) -> list[float]:
    """Normal float (Dettmers et al. 2023, QLoRA, section 3): quantiles of a Gaussian with an exact zero."""
    below, above = normal_float_probabilities(k)
    quantile = NormalDist().inv_cdf
    levels = torch.tensor([*(-quantile(p) for p in below), 0.0, *map(quantile, above)], dtype=torch.float32)
    return (levels / levels.max()).tolist()


def normal_float_probabilities(k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where normal float takes its quantiles: (2^(k-1)-1,) probabilities of lying above the negative levels,
    (2^(k-1),) of lying below the positive ones, all over one half.

    The reference rounds the outermost one to seven digits and works in float32; so does this, bit for bit.
    """
    outermost = round(1 - (1 / (2 * 2**k) + 1 / (2 * (2**k - 1))) / 2, 7)
    half = 2 ** (k - 1)
    below, above = (
        torch.linspace(outermost, 0.5, n, dtype=torch.float32)[:-1].double().numpy() for n in (half, half + 1)
    )
    return below, above


def _powers_of_two(k: int) -> list[float]:
    """Zero and plus or minus 1, 1/2, 1/4, ... (Miyashita et al. 2016): 2^k - 1 levels, one code stays unused."""
    powers = [2.0**-e for e in range(2 ** (k - 1) - 1)]
    return [0.0, *powers, *(-p for p in powers)]


def _dynamic(k: int) -> list[float]:
    """Signed dynamic tree (Dettmers 2016, 8-bit approximations; bitsandbytes' create_dynamic_map) with k-1 exponents.

    The decade 10^(i-k+2) is split into 2^i equal parts, each represented by its middle; zero and one are added.
    Float32 throughout, as in the reference.
    """
    levels = [0.0, 1.0]
    for i in range(k - 1):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        middles = 10.0 ** (i - k + 2) * ((edges[:-1] + edges[1:]) / 2)
        levels += middles.tolist() + (-middles).tolist()
    return levels


def _float(exponent_bits: int, mantissa_bits: int) -> Codebook:
    """Sign, exponent and mantissa, with subnormals; ties go to the even mantissa, as IEEE 754 and OCP have it.

    Bias 2^(X-1) - 1. Every code is finite but for E4M3's NaN and E5M2's infinities and NaN (OCP 8-bit floating point
    specification 1.0; the other OCP elements, microscaling specification 1.0, have only finite codes).
    """
    magnitudes = _float_magnitudes(exponent_bits, mantissa_bits)
    sign = 2 ** (exponent_bits + mantissa_bits)
    codes = [sign + c for c in reversed(range(len(magnitudes)))] + list(range(len(magnitudes)))
    levels = torch.tensor([-m for m in reversed(magnitudes)] + magnitudes, dtype=torch.float32)
    middles = (levels[:-1] + levels[1:]) / 2
    upper_is_even = torch.tensor([code % 2 == 0 for code in codes[1:]])
    below = torch.nextafter(middles, torch.full_like(middles, -torch.inf))
    return Codebook(levels, torch.tensor(codes, dtype=torch.uint8), torch.where(upper_is_even, below, middles))


def _float_magnitudes(exponent_bits: int, mantissa_bits: int) -> list[float]:
    bias, steps = 2 ** (exponent_bits - 1) - 1, 2**mantissa_bits
    subnormal = [2.0 ** (1 - bias) * m / steps for m in range(steps)]
    normal = [2.0 ** (e - bias) * (1 + m / steps) for e in range(1, 2**exponent_bits) for m in range(steps)]
    special = {(4, 3): 1, (5, 2): 4}.get((exponent_bits, mantissa_bits), 0)
    return (subnormal + normal)[: len(subnormal + normal) - special]


def _bnbfp4() -> Codebook:
    """The FP4 of bitsandbytes, in twelfths: the subnormal differs from E2M1's.

    The reference on CPU ranks its levels with plus zero (code 0) before minus zero (code 8); the codes follow it.
    """
    twelfths = [-12, -8, -6, -4, -3, -2, -0.0625, 0, -0.0, 0.0625, 2, 3, 4, 6, 8, 12]
    levels = torch.tensor(twelfths, dtype=torch.float32) / 12
    codes = torch.tensor([11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3], dtype=torch.uint8)
    return Codebook(levels, codes, (levels[:-1] + levels[1:]) / 2)
