"""The laws, one short definition each, with its source.

A law predicts a positive quantity as a sum of terms, and is written here as the list of the terms' logarithms. In a
definition, ``x`` holds the table's columns and their logarithms (``x.k``, ``x.log_params``) and ``p`` the parameters: a
positive one or an offset by its logarithm (``p.log_A``), any other by itself (``p.alpha``). To add a law, define it
here and name it in ``FORMS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np

from kbitlib.laws.tables import FloatArray

FULL_PRECISION = 16  # bits; weights of this many bits or more count as not quantized


@dataclass(frozen=True)
class Parameter:
    """A parameter of a law: positive ones are estimated on the log scale; ``by_k`` gives each k its own.

    An ``offset`` is a term by itself, E: estimated as it is, and allowed to be 0.
    """

    name: str
    positive: bool = False
    offset: bool = False
    by_k: bool = False
    one_at_full_precision: bool = False


Starts = dict[str, FloatArray]


@dataclass(frozen=True)
class Form:
    """A law: ``response`` = the sum of ``terms``, whose logarithms are ``log_terms(x, p)``.

    ``coefficients`` names the factor of each term, ``starts(x)`` gives starting values of the parameters that are no
    factor, ``linear`` says that the logarithm of the response is linear in the parameters as they are estimated.
    """

    name: str
    terms: tuple[str, ...]
    source: str
    columns: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    log_terms: Callable[[SimpleNamespace, SimpleNamespace], list[Any]]
    coefficients: tuple[str, ...] = ()
    starts: Callable[[SimpleNamespace], Starts] | None = None
    linear: bool = False
    response: str = "loss"
    usual_loss: str = "log-squared"

    @property
    def formula(self) -> str:
        return f"{self.response} = {' + '.join(self.terms)}"


def _crossed(**values: tuple[float, ...]) -> Starts:
    """Every combination of the given values, one array a parameter."""
    combinations = np.array(list(product(*values.values())))
    return dict(zip(values, combinations.T, strict=True))


_EXPONENTS = (0.05, 0.15, 0.3, 0.5, 0.8, 1.3)  # language models lie at .05 to .5; the rest is for other units and tasks

POWER = Form(
    name="power",
    terms=("A params^-alpha",),
    source="Kaplan et al. 2020, equation 1.1",
    columns=("params",),
    parameters=(Parameter("A", positive=True), Parameter("alpha")),
    log_terms=lambda x, p: [p.log_A - p.alpha * x.log_params],
    linear=True,
)

TUTORIAL = Form(
    name="tutorial",
    terms=("alpha params^beta tokens^gamma flops^delta",),
    source="log-linear form common in tutorials; flops = 6 params tokens makes it unidentifiable",
    columns=("params", "tokens", "flops"),
    parameters=(Parameter("alpha", positive=True), Parameter("beta"), Parameter("gamma"), Parameter("delta")),
    log_terms=lambda x, p: [p.log_alpha + p.beta * x.log_params + p.gamma * x.log_tokens + p.delta * x.log_flops],
    linear=True,
)

CHINCHILLA = Form(
    name="chinchilla",
    terms=("E", "A params^-alpha", "B tokens^-beta"),
    source="Hoffmann et al. 2022, equation 2; estimated as in Besiroglu et al. 2024",
    columns=("params", "tokens"),
    parameters=(
        Parameter("E", offset=True),
        Parameter("A", positive=True),
        Parameter("B", positive=True),
        Parameter("alpha"),
        Parameter("beta"),
    ),
    log_terms=lambda x, p: [p.log_E, p.log_A - p.alpha * x.log_params, p.log_B - p.beta * x.log_tokens],
    coefficients=("E", "A", "B"),
    starts=lambda x: _crossed(alpha=_EXPONENTS, beta=_EXPONENTS),
    usual_loss="huber",
)

TOTAL_BITS = Form(
    name="total-bits",
    terms=("A[k] total_bits^-alpha[k]",),
    source="Dettmers & Zettlemoyer 2022, section 4: loss against total bits, a line for each k",
    columns=("total_bits", "k"),
    parameters=(Parameter("A", positive=True, by_k=True), Parameter("alpha", by_k=True)),
    log_terms=lambda x, p: [p.log_A - p.alpha * x.log_total_bits],
    linear=True,
)

EFFECTIVE_PARAMETERS = Form(
    name="effective-parameters",
    terms=("E", "A (params f[k])^-alpha"),
    source="Frantar et al. 2025; QuEST (Panferov et al. 2025): a free factor for each k, 1 at full precision",
    columns=("params", "k"),
    parameters=(
        Parameter("E", offset=True),
        Parameter("A", positive=True),
        Parameter("alpha"),
        Parameter("f", positive=True, by_k=True, one_at_full_precision=True),
    ),
    log_terms=lambda x, p: [p.log_E, p.log_A - p.alpha * (x.log_params + p.log_f)],
    coefficients=("E", "A"),
    starts=lambda x: _crossed(alpha=_EXPONENTS, f=(0.01, 0.5)),
)

DEGRADATION = Form(
    name="degradation",
    terms=("C params^c exp(-g k params^h)",),
    source="Kumar et al. 2024: post-training degradation exponential in k, here at a rate that depends on size",
    columns=("params", "k"),
    parameters=(Parameter("C", positive=True), Parameter("c"), Parameter("g", positive=True), Parameter("h")),
    log_terms=lambda x, p: [p.log_C + p.c * x.log_params - x.k * np.exp(p.log_g + p.h * x.log_params)],
    coefficients=("C",),
    starts=lambda x: _degradation_starts(x),
    response="delta",
)


def _degradation_starts(x: SimpleNamespace) -> Starts:
    """Rates of decay a bit between .3 and 2 at the middle size, whatever the exponents."""
    starts = _crossed(c=(-0.5, 0.0, 0.5), g=(0.3, 0.8, 2.0), h=(-0.1, 0.0, 0.1))
    return starts | {"g": starts["g"] * np.exp(-starts["h"] * x.log_params.mean())}


FORMS = {form.name: form for form in (POWER, TUTORIAL, CHINCHILLA, TOTAL_BITS, EFFECTIVE_PARAMETERS, DEGRADATION)}
