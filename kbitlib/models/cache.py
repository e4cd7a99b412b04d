"""Keys and values that attention has seen, kept so that each new token is read once, in the model's type or in k bits.

What is notable: a head's keys, or values, of one token are quantized by themselves along their channels, so that what
is kept does not depend on how many tokens came at once, and nothing is rounded twice. (Hooper et al. 2024, KVQuant,
arXiv:2401.18079, and Liu et al. 2024, KIVI, arXiv:2402.02750, take keys by channel, which must wait for whole blocks of
tokens.)
"""

from __future__ import annotations

from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor

from kbitlib.quant import Format, QuantizedTensor, quantize
from kbitlib.quant.blocks import TENSOR
from kbitlib.quant.packing import TRITS, pack, packed_bytes, unpack


class KVCache:
    """Keys and values of up to ``capacity`` tokens, by layer, for inference: gradients do not pass through.

    format: None for the type they come in; else one in which a row of channels is quantized by itself, such as
    "int4-row" or "nf3-b32". ValueError for others: scales or levels that tokens share, vectors, fixed point.
    """

    def __init__(self, capacity: int, format: str | Format | None = None) -> None:
        if not isinstance(capacity, int) or capacity < 1:
            raise ValueError(f"a cache keeps a whole number of tokens, at least one, not {capacity!r}")
        self.capacity = capacity
        self.format = None if format is None else Format.parse(str(format))
        if self.format is not None and not _by_token(self.format):
            raise ValueError(
                f"{self.format} does not keep tokens one by one; take a format such as int4-row or nf3-b32"
            )
        self.length = 0  # tokens kept; those of the layers that have more are being read
        self._layers: dict[int, dict[str, Tensor]] = {}  # arrays (2, batch, heads, capacity, n), keys before values
        self._kinds: dict[int, tuple[object, ...]] = {}  # type, batch, heads and channels of a layer's numbers
        self._channels = 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take up a layer's new keys and values (batch, heads, time, channels); those of all tokens, as they are kept.

        The tokens count when `length` is raised, after the last layer. ValueError beyond the capacity, without tokens,
        and for numbers of another type, batch, heads or channels than those that are kept.
        """
        kind = (keys.dtype, *keys.shape[:2], keys.shape[-1])
        if not keys.numel() or values.shape != keys.shape or values.dtype != keys.dtype:
            raise ValueError(f"keys {tuple(keys.shape)} and values {tuple(values.shape)} are not alike, or empty")
        if self.length and self._kinds.get(layer, kind) != kind:
            raise ValueError(f"the cache keeps (type, batch, heads, channels) {self._kinds[layer]}, not {kind}")
        new = torch.stack((keys.detach(), values.detach()))
        stop = self.length + new.shape[3]
        if stop > self.capacity:
            raise ValueError(f"{stop} tokens do not fit the cache of {self.capacity}")
        self._channels = new.shape[4]
        parts = {"values": new} if self.format is None else _packed(new, self.format)
        if self._kinds.get(layer) != kind:
            self._kinds[layer] = kind
            room = {name: (*part.shape[:3], self.capacity, part.shape[4]) for name, part in parts.items()}
            self._layers[layer] = {name: part.new_empty(room[name]) for name, part in parts.items()}
        for name, part in parts.items():
            self._layers[layer][name][:, :, :, self.length : stop] = part
        held = {name: array[:, :, :, :stop] for name, array in self._layers[layer].items()}
        kept = held["values"] if self.format is None else _restored(held, self.format, new.shape[4], new.dtype)
        return kept[0], kept[1]

    def clear(self) -> None:
        """Forget all tokens; the memory is used again."""
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes that the tokens kept take, each row of codes filled up to whole bytes."""
        arrays = [array[:, :, :, : self.length] for layer in self._layers.values() for array in layer.values()]
        return sum(array.nbytes for array in arrays)

    @property
    def bits_per_value(self) -> float:
        """Bits that a number among the keys and values takes, everything counted; 0 for an empty cache."""
        first = [next(iter(layer.values())) for layer in self._layers.values()]
        values = sum(array[:, :, :, : self.length, 0].numel() for array in first) * self._channels
        return 8 * self.nbytes / values if values else 0.0


def _by_token(format: Format) -> bool:
    shared = format.block == TENSOR or format.scale in ("dq", "e4m3") or format.learned
    return not shared and format.weights_per_code == 1


def _packed(x: Tensor, format: Format) -> dict[str, Tensor]:
    """The arrays of numbers (..., channels), each (..., n) with whole bytes a row."""
    rows, channels = x[..., 0].numel(), x.shape[-1]
    arrays = quantize(x.reshape(rows, channels), format).arrays
    for name, count in _coded(format, channels).items():
        if fill := _fill(format.k, count):
            codes = unpack(arrays[name], format.k, rows * count).view(rows, count)
            filled = pack(F.pad(codes, (0, fill)).flatten(), format.k).view(rows, -1)
            arrays[name] = filled[:, : packed_bytes(count, format.k)]
    return {name: array.reshape(*x.shape[:-1], -1) for name, array in arrays.items()}


def _restored(parts: dict[str, Tensor], format: Format, channels: int, dtype: torch.dtype) -> Tensor:
    """The numbers (..., channels) that such arrays stand for."""
    shape = parts["codes"].shape[:-1]
    arrays = {name: part.flatten(0, -2) for name, part in parts.items()}  # (rows, n)
    for name, count in _coded(format, channels).items():
        if fill := _fill(format.k, count):
            missing = packed_bytes(count + fill, format.k) - arrays[name].shape[1]
            filled = F.pad(arrays[name], (0, missing)).flatten()
            codes = unpack(filled, format.k, shape.numel() * (count + fill)).view(-1, count + fill)
            arrays[name] = pack(codes[:, :count].flatten(), format.k)
        arrays[name] = arrays[name].flatten()
    matrix = torch.Size((shape.numel(), channels))
    return QuantizedTensor(format, matrix, dtype, **arrays).dequantize().view(*shape, channels)


def _coded(format: Format, channels: int) -> dict[str, int]:
    """How many k-bit numbers a row has in the arrays that hold such."""
    zeros = {"zeros": format.blocks((1, channels)).per_row} if format.zero == "zp" else {}
    return {"codes": channels, **zeros}


def _fill(k: float, count: int) -> int:
    """Codes that make so many a whole number of bytes."""
    return -count % (TRITS if 1 < k < 2 else 8 // gcd(8, int(k)))
