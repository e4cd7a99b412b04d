"""The settings of each chapter, checked before anything runs.

A profile (``params/NAME.yaml``) has a section ``common`` and one for each chapter. Every value is of a JSON type, as
Papermill
passes no other; a notebook's first code cell builds its settings from them, and so does ``kbit run`` before it starts.
"""

from __future__ import annotations

import os
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kbitlib.data.corpus import CorpusSettings, identify
from kbitlib.experiments.formats import known_elements, spell
from kbitlib.models.transformer import Shape
from kbitlib.quant import Format
from kbitlib.runs.store import Store
from kbitlib.training.trainer import Training

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ROOT / "params"
NOTEBOOKS = ROOT / "notebooks"

LEAST_STEPS = 3  # with fewer there is no constant part to branch off

identified = cache(identify)  # five chapters are checked at once, and the text is large

Bits = Annotated[int, Field(ge=2, le=8)]  # one bit is the data type binary's
Positive = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=64, le=65536)]
Batch = Annotated[int, Field(ge=1, le=4096)]
Memory = Annotated[str, Field(pattern=r"^\d+(\.\d+)? ?([KMGT]iB|[kMGT]B)$")]


class Common(BaseModel):
    """What all chapters share: the text, the family trained on it, and where and how it is computed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    profile: str = Field(pattern=r"^[a-z0-9_-]+$")
    corpus: str = Field(min_length=1)
    widths: list[Annotated[int, Field(ge=8, le=8192, multiple_of=4)]] = Field(min_length=1)
    depths: list[Annotated[int, Field(ge=1, le=128)]] = Field(min_length=1)
    seeds: list[Positive]
    tokens: list[Positive] = Field(min_length=1)
    context: Positive
    batch: Positive
    accumulate: Positive
    learning_rate: float = Field(gt=0, le=1)
    dtype: Literal["float32", "bfloat16"]
    device: str = Field(pattern=r"^(cpu|cuda)$")
    held_out: Positive
    engine: str = Field(pattern=r"^(local|serial|tcp://[^/\s]+:\d+)$")

    @model_validator(mode="after")
    def _one_entry_a_size(self) -> Common:
        if not len(self.widths) == len(self.depths) == len(self.seeds):
            sizes = f"{len(self.widths)} widths, {len(self.depths)} depths and {len(self.seeds)} numbers of seeds"
            raise ValueError(f"widths, depths and seeds need one entry a model size; there are {sizes}")
        shapes = [shape.name for shape in self.shapes]
        if len(set(shapes)) < len(shapes):
            raise ValueError(f"each model size may be named once; the sizes are {', '.join(shapes)}")
        return self

    @model_validator(mode="after")
    def _lengths_and_batches_fit(self) -> Common:
        if any(b <= a for a, b in pairwise(self.tokens)):
            raise ValueError(f"the lengths in tokens must increase; they are {self.tokens}")
        least = LEAST_STEPS * self.batch * self.context
        if self.tokens[0] < least:
            raise ValueError(
                f"tokens begins with {self.tokens[0]}; a length needs {LEAST_STEPS} optimiser steps of batch x context "
                f"= {self.batch} x {self.context} bytes, {least} in all"
            )
        if self.held_out < 2 * self.context:
            raise ValueError(f"held_out = {self.held_out} is less than two windows of the context of {self.context}")
        if self.batch % self.accumulate:
            raise ValueError(
                f"a batch of {self.batch} sequences does not divide into accumulate = {self.accumulate} parts"
            )
        return self

    @property
    def shapes(self) -> list[Shape]:
        return [Shape(width=w, depth=d, context=self.context) for w, d in zip(self.widths, self.depths, strict=True)]

    @property
    def corpus_settings(self) -> CorpusSettings:
        """The corpus with the hash of its text; reads the text, once a process."""
        return identified(CorpusSettings(source=self.corpus))

    def training(self, shape: Shape, seed: int, learning_rate: float | None = None) -> Training:
        """The longest run of one member of the family."""
        return Training(
            corpus=self.corpus_settings,
            shape=shape,
            seed=seed,
            tokens=tuple(self.tokens),
            batch=self.batch,
            accumulate=self.accumulate,
            learning_rate=learning_rate or self.learning_rate,
            dtype=self.dtype,
            device=self.device,
            held_out=self.held_out,
        )

    def members(self) -> list[Training]:
        """Every member of the family at its longest: all sizes, all seeds."""
        return [
            self.training(shape, seed) for shape, n in zip(self.shapes, self.seeds, strict=True) for seed in range(n)
        ]

    @property
    def store(self) -> Store:
        """``KBIT_STORE``, else the profile's own below ``reports``."""
        return Store(Path(os.environ.get("KBIT_STORE") or ROOT / "reports" / self.profile / "store"))

    @property
    def folder(self) -> Path:
        """Where pages, figures and tables of records go: beside the store."""
        return self.store.root.parent


