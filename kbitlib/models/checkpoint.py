"""Quantized checkpoints on disk: a folder of safetensors files and ``kbit.json``, written and read a tensor at a time.

A quantized tensor NAME is stored as NAME.codes, NAME.scales, ... (`QuantizedTensor.arrays`), any other as it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from math import prod, sqrt
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, NonNegativeInt, ValidationError
from safetensors import safe_open
from torch import Tensor, nn

from kbitlib.methods.hqq import hqq
from kbitlib.models.layers import is_linear
from kbitlib.models.pretrained import architecture, own_names, read_weights, read_windows
from kbitlib.models.quantized import CALIBRATED, METHODS, QuantizedLinear, quantize_linears
from kbitlib.models.tensor_files import CODES, FLOATS, INDEX, WHOLE, Entry, entries, made_whole, shards, size, writer
from kbitlib.quant import Format, QuantizedTensor, quantize
from kbitlib.quant.blocks import TENSOR

MANIFEST = "kbit.json"
SIDE_FILES = (".json", ".txt", ".model", ".jinja")  # configuration and tokenizer
CALIBRATION = 128  # windows of the text, as in GPTQ (Frantar et al. 2022, section 4)
PIECE = 2**20  # weights quantized at once: a float32 temporary takes 4 MiB


class Record(BaseModel, extra="forbid"):
    """What ``kbit.json`` says of a tensor: its own type and shape; its role: matrix, linear, transposed linear (GPT-2's
    ``Conv1D``, quantized as (out, in)), convolution, output projection or other; the format, None if it was kept; and
    the error, |dequantized - original| / |original| in Frobenius norms."""

    dtype: str
    shape: tuple[NonNegativeInt, ...]
    role: str
    format: str | None = None
    outliers: NonNegativeInt = 0  # columns
    error: float | None = None

    @property
    def turned(self) -> bool:
        """Whether the weight is kept as (in, out)."""
        return self.role == "transposed linear"

    @property
    def matrix(self) -> torch.Size:
        """The shape that is quantized, (out, in, ...)."""
        return torch.Size(self.shape[::-1] if self.turned else self.shape)


class Manifest(BaseModel, extra="forbid"):
    """The content of ``kbit.json``."""

    version: Literal[1] = 1
    method: str
    tensors: dict[str, Record]


class Checkpoint:
    """A quantized folder opened for reading.

    ValueError if it is none, if another version wrote it, or if an array is missing or not what its format implies.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise ValueError(f"{str(folder)!r} is not a quantized folder: it has no {MANIFEST}")
        try:
            self.manifest = Manifest.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{str(path)!r} is no manifest of version 1: {first['loc']}: {first['msg']}") from None
        self.entries, self.file_of = dict[str, Entry](), dict[str, Path]()
        for file in sorted(Path(folder).glob("*.safetensors")):
            self.entries |= (found := entries(file))
            self.file_of |= dict.fromkeys(found, file)
        for name, record in self.manifest.tensors.items():
            if record.format and record.dtype not in FLOATS:
                raise ValueError(f"{str(path)!r}: {name} cannot have been quantized from {record.dtype}")
            for stored, entry in layout(name, record).items():
                if (there := self.entries.get(stored)) != entry:
                    raise ValueError(f"{str(folder)!r} should hold {stored}, {entry}, and has {there or 'it not'}")

    def read(self, name: str) -> Tensor | QuantizedTensor:
        """A tensor as it is stored: quantized ones as (out, in, ...)."""
        arrays, record = {}, self.manifest.tensors[name]
        for stored in layout(name, record):
            with safe_open(self.file_of[stored], "pt") as file:
                arrays[stored.removeprefix(f"{name}.")] = file.get_tensor(stored)
        if record.format is None:
            return arrays[name]
        return QuantizedTensor(Format.parse(record.format), record.matrix, FLOATS[record.dtype], **arrays)

    def dequantized(self, name: str) -> Tensor:
        """A tensor in its own type and shape."""
        tensor, record = self.read(name), self.manifest.tensors[name]
        if isinstance(tensor, Tensor):
            return tensor
        return tensor.dequantize().T if record.turned else tensor.dequantize()

    def summary(self) -> dict[str, Any]:
        """Each tensor's name, record and bits a weight, those that were kept last, and bytes and bits in all."""
        records = sorted(self.manifest.tensors.items(), key=lambda item: item[1].format is None)
        sizes = {name: sum(map(size, layout(name, record).values())) for name, record in records}
        bits = {name: {"bits_per_weight": 8 * sizes[name] / max(prod(record.shape), 1)} for name, record in records}
        rows = [{"name": name, **record.model_dump(), **bits[name]} for name, record in records]
        total, weights = sum(sizes.values()), sum(prod(record.shape) for _, record in records)
        method, in_all = self.manifest.method, 8 * total / max(weights, 1)
        return {"method": method, "tensors": rows, "bytes": total, "bits_per_weight": in_all}


