"""What each chapter rests on: the steps and settings whose records it reads, so that status can be told without
running."""

from __future__ import annotations

from typing import Any

from kbitlib.data.corpus import prepare
from kbitlib.experiments.family import lengths
from kbitlib.experiments.finetuning import Tuning, tune_member, tuning_grid
from kbitlib.experiments.formats import spell
from kbitlib.experiments.products import product_formats
from kbitlib.experiments.quantization import Quantizing, quantization_grid, quantize_member
from kbitlib.experiments.settings import Common, Finetuning, Quantization, Runs, StartHere, Writing
from kbitlib.experiments.timing import (
    Generation,
    Products,
    Timing,
    time_generation,
    time_products,
    time_quantization,
)
from kbitlib.models.pretrained import Pretrained, identify_folder
from kbitlib.training.trainer import Training, train


def learning_rate_check(settings: Common) -> list[Training]:
    """The shortest run of the smallest and the largest size at half, once and twice the rule's learning rate."""
    ends = [settings.shapes[0], settings.shapes[-1]]
    return [
        lengths(settings.training(shape, 0, factor * settings.learning_rate))[0]
        for shape in ends
        for factor in (0.5, 1.0, 2.0)
    ]


def first_question(settings: Common) -> list[Quantizing]:
    """One seed of each size at 2, 4 and 8 bits: enough to ask the question once."""
    sizes = [settings.training(shape, 0) for shape in settings.shapes]
    return quantization_grid(sizes, {"int": tuple(spell("int", k, 64) for k in (2, 4, 8))})


def members(settings: Quantization) -> list[Training] | list[Pretrained]:
    """The family that chapters 02 and 04 are about: the one trained here, or the pretrained models given."""
    if not settings.models:
        return settings.members()
    return [
        Pretrained(
            folder=folder,
            content=identify_folder(folder, settings.context),
            corpus=settings.corpus_settings,
            context=settings.context,
            held_out=settings.held_out,
            device=settings.device,
        )
        for folder in settings.models
    ]


def quantizations(settings: Quantization) -> list[Quantizing]:
    """Every model in every format."""
    return quantization_grid(members(settings), settings.formats())


def method_runs(settings: Runs) -> list[Quantizing]:
    """One seed of every model by every method."""
    chosen = [member for member in members(settings) if isinstance(member, Pretrained) or member.seed == 0]
    return [
        job
        for method in settings.methods
        for job in quantization_grid(
            chosen, {method: settings.method_formats(method)}, "rtn" if method == "vector" else method
        )
    ]


def timing(settings: Runs) -> Timing:
    """How fast this machine quantizes, at the chapter's widths."""
    widths = tuple(k for k in settings.bit_widths if k > 1)
    return Timing(size=settings.timed_size, rounds=settings.timed_rounds, bit_widths=widths)


def product_runs(settings: Runs) -> list[Products]:
    """How fast weights are multiplied with from their packed bits: on the CPU, and on every size on a GPU."""
    formats, batches = tuple(product_formats(settings.bit_widths)), tuple(settings.product_batches)
    places = [("cpu", size) for size in settings.product_sizes[:1]]
    places += [("cuda", size) for size in settings.product_sizes if settings.device == "cuda"]
    return [
        Products(
            rows=rows,
            columns=columns,
            batches=batches,
            rounds=settings.product_rounds,
            formats=formats,
            device=device,
            peers=True,
        )
        for device, (rows, columns) in places
    ]


def crossing_run(settings: Runs) -> Products:
    """At how large a batch packed bits stop paying, on the CPU: two widths and the unquantized product."""
    rows, columns = settings.product_sizes[0]
    return Products(
        rows=rows,
        columns=columns,
        batches=tuple(settings.crossing_batches),
        rounds=settings.product_rounds,
        formats=("nf4-b64", "nf2-b64"),
        device="cpu",
        peers=False,
    )


def generation_runs(settings: Writing) -> list[Generation]:
    """How fast the largest size of the family and a larger decoder write, on the CPU."""
    bits, tokens = tuple(settings.decoder_bits), settings.decoder_tokens
    return [
        Generation(width=shape.width, depth=shape.depth, heads=shape.heads, bits=bits, tokens=tokens, seed=0)
        for shape in (settings.shapes[-1], settings.decoder)
    ]


def tunings(settings: Finetuning) -> list[Tuning]:
    """The first sizes, one seed each, through ``int`` at each of the bit widths."""
    chosen = [settings.training(shape, 0) for shape in settings.shapes[: settings.finetune_sizes]]
    formats = [spell("int", k, settings.block) for k in settings.finetune_bits]
    return tuning_grid(chosen, formats, settings.finetune_tokens, settings.finetune_rate)


def roundings(settings: Finetuning) -> list[Quantizing]:
    """The same members rounded to nearest without training, at the widths tuned through and at 4 bits."""
    members = list(dict.fromkeys(job.training for job in tunings(settings)))
    widths = sorted({*settings.finetune_bits, 4})
    return quantization_grid(members, {"int": tuple(spell("int", k, settings.block) for k in widths)})


def plan(settings: Common) -> list[tuple[Any, Any]]:
    """The (step, settings) of all records that a chapter reads."""
    steps: list[tuple[Any, Any]] = [(prepare, settings.corpus_settings)]
    if not getattr(settings, "models", []):
        steps += [(train, length) for member in settings.members() for length in lengths(member)]
    if isinstance(settings, StartHere):
        steps += [(train, training) for training in learning_rate_check(settings)]
        steps += [(quantize_member, job) for job in first_question(settings)]
    if isinstance(settings, Quantization):
        steps += [(quantize_member, job) for job in quantizations(settings)]
    if isinstance(settings, Runs):
        steps += [(quantize_member, job) for job in method_runs(settings)]
        steps += [(time_quantization, timing(settings))]
        steps += [(time_products, one) for one in (*product_runs(settings), crossing_run(settings))]
    if isinstance(settings, Writing):
        steps += [(time_generation, one) for one in generation_runs(settings)]
    if isinstance(settings, Finetuning):
        steps += [(tune_member, job) for job in tunings(settings)]
        steps += [(quantize_member, job) for job in roundings(settings)]
    return steps