class StartHere(Common):
    """Chapter 00: the family."""


class Theory(Common):
    """Chapter 01: what a quantizer does to a number."""

    bits: Annotated[int, Field(ge=2, le=8)]
    samples: Annotated[int, Field(ge=1024, le=2**26)]
    elements: list[str] = Field(min_length=1)
    bit_widths: list[Bits] = Field(min_length=1)
    block: Positive

    _known = field_validator("elements")(known_elements)


class Quantization(Common):
    """Every model in every format: what chapters 02 and 04 share."""

    elements: list[str] = Field(min_length=1)
    bit_widths: list[Bits] = Field(min_length=1)
    block: Positive
    swept_elements: list[str]
    swept_bit_widths: list[Bits]
    swept_blocks: list[int]  # 0 is a whole row
    models: list[str]

    _known = field_validator("elements", "swept_elements")(known_elements)

    @field_validator("swept_blocks")
    @classmethod
    def _blocks(cls, blocks: list[int]) -> list[int]:
        if negative := [block for block in blocks if block < 0]:
            raise ValueError(f"a block holds at least one weight, or 0 for a whole row; not {negative[0]}")
        return blocks

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: list[str]) -> list[str]:
        names = [Path(folder).name for folder in models]
        if len(set(names)) < len(names):
            raise ValueError(
                f"models are known by the last part of their path, which must differ; they are {', '.join(names)}"
            )
        return models

    def formats(self) -> dict[str, tuple[str, ...]]:
        """Formats by data type: each at every k and one block, some at other blocks."""
        table = {e: [spell(e, k, self.block) for k in self.bit_widths] for e in self.elements}
        for element in self.swept_elements:
            swept = [spell(element, k, block) for k in self.swept_bit_widths for block in self.swept_blocks]
            table[element] = [*table.get(element, []), *swept]
        return {element: tuple(dict.fromkeys(names)) for element, names in table.items()}


class Writing(Quantization):
    """How fast models write: what chapters 02 and 07 share."""

    decoder_width: Positive
    decoder_depth: Positive
    decoder_heads: Positive
    decoder_bits: list[Literal[1, 2, 3, 4, 5, 6, 7, 8, 16]] = Field(min_length=1)
    decoder_tokens: Annotated[int, Field(ge=1, le=4096)]

    @model_validator(mode="after")
    def _there_is_such_a_decoder(self) -> Writing:
        if len(set(self.decoder_bits)) < len(self.decoder_bits) or 16 not in self.decoder_bits:
            raise ValueError(
                f"decoder_bits hold 16, which is not quantized, and others once; they are {self.decoder_bits}"
            )
        _ = self.decoder
        return self

    @property
    def decoder(self) -> Shape:
        """The decoder of random weights that is timed; raises ValueError for a shape that there is not."""
        return Shape(width=self.decoder_width, depth=self.decoder_depth, heads=self.decoder_heads)


class Runs(Writing):
    """Chapter 02: the same, then the methods, and how fast it goes."""

    methods: list[Literal["rtn", "gptq", "awq", "hqq", "rotation", "outliers", "vector"]]
    method_bit_widths: list[Annotated[int, Field(ge=2, le=6)]] = Field(min_length=1)
    timed_size: Annotated[int, Field(ge=64, le=16384)]
    timed_rounds: Annotated[int, Field(ge=1, le=101)]
    product_sizes: list[Annotated[list[Size], Field(min_length=2, max_length=2)]] = Field(min_length=1)
    product_batches: list[Batch] = Field(min_length=1)
    product_rounds: Annotated[int, Field(ge=1, le=101)]
    crossing_batches: list[Batch] = Field(min_length=1)

    @model_validator(mode="after")
    def _speeds_can_be_compared(self) -> Runs:
        if 1 not in self.product_batches:
            raise ValueError(f"product_batches must hold 1, a token at a time; they are {self.product_batches}")
        if any(b <= a for batches in (self.product_batches, self.crossing_batches) for a, b in pairwise(batches)):
            raise ValueError(f"batches must increase; they are {self.product_batches} and {self.crossing_batches}")
        return self

    @model_validator(mode="after")
    def _methods_can_be_compared(self) -> Runs:
        for name, values in (("methods", self.methods), ("method_bit_widths", self.method_bit_widths)):
            if len(set(values)) < len(values):
                raise ValueError(f"each of {name} may be named once; they are {values}")
        if "rtn" not in self.methods:
            raise ValueError(f"methods must hold rtn, which the others are compared with; they are {self.methods}")
        for method in self.methods:
            for form in self.method_formats(method):
                Format.parse(form)
        return self

    def method_formats(self, method: str) -> tuple[str, ...]:
        """A method's formats: int at one block, with a float zero point for HQQ (and once more for rounding, beside
        it); for vectors two weights a code."""
        spelled = {"hqq": "int{k}-{block}-zpf", "vector": "vq2c{codes}-{block}"}.get(method, "int{k}-{block}")
        both = (spelled, "int{k}-{block}-zpf") if method == "rtn" else (spelled,)
        block = f"b{self.block}"
        return tuple(form.format(k=k, codes=2 * k, block=block) for form in both for k in self.method_bit_widths)