def load_quantized(folder: str | Path) -> nn.Module:
    """The ``transformers`` model of a quantized folder: linear layers are `QuantizedLinear`, all else is float32.

    ValueError for a folder that is not quantized, or whose tensors are not those of the model in its configuration.
    """
    checkpoint = Checkpoint(folder)
    model_class, config = architecture(folder)
    packed, rest = dict[str, QuantizedTensor](), dict[str, Tensor]()
    for name, record in checkpoint.manifest.tensors.items():
        tensor = checkpoint.read(name)
        if isinstance(tensor, QuantizedTensor) and record.role.endswith("linear"):
            packed[name], rest[name] = tensor, torch.empty(1, 1)
        else:
            rest[name] = checkpoint.dequantized(name)

    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        for name, own in own_names(packed, self).items():
            if self.get_parameter(own).shape != checkpoint.manifest.tensors[name].shape:
                raise ValueError(f"{name} is not of the shape that the configuration wants")
            self.get_submodule(own.removesuffix(".weight")).weight = nn.Parameter(torch.empty(1, 1))

    # with a stand-in for each linear weight, transformers loads all else as it does: names, ties, buffers not stored
    lighter = type(model_class.__name__, (model_class,), {"__init__": build, "__module__": model_class.__module__})
    model: Any = read_weights(lighter, folder, config=config, state_dict=rest)
    for name, own in own_names(packed, model).items():
        path = own.removesuffix(".weight")
        model.set_submodule(path, QuantizedLinear(packed[name], model.get_submodule(path).bias))
    return model


def quantize_checkpoint(
    source: str | Path, format: str | Format, out: str | Path, method: str = "rtn", calibration: str | None = None
) -> Checkpoint:
    """Quantize a ``.safetensors`` file (each floating matrix) or a model folder (the weights of linear and convolution
    layers but the output projection) into a folder that is there whole or not at all.

    calibration: a text file; gptq, awq and outliers need it. They and rotation hold the whole model in memory.
    ValueError for what cannot be read or quantized, and if `out` exists.
    """
    source, format = Path(source), Format.parse(str(format))
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    if method in CALIBRATED and calibration is None:
        raise ValueError(f"method {method} chooses codes by what layers are fed, so it needs a calibration text")
    with made_whole(Path(out)) as folder:
        files, ready, sources = plan(source, format), dict[str, QuantizedTensor](), [source]
        folder.mkdir()
        if method not in ("rtn", "hqq"):  # which see one weight at a time
            ready = prepare(source, format, method, calibration, folder / "prepared")
            sources += [folder / "prepared"]
            files = plan(sources[-1], format)
        for path in [path for one in sources if one.is_dir() for path in one.iterdir()]:
            if path.is_file() and path.suffix in SIDE_FILES and path.name != INDEX:
                shutil.copyfile(path, folder / path.name)
        tensors = {name: record for records in files.values() for name, record in records.items()}
        for name, weight in ready.items():
            tensors[name].outliers = 0 if weight.outliers is None else weight.outliers.shape[1]
        places: dict[str, str] = {}
        for path, records in files.items():
            stored = [item for name, record in records.items() for item in layout(name, record).items()]
            if len(dict(stored)) < len(stored):
                raise ValueError(f"{str(path)!r} has tensors whose names are those of others' quantized arrays")
            with writer(folder / path.name, dict(stored)) as append:
                for name, record in records.items():
                    for place, values in converted(path, name, record, method, ready.get(name)):
                        append(place, values)
            places |= dict.fromkeys(dict(stored), path.name)
        if source.is_dir() and WHOLE not in places.values():
            (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}, indent=1))
        (folder / MANIFEST).write_text(Manifest(method=method, tensors=tensors).model_dump_json(indent=1))
        shutil.rmtree(folder / "prepared", ignore_errors=True)
    return Checkpoint(out)


def dequantize_checkpoint(folder: str | Path, out: str | Path) -> None:
    """Write all tensors of a quantized folder, in their own names, shapes and types, to one safetensors file.

    ValueError for a folder that is not a quantized one, and if `out` exists.
    """
    checkpoint = Checkpoint(folder)
    stored = {name: (record.dtype, record.shape) for name, record in checkpoint.manifest.tensors.items()}
    with made_whole(Path(out)) as path, writer(path, stored) as append:
        for name in stored:
            append(name, checkpoint.dequantized(name))


