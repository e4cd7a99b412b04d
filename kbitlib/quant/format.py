"""Format strings: `ELEMENT[-bN|-row|-tensor][-ZERO][-SCALE][-RANGE]`, and the exact bits they cost.

>>> Format.parse("nf4")
Format(name='nf4', block=64, zero='none', scale='fp16', range='absmax')
>>> str(Format.parse("mxfp4")), Format.parse("mxfp4").bits_per_weight((4096, 4096))
('e2m1-b32-e8m0', 4.25)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from kbitlib.quant.blocks import ROW, TENSOR, Blocks
from kbitlib.quant.codebooks import Element, codebook
from kbitlib.quant.packing import packed_bytes
from kbitlib.quant.vector import E8_SCALES

PRESETS = {
    "mxfp4": "e2m1-b32-e8m0",
    "mxfp6": "e2m3-b32-e8m0",
    "mxfp8": "e4m3-b32-e8m0",
    "nvfp4": "e2m1-b16-e4m3",
}
# llama.cpp's types: bytes and weights of a block (the structs of ggml-common.h), and the format here whose blocks hold
# the same: levels, scale, zero point and bits.
GGUF: dict[str, tuple[int, int, str | None]] = {
    "Q4_0": (18, 32, "int4s-b32"), "Q4_1": (20, 32, "int4-b32-zpf"), "Q5_0": (22, 32, "int5s-b32"),
    "Q5_1": (24, 32, "int5-b32-zpf"), "Q8_0": (34, 32, "int8n-b32"), "MXFP4": (17, 32, "e2m1-b32-e8m0"),
    "Q2_K": (84, 256, None), "Q3_K": (110, 256, None), "Q4_K": (144, 256, None), "Q5_K": (176, 256, None),
    "Q6_K": (210, 256, None), "IQ1_S": (50, 256, None), "IQ1_M": (56, 256, None), "IQ2_XXS": (66, 256, None),
    "IQ2_XS": (74, 256, None), "IQ2_S": (82, 256, None), "IQ3_XXS": (98, 256, None), "IQ3_S": (110, 256, None),
    "IQ4_NL": (18, 32, None), "IQ4_XS": (136, 256, None), "TQ1_0": (54, 256, None), "TQ2_0": (66, 256, None),
}  # fmt: skip
ZEROS = ("zp", "zpf")
# As scales are stored; under double quantization as codes.
SCALE_DTYPES = {
    "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16,
    "e8m0": torch.float8_e8m0fnu, "e4m3": torch.float8_e4m3fn, "dq": torch.uint8,
}  # fmt: skip
OUTER_BLOCK = 256  # scales that share a second scale under double quantization
_PARTS = (
    "the parts that may follow the element are, in this order, -bN or -row or -tensor, -zp or -zpf, "
    "-fp32 or -fp16 or -bf16 or -e8m0 or -e4m3 or -dq, -mse or -pNN.N"
)
_PATTERN = re.compile(
    r"(?:-(?P<block>b[0-9]+|row|tensor))?(?:-(?P<zero>zpf?))?(?:-(?P<scale>fp32|fp16|bf16|e8m0|e4m3|dq))?"
    r"(?:-(?P<range>mse|p[0-9]+(?:\.[0-9]+)?))?"
)


@dataclass(frozen=True)
class Format:
    """How a tensor becomes k bits a weight: an element, a block size, and how block scales are found and stored.

    name: the element, such as "nf4". block: weights a block, 0 for a whole row, -1 for the whole tensor. zero: "none",
    "zp" (k-bit integer zero point) or "zpf" (16-bit float minimum). scale: "fp32", "fp16", "bf16", "e8m0", "e4m3",
    "dq", or "none" for fixed point. range: "absmax", "mse" or a percentile such as "p99.9". ValueError, saying what is
    allowed, for what does not go together. `str` gives the canonical form, which `Format.parse` reads back.
    """

    name: str
    block: int = 64
    zero: str = "none"
    scale: str = "fp16"
    range: str = "absmax"

    @classmethod
    def parse(cls, text: str) -> "Format":
        """Read a format string, an alias (fp4, int1) or a preset (mxfp4, mxfp6, mxfp8, nvfp4)."""
        if not isinstance(text, str):
            raise ValueError(f"a format is a string such as nf4-b64, not {text!r}")
        name, dash, rest = PRESETS.get(text, text).partition("-")
        try:
            element = Element.parse(name)
        except ValueError as error:
            raise ValueError(f'unknown format "{text}": {error}; presets are {", ".join(PRESETS)}') from None
        found = _PATTERN.fullmatch(dash + rest)
        if not found:
            raise ValueError(f'unknown format "{text}": {_PARTS}')
        if element.kind == "fixed":
            if rest:
                raise ValueError(f'format "{text}": fixed point has no scale, so nothing may follow {name}')
            return cls(element.name, TENSOR, scale="none")
        named = {None: 64, "row": ROW, "tensor": TENSOR}
        block = named[found["block"]] if found["block"] in named else int(found["block"][1:])
        if found["block"] not in named and block < 1:
            raise ValueError(
                f'format "{text}": a block is -bN with N at least 1, -row or -tensor, not {found["block"]}'
            )
        zero, scale = found["zero"] or "none", found["scale"] or "fp16"
        return cls(element.name, block, zero, scale, _canonical_range(found["range"]))

    def __post_init__(self) -> None:
        if objection := self._objection():
            raise ValueError(f'format "{self}": {objection}')

    def _objection(self) -> str:
        """Why these parts do not go together, in one clause; empty when they do."""
        kind = self._element.kind
        if self._element.name != self.name:
            return f"the element is spelled {self._element.name}"
        if kind == "fixed":
            plain = (self.block, self.zero, self.scale, self.range) == (TENSOR, "none", "none", "absmax")
            return "" if plain else "fixed point has no block, zero point, scale or range"
        if isinstance(self.block, bool) or not isinstance(self.block, int) or self.block < TENSOR:
            return "a block is a positive number of weights, 0 for a row or -1 for the tensor"
        if self.zero not in ("none", *ZEROS) or self.scale not in SCALE_DTYPES:
            return _PARTS
        if self.block > 0 and self.block % self.weights_per_code:
            return f"a block of {self.name} holds whole vectors: a multiple of {self.weights_per_code} weights"
        if self.zero != "none" and kind != "int":
            return "only int2..int8 take a zero point"
        if self.scale in ("dq", "e8m0") and not self._element.has_zero:
            return (
                f"{self.scale} stores no scale of zero and {self.name} has no level zero; use fp32, fp16, bf16 or e4m3"
            )
        if self.scale == "e8m0" and kind == "ints":
            return f"e8m0 stores no sign, which the scale of {self.name} needs; use fp32, fp16, bf16, e4m3 or dq"
        if self.scale == "e8m0" and kind == "e8":
            return f"a power of two is too coarse for the scale of {self.name}; use fp32, fp16, bf16, e4m3 or dq"
        return self._range_objection(kind)

    def _range_objection(self, kind: str) -> str:
        if self.range == "absmax":
            return ""
        if self.range == "mse":
            allowed = kind not in ("binary", "quantile", "kmeans", "log", "vq")
            return "" if allowed else f"{self.name} takes no range: its levels are found from the weights themselves"
        percent = re.fullmatch(r"p[0-9]+(\.[0-9]+)?", self.range)
        if not percent or self.range != _canonical_range(self.range) or not 0 < float(self.range[1:]) < 100:
            return "a range is mse or a percentile above 0 and below 100, such as p99.9"
        allowed = kind not in ("binary", "ternary", "quantile", "kmeans", "log", "vq", "e8")
        return "" if allowed else f"{self.name} takes no percentile range: its scale is not the largest weight"

    def __str__(self) -> str:
        if self.scale == "none":
            return self.name
        block = {ROW: "row", TENSOR: "tensor"}.get(self.block, f"b{self.block}")
        rest = [
            self.zero,
            "none" if self.scale == "fp16" else self.scale,
            "none" if self.range == "absmax" else self.range,
        ]
        return "-".join([self.name, block, *(part for part in rest if part != "none")])

    @property
    def _element(self) -> Element:
        return Element.parse(self.name)

    @property
    def element(self) -> str:
        """The data type's family, as records have it: int, float, nf, pot, log, quantile, kmeans, dynamic, ..."""
        return self._element.family

    @property
    def kind(self) -> str:
        """The rule that makes the levels: the family, but "intn" and "ints" apart from "int"."""
        return self._element.kind

    @property
    def k(self) -> float:
        """Bits a weight of the codes: for vectors a fraction of the code's; 1.58 for ternary."""
        return self._element.k

    @property
    def weights_per_code(self) -> int:
        """1 for scalars, D for vqDcB, 8 for e8cB."""
        return self._element.weights_per_code

    @property
    def code_bits(self) -> float:
        """Bits a code: a whole number, or 1.58 for ternary."""
        return self.k * self.weights_per_code

    @property
    def learned(self) -> bool:
        """Whether the levels are learned from each tensor and stored with it."""
        return self._element.learned

    @property
    def fixed_steps(self) -> int:
        """2^N for fixed point qM.N, whose levels are multiples of 2^-N; 1 for the others."""
        return 2 ** int(self.name.rpartition(".")[2]) if self.kind == "fixed" else 1

    @property
    def percentile(self) -> float | None:
        """The percentile that the range names, None for the other ranges."""
        return float(self.range[1:]) if self.range.startswith("p") else None

    @property
    def zero_dtype(self) -> torch.dtype:
        """How 16-bit zero points are stored: as the scale when that is bf16, else fp16."""
        return torch.bfloat16 if self.scale == "bf16" else torch.float16

    @property
    def unit_levels(self) -> bool:
        """Whether the levels are divided by the largest: floating elements whose scale is no OCP type."""
        return self.kind == "float" and self.scale not in ("e8m0", "e4m3")

    @property
    def extent(self) -> float:
        """What the levels cover at a scale of one: a block's scale is the span of its weights over this."""
        codes = 2.0 ** int(self.k)
        if self.zero != "none":
            return codes - 1
        if self.kind == "int":
            return (codes - 1) / 2
        if self.kind == "intn":
            return codes / 2 - 1
        if self.kind == "ints":
            return -codes / 2
        if self.kind == "float" and not self.unit_levels:
            return float(codebook(self.name).levels[-1])
        return 1 / E8_SCALES[int(self.code_bits)] if self.kind == "e8" else 1.0

    def blocks(self, shape: Sequence[int]) -> Blocks:
        """The blocks of a tensor of this shape, with the zeros that fill up the last vector of a row."""
        return Blocks.of(shape, self.block, self.weights_per_code)

    def levels(self) -> Tensor:
        """The distinct levels, ascending, float32 (at most 2^k,), as the data type defines them, before any scale.

        With a zero point they are the codes, 0..2^k-1. ValueError where they depend on the tensor or are vectors.
        """
        if self.zero != "none":
            return torch.arange(2 ** int(self.k), dtype=torch.float32)
        levels = codebook(self.name).levels
        return levels.unique() / self.fixed_steps

    def layout(self, shape: Sequence[int]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of each array that is stored for a tensor of this shape.

        codes; scales, and zeros of "zpf" and log formats, (rows, blocks a row); outer_scales, a level above the scales;
        packed zeros of "zp"; codebook, (2^k,) levels or (2^B, D) points.
        """
        blocks = self.blocks(shape)
        per_block, count = (blocks.rows, blocks.per_row), blocks.rows * blocks.columns // self.weights_per_code
        stored: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        stored["codes"] = torch.uint8, (packed_bytes(count, self.code_bits),)
        if self.scale != "none":
            stored["scales"] = SCALE_DTYPES[self.scale], per_block
        if self.scale in ("dq", "e4m3"):
            stored["outer_scales"] = torch.float32, (1 + (self.scale == "dq") * -(-blocks.count // OUTER_BLOCK),)
        if self.zero == "zp":
            stored["zeros"] = torch.uint8, (packed_bytes(blocks.count, self.k),)
        if self.zero == "zpf" or self.kind == "log":
            stored["zeros"] = self.zero_dtype, per_block
        if self.learned:
            points = (2 ** int(self.code_bits),)
            stored["codebook"] = (
                torch.float16,
                points if self.weights_per_code == 1 else (*points, self.weights_per_code),
            )
        return stored

    def stored_bytes(self, shape: Sequence[int]) -> dict[str, int]:
        """What a tensor of this shape takes, in bytes, by array."""
        return {name: dtype.itemsize * prod(size) for name, (dtype, size) in self.layout(shape).items()}

    def bits_per_weight(self, shape: Sequence[int]) -> float:
        """All bytes stored for a tensor of this shape, times 8, over its weights; 0 for a tensor without weights."""
        weights = prod(shape)
        return 8 * sum(self.stored_bytes(shape).values()) / weights if weights else 0.0


def every_format() -> list[Format]:
    """Each element at its defaults, integers with each kind of zero point too, the presets, llama.cpp's layouts."""
    widths = range(2, 9)
    names = [f"{kind}{k}" for kind in ("int", "nf", "pot", "log", "quantile", "kmeans", "dynamic") for k in widths]
    names += [f"int{k}{convention}" for convention in "ns" for k in widths]
    names += [f"int{k}-b64-{zero}" for zero in ZEROS for k in widths]
    names += [f"e{x}m{k - 1 - x}" for k in widths for x in range(1, k)] + ["bnbfp4", "binary", "ternary"]
    names += [f"q{m}.{k - m}" for k in widths for m in range(1, k + 1)]
    names += [f"vq{d}c{bits}" for d in (2, 4, 8) for bits in range(2, 13)] + [f"e8c{bits}" for bits in E8_SCALES]
    names += [*PRESETS, *(ours for _, _, ours in GGUF.values() if ours)]
    return list(dict.fromkeys(Format.parse(name) for name in names))


def _canonical_range(text: str | None) -> str:
    return "absmax" if text is None else text if text == "mse" else f"p{float(text[1:]):.12g}"
