"""How block scales are stored: fp32, fp16, bf16, E8M0 (powers of two), E4M3, or double quantized.

A block's scale is its span, what its levels have to cover, over their extent, what they cover at a scale of one.
"""

from dataclasses import dataclass
from math import ceil, log2

import torch
from torch import Tensor

from kbitlib.quant.codebooks import codebook
from kbitlib.quant.format import OUTER_BLOCK, Format
from kbitlib.quant.rounding import nearest

FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "dq": torch.float32}
E4M3_MAX = 448.0


@dataclass(frozen=True, eq=False)
class ScaleRule:
    """How a tensor's spans become scales.

    kind: the format's scale. extent: of the levels. outer: () float32, the scale above E4M3 scales (NVFP4's second
    level), which brings the largest of them to 448; one for other kinds.
    """

    kind: str
    extent: float
    outer: Tensor

    @classmethod
    def of(cls, format: Format, spans: list[Tensor]) -> "ScaleRule":
        """The rule for a tensor whose blocks have these spans."""
        outer = spans[0].new_ones(())
        if format.scale == "e4m3":
            largest = torch.cat([span.flatten().abs() for span in spans] + [torch.zeros_like(outer)[None]]).max()
            outer = torch.where(largest > 0, largest / abs(format.extent) / E4M3_MAX, outer)
        return cls(format.scale, format.extent, outer)

    def rounded(self, span: Tensor) -> Tensor:
        """The scales as they will be read back, float32, like span; under double quantization not yet rounded.

        E8M0 is 2^(floor(log2 span) - emax) with 2^emax < extent <= 2^(emax+1) (OCP microscaling 1.0, section 6.3), the
        smallest power for a span of zero. A scale beyond its type comes back as zero or infinity.
        """
        if self.kind == "e8m0":
            exponent = torch.frexp(span).exponent - ceil(log2(self.extent))
            return torch.ldexp(torch.ones_like(span), torch.where(span == 0, -127, exponent))
        scale = span / self.extent
        if self.kind == "e4m3":
            inner = (scale / self.outer).clamp(-E4M3_MAX, E4M3_MAX)  # GPTQ enlarges spans; not every torch saturates
            return inner.to(torch.float8_e4m3fn).float() * self.outer
        return scale.to(FLOATS[self.kind]).float()

    def check(self, scale: Tensor, span: Tensor) -> None:
        """ValueError if a scale of a block that is not all zero is beyond what its type can hold."""
        unfit = (span != 0) & ~((scale != 0) & scale.isfinite() & (1 / scale).isfinite())
        if unfit.any():
            wanted = float(span[unfit][0]) / self.extent
            way_out = (
                "multiply the tensor by a constant" if self.kind in ("fp32", "bf16", "dq") else "use -bf16 or -fp32"
            )
            raise ValueError(f"a block needs the scale {wanted:.4g}, which does not fit {self.kind}: {way_out}")

    def store(self, scale: Tensor) -> tuple[Tensor, Tensor | None]:
        """(rows, per_row) rounded scales -> the array stored and the second level.

        The second level is None, for "e4m3" the outer scale (1,), and for "dq" the scales' mean followed by the largest
        deviation from it among each 256 of them, (1 + ceil(n/256),).
        """
        if self.kind == "dq":
            return _double_quantized(scale)
        if self.kind == "e8m0":
            return scale.to(torch.float8_e8m0fnu), None
        if self.kind == "e4m3":
            return (scale / self.outer).to(torch.float8_e4m3fn), self.outer[None]
        return scale.to(FLOATS[self.kind]), None


def load(stored: Tensor, outer: Tensor | None, kind: str) -> Tensor:
    """The inverse of `store`: (rows, per_row) float32."""
    if outer is None:
        return stored.float()
    if kind == "e4m3":
        return stored.float() * outer
    levels = codebook("dynamic8").levels.to(stored.device)
    largest = outer[1:].repeat_interleave(OUTER_BLOCK)[: stored.numel()]
    return (levels[stored.flatten().int()] * largest + outer[0]).view_as(stored)


def _double_quantized(scale: Tensor) -> tuple[Tensor, Tensor]:
    """Deviations from the mean in the 8-bit dynamic type, in blocks of 256 (Dettmers et al. 2023, QLoRA, section 3)."""
    mean = scale.mean() if scale.numel() else scale.new_zeros(())
    missing = -scale.numel() % OUTER_BLOCK
    deviations = torch.nn.functional.pad(scale.flatten() - mean, (0, missing)).view(-1, OUTER_BLOCK)
    largest = deviations.abs().amax(1, keepdim=True)
    inverse = torch.where(largest > 0, 1 / largest, 0)
    if not (mean.isfinite() and largest.isfinite().all()):
        raise ValueError("the sum of the scales is beyond float32, so dq cannot store them: use -fp32 or -bf16")
    codes = nearest(deviations * inverse, codebook("dynamic8").to(scale.device))
    return codes.flatten()[: scale.numel()].view_as(scale), torch.cat([mean[None], largest.flatten()])