class Finetuning(Common):
    """Chapter 03: training with quantized weights in the forward pass."""

    block: Positive
    finetune_sizes: Positive
    finetune_bits: list[Annotated[int, Field(ge=2, le=8)]] = Field(min_length=1)
    finetune_tokens: list[Positive] = Field(min_length=1)
    finetune_rate: float = Field(gt=0, le=1)  # as a share of the rate of training

    @model_validator(mode="after")
    def _tuning_makes_sense(self) -> Finetuning:
        step = self.batch * self.context
        if self.finetune_tokens[0] < step or any(b <= a for a, b in pairwise(self.finetune_tokens)):
            raise ValueError(
                f"finetune_tokens must increase from at least one step, {step}; they are {self.finetune_tokens}"
            )
        if len(set(self.finetune_bits)) < len(self.finetune_bits):
            raise ValueError(f"each of finetune_bits may be named once; they are {self.finetune_bits}")
        return self


class Regression(Quantization):
    """Chapter 04: the law, over the records of chapter 02."""

    coverage_surfaces: Annotated[int, Field(ge=10, le=10_000)]
    coverage_resamples: Annotated[int, Field(ge=50, le=10_000)]


class Choosing(Writing):
    """Chapter 07: what to take for a size of memory, of this family and of published ones."""

    memories: list[Memory] = Field(min_length=1)
    published_family: Literal["OPT", "BLOOM", "LLaMA-1"]  # those of four sizes and more
    published_memories: list[Memory] = Field(min_length=1)
    tokens_per_second: float = Field(gt=0)
    served: list[Annotated[float, Field(ge=0)]] = Field(min_length=1)


CHAPTERS: dict[str, type[Common]] = {
    "00_start_here": StartHere,
    "01_quantizer_theory": Theory,
    "02_quantization_runs": Runs,
    "03_scaled_finetuning": Finetuning,
    "04_scaling_regression": Regression,
    "07_choose_bits": Choosing,
}


def read_profile(name: str) -> dict[str, dict[str, Any]]:
    """The sections of ``params/NAME.yaml``; raises ValueError naming an unknown profile or section."""
    path = PROFILES / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(
            f"there is no profile {name!r}; there are {', '.join(sorted(p.stem for p in PROFILES.glob('*.yaml')))}"
        )
    sections: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if unknown := sorted(set(sections) - {"common", *CHAPTERS}):
        raise ValueError(f"profile {name!r} has a section {unknown[0]!r}; allowed are common, {', '.join(CHAPTERS)}")
    return sections


def parameters(profile: str, chapter: str, given: dict[str, Any]) -> dict[str, Any]:
    """What a chapter is run with: of the profile's common section and of ``given`` what it knows, and its own
    section."""
    sections = read_profile(profile)
    fields = CHAPTERS[chapter].model_fields
    common = {"profile": profile, **sections.get("common", {})}
    own = {**common, **sections.get(chapter, {}), **given}
    names = fields.keys() | sections.get(chapter, {}).keys()
    return {name: value for name, value in own.items() if name in names}


def check(chapter: str, values: dict[str, Any]) -> Common:
    """A chapter's settings; raises ValueError in one sentence that names the wrong parameter, its value and what is
    allowed."""
    try:
        return CHAPTERS[chapter](**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown parameter; {chapter} takes {', '.join(CHAPTERS[chapter].model_fields)}"
        shown = "" if not first["loc"] or first["type"] == "missing" else f" = {first['input']!r}"
        raise ValueError(": ".join(filter(None, [chapter, name + shown, message]))) from None
