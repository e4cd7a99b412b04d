"""Safetensors files: their headers, which of them make up a model folder, and writing them as a stream."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ARRAYS = {"U8": torch.uint8, "I32": torch.int32, "F8_E8M0": torch.float8_e8m0fnu, "F8_E4M3": torch.float8_e4m3fn}
CODES = {dtype: code for code, dtype in (FLOATS | ARRAYS).items()}  # types as safetensors spells them
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"  # as transformers names them

Entry = tuple[str, tuple[int, ...]]  # a tensor's type, as safetensors spells it, and shape


@contextmanager
def made_whole(out: Path) -> Iterator[Path]:
    """A path beside `out` for a file or folder that is given its name when the block ends well, else removed."""
    if out.exists() or out.is_symlink():
        raise ValueError(f"{str(out)!r} exists, and nothing is ever overwritten")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=out.parent) as work:
        part = Path(work) / "part"
        yield part
        try:
            if part.is_dir():
                part.rename(out)
            else:
                os.link(part, out)  # unlike a renaming, never over a file that has come meanwhile
        except OSError as error:
            raise ValueError(f"{str(out)!r} cannot be given its name: {error.strerror}; it may exist by now") from None


@contextmanager
def writer(path: Path, stored: dict[str, Entry]) -> Iterator[Callable[[str, Tensor], None]]:
    """A safetensors file that is written as values come, by the function given, which appends some to a tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at, end = dict[str, int](), 0
    for name, entry in sorted(stored.items(), key=lambda item: -bits_of(item[1][0])):  # so all of them are aligned
        at[name], end = end, end + size(entry)
        header[name] = {"dtype": entry[0], "shape": entry[1], "data_offsets": [at[name], end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()

        def append(name: str, values: Tensor) -> None:
            file.seek(start + at[name])
            at[name] += file.write(values.contiguous().flatten().view(torch.uint8).numpy().data)

        yield append
        file.flush()
        os.fsync(file.fileno())


def bits_of(dtype: str) -> int:
    """Bits of a safetensors type, such as F8_E4M3."""
    return int(found[0]) if (found := re.search(r"\d+", dtype)) else 8  # BOOL


def size(entry: Entry) -> int:
    """Bytes of a tensor."""
    return prod(entry[1]) * bits_of(entry[0]) // 8


def shards(source: Path) -> list[Path]:
    """The safetensors files of a source; ValueError if it has none or its index names what is no file beside it."""
    if source.is_file() and source.suffix == ".safetensors":
        return [source]
    if not source.is_dir():
        raise ValueError(f"{str(source)!r} is neither a .safetensors file nor a model folder")
    if (source / WHOLE).is_file():
        return [source / WHOLE]
    index = source / INDEX
    if not index.is_file():
        raise ValueError(f"{str(source)!r} holds neither {WHOLE} nor {INDEX}; no other form of weights is ever loaded")
    try:
        paths = [source / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{str(index)!r} is no index: it has no weight_map from tensors to files") from None
    for path in paths:
        if path != source / path.name or path.suffix != ".safetensors" or not path.is_file():
            raise ValueError(f"{str(index)!r} names {str(path)!r}, which is no safetensors file beside it")
    return paths


def entries(path: Path) -> dict[str, Entry]:
    """Type and shape of each tensor in a safetensors file, from its header; ValueError if the file is not sound."""
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(path)!r} is no sound safetensors file: {error}") from None
