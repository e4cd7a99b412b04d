"""From a tensor to k bits a weight and back: formats, exact levels, blocks, scales, packing."""

from kbitlib.quant.format import Format
from kbitlib.quant.tensor import QuantizedTensor, quantize

__all__ = ["Format", "QuantizedTensor", "quantize"]