def plan(source: Path, format: Format) -> dict[Path, dict[str, Record]]:
    """What is to become of each tensor, by file; ValueError if none is to be quantized."""
    if ((source if source.is_dir() else source.parent) / MANIFEST).is_file():
        raise ValueError(f"{str(source)!r} is quantized already: {MANIFEST} lies there")
    files = {path: entries(path) for path in shards(source)}
    found = {name: entry for one in files.values() for name, entry in one.items()}
    matrices = {name: "matrix" for name, (_, shape) in found.items() if len(shape) == 2}
    roles = layer_roles(source, found) if source.is_dir() else matrices
    records = {n: Record(dtype=dtype, shape=shape, role=roles.get(n, "other")) for n, (dtype, shape) in found.items()}
    for record in records.values():
        if record.dtype in FLOATS and record.role not in ("other", "output projection"):
            record.format = str(format)
    if not any(record.format for record in records.values()):
        raise ValueError(f"{str(source)!r} holds no floating matrix, or weight of a linear or convolution layer")
    return {path: {name: records[name] for name in one} for path, one in files.items()}


def layer_roles(source: Path, found: dict[str, Entry]) -> dict[str, str]:
    """The roles of linear and convolution weights, by name, in the model of a folder's configuration."""
    model_class, config = architecture(source)
    try:
        with torch.device("meta"):
            model = model_class(config)
    except Exception as error:  # what a foreign configuration may make a library raise has no end
        raise ValueError(f"{str(source)!r} has a configuration of no {model_class.__name__}: {error}") from None
    layers: dict[str, Any] = dict(model.named_modules())
    roles = {}
    for name, own in own_names(found, model).items():
        layer = layers.get(own.removesuffix(".weight"), model)
        if is_linear(layer) or isinstance(layer, (nn.Conv1d, nn.Conv2d)):
            kind = (
                "linear" if isinstance(layer, nn.Linear) else "transposed linear" if is_linear(layer) else "convolution"
            )
            roles[name] = "output projection" if layer is model.get_output_embeddings() else kind
            if (shape := found[name][1]) != (wanted := tuple(layer.weight.shape)):
                raise ValueError(f"tensor {name} has shape {shape}, and the configuration wants {wanted}")
    return roles


def layout(name: str, record: Record) -> dict[str, Entry]:
    """Type and shape of what is stored of a tensor, by name, known before it is quantized."""
    if record.format is None:
        return {name: (record.dtype, record.shape)}
    arrays = Format.parse(record.format).layout(record.matrix)
    stored = {f"{name}.{array}": (CODES[dtype], shape) for array, (dtype, shape) in arrays.items()}
    if count := record.outliers:
        rows = record.matrix[0]
        stored |= {f"{name}.outlier_columns": ("I32", (count,)), f"{name}.outliers": ("F16", (rows, count))}
    return stored


def converted(
    path: Path, name: str, record: Record, method: str, ready: QuantizedTensor | None
) -> Iterator[tuple[str, Tensor]]:
    """What to store of a tensor, as names and values, piece by piece; then its error is in its record."""
    with safe_open(path, "pt") as source:
        if record.format is None:
            yield name, source.get_tensor(name)
            return
        format, error, norm = Format.parse(record.format), 0.0, 0.0
        for part in pieces(source.get_slice(name), record, whole=ready is not None):
            try:
                packed = ready or (hqq(part, None, format) if method == "hqq" else quantize(part, format))
            except ValueError as reason:
                raise ValueError(f"tensor {name}: {reason}") from None
            yield from ((f"{name}.{array}", values) for array, values in packed.arrays.items() if values.numel())
            restored = packed.dequantize(part.dtype).view(part.shape)
            for one, other in zip(part.split(256), restored.split(256), strict=True):
                norm += torch.linalg.vector_norm(one.double()).item() ** 2
                error += torch.linalg.vector_norm(other.double() - one.double()).item() ** 2
        record.error = sqrt(error / norm) if norm else 0.0


def pieces(weight: Any, record: Record, whole: bool) -> Iterator[Tensor]:
    """A weight on disk as (out, in): rows whose codes fill whole bytes, if the format quantizes each row by itself."""
    (rows, *others), format = record.matrix, Format.parse(str(record.format))
    whole |= format.block == TENSOR or format.scale in ("dq", "e4m3") or format.learned
    step = max(rows, 1) if whole else 40 * max(1, PIECE // (40 * max(prod(others), 1)))  # 8 codes of k bits, 5 trits
    for start in range(0, rows, step):
        stop = start + step
        yield (weight[:, start:stop].T if record.turned else weight[start:stop]).flatten(1)


def prepare(source: Path, format: Format, method: str, text: str | None, folder: Path) -> dict[str, QuantizedTensor]:
    """Save a model as a method changes it before its weights are rounded; the packed weights by tensor name."""
    if source.is_file():
        raise ValueError(f"method {method} works on a model, so it takes a model folder, not {str(source)!r}")
    model_class, config = architecture(source)
    tokens = read_windows(source, config, text)[1][:CALIBRATION, :-1] if text is not None else None
    model: Any
    model, packed = quantize_linears(read_weights(model_class, source), format, method, tokens)
    model.to(config.dtype or torch.float32).save_pretrained(folder)
    names = own_names([name for path in shards(folder) for name in entries(path)], model)
    return {name: packed[path] for name, own in names.items() if (path := own.removesuffix(".weight")) in packed}
