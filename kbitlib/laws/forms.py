"""The laws, one short definition each, with its source.

A law predicts a positive quantity as a sum of terms, and is written here as the list of the terms' logarithms. In a
definition, ``x`` holds the table's columns and their logarithms (``x.k``, ``x.log_params``) and ``p`` the parameters: a
positive one or an offset by its logarithm (``p.log_A``), any other by itself (``p.alpha``). To add a law, define it
here and name it in ``FORMS``. Functions of ``p`` must take complex numbers, by which derivatives are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from kbitlib.laws.form import Form, Parameter, Starts, crossed
from kbitlib.laws.tables import FULL_PRECISION

__all__ = ["FORMS", "FULL_PRECISION", "Form", "Parameter"]

_EXPONENTS = (0.05, 0.15, 0.3, 0.5, 0.8, 1.3)  # language models lie at .05 to .5; the rest is for other units and tasks
_FEWER = (0.1, 0.3, 0.8)

_E = Parameter("E", offset=True)
_A = Parameter("A", positive=True)
_B = Parameter("B", positive=True)
_ALPHA = Parameter("alpha")
_BETA = Parameter("beta")
_FACTOR_BY_K = Parameter("f", positive=True, by_k=True, one_at_full_precision=True)

POWER = Form(
    name="power",
    terms=("A params^-alpha",),
    source="Kaplan et al. 2020, equation 1.1",
    columns=("params",),
    parameters=(_A, _ALPHA),
    log_terms=lambda x, p: [p.log_A - p.alpha * x.log_params],
    linear=True,
)

TUTORIAL = Form(
    name="tutorial",
    terms=("alpha params^beta tokens^gamma flops^delta",),
    source="log-linear form common in tutorials; flops = 6 params tokens makes it unidentifiable",
    columns=("params", "tokens", "flops"),
    parameters=(Parameter("alpha", positive=True), _BETA, Parameter("gamma"), Parameter("delta")),
    log_terms=lambda x, p: [p.log_alpha + p.beta * x.log_params + p.gamma * x.log_tokens + p.delta * x.log_flops],
    linear=True,
)


def _kaplan(x: SimpleNamespace, p: SimpleNamespace) -> list[Any]:
    """Both exponents positive, so by their logarithms; the sum by its larger part, so that nothing overflows."""
    alpha_N, alpha_D = np.exp(p.log_alpha_N), np.exp(p.log_alpha_D)
    size, data = alpha_N / alpha_D * (p.log_N_c - x.log_params), p.log_D_c - x.log_tokens
    larger = np.maximum(size.real, data.real)
    return [alpha_D * (larger + np.log(np.exp(size - larger) + np.exp(data - larger)))]


def _kaplan_starts(x: SimpleNamespace) -> Starts:
    """Losses of 1 to 10 nats at the middle of the columns, shared in several ways between size and data."""
    grid = crossed(loss=(1.0, 3.0, 10.0), share=(0.1, 0.5, 0.9), alpha_N=(0.05, 0.15, 0.4), alpha_D=(0.05, 0.15, 0.4))
    alpha_N, alpha_D, total = grid["alpha_N"], grid["alpha_D"], np.log(grid["loss"]) / grid["alpha_D"]
    log_N_c = x.log_params.mean() + alpha_D / alpha_N * (np.log(grid["share"]) + total)
    log_D_c = x.log_tokens.mean() + np.log(1 - grid["share"]) + total
    return {"N_c": np.exp(log_N_c), "D_c": np.exp(log_D_c), "alpha_N": alpha_N, "alpha_D": alpha_D}


KAPLAN = Form(
    name="kaplan",
    terms=("((N_c / params)^(alpha_N / alpha_D) + D_c / tokens)^alpha_D",),
    source="Kaplan et al. 2020, equation 1.5",
    columns=("params", "tokens"),
    parameters=tuple(Parameter(name, positive=True) for name in ("N_c", "D_c", "alpha_N", "alpha_D")),
    log_terms=_kaplan,
    starts=_kaplan_starts,
)

CHINCHILLA = Form(
    name="chinchilla",
    terms=("E", "A params^-alpha", "B tokens^-beta"),
    source="Hoffmann et al. 2022, equation 2; estimated as in Besiroglu et al. 2024",
    columns=("params", "tokens"),
    parameters=(_E, _A, _B, _ALPHA, _BETA),
    log_terms=lambda x, p: [p.log_E, p.log_A - p.alpha * x.log_params, p.log_B - p.beta * x.log_tokens],
    coefficients=("E", "A", "B"),
    starts=lambda x: crossed(alpha=_EXPONENTS, beta=_EXPONENTS),
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
    parameters=(_E, _A, _ALPHA, _FACTOR_BY_K),
    log_terms=lambda x, p: [p.log_E, p.log_A - p.alpha * (x.log_params + p.log_f)],
    coefficients=("E", "A"),
    starts=lambda x: crossed(alpha=_EXPONENTS, f=(0.01, 0.5)),
)

FRANTAR = Form(
    name="frantar",
    terms=("E", "A (params f[k])^-alpha", "B tokens^-beta"),
    source="Frantar et al. 2025; QuEST (Panferov et al. 2025): effective parameters beside a term of the data",
    columns=("params", "tokens", "k"),
    parameters=(_E, _A, _B, _ALPHA, _BETA, _FACTOR_BY_K),
    log_terms=lambda x, p: [p.log_E, p.log_A - p.alpha * (x.log_params + p.log_f), p.log_B - p.beta * x.log_tokens],
    coefficients=("E", "A", "B"),
    starts=lambda x: crossed(alpha=_EXPONENTS, beta=_EXPONENTS, f=(0.1, 0.7)),
)


def _log_capacity(x: SimpleNamespace, p: SimpleNamespace) -> Any:
    bits = -x.log_gaussian_mse / np.log(4)  # what an ideal code of this error takes a weight
    return np.exp(p.log_C) * np.log(np.tanh(np.exp(p.log_F) * bits))


PANFEROV = Form(
    name="panferov",
    terms=("E", "A (params tanh(F log_1/4 gaussian_mse)^C)^-alpha", "B tokens^-beta"),
    source="Panferov et al. 2025, Unified Scaling Laws for Compressed Representations; their factor L is in A",
    columns=("params", "tokens", "gaussian_mse"),
    parameters=(_E, _A, _B, _ALPHA, _BETA, Parameter("F", positive=True), Parameter("C", positive=True)),
    log_terms=lambda x, p: [
        p.log_E,
        p.log_A - p.alpha * (x.log_params + _log_capacity(x, p)),
        p.log_B - p.beta * x.log_tokens,
    ],
    coefficients=("E", "A", "B"),
    starts=lambda x: crossed(alpha=_FEWER, beta=_FEWER, F=(0.2, 0.6), C=(0.5, 2.0)),
)

_GAMMAS = {"k": "gamma_w", "activation_bits": "gamma_a", "kv_bits": "gamma_kv"}


def _kumar(bits: Sequence[str]) -> Form:
    """Parameters that count less at few bits, and a loss added by quantizing after training, for these columns of bits.

    ``k`` are the weights' bits, ``activation_bits`` and ``kv_bits`` (keys and values) theirs, all *in training*;
    ``k_post`` are the weights' after it: a table quantized after training says ``columns={"k_post": "k"}``. A column
    that the table lacks counts as infinitely many bits; ValueError where it lacks all.
    """
    if not bits:
        raise ValueError(f"law kumar needs one of the columns {', '.join((*_GAMMAS, 'k_post'))}; the table has none")
    trained = [name for name in bits if name in _GAMMAS]
    post = "k_post" in bits
    factors = "".join(f" (1 - e^(-{name}/{_GAMMAS[name]}))" for name in trained)

    def log_terms(x: SimpleNamespace, p: SimpleNamespace) -> list[Any]:
        log_effective = x.log_params
        for name in trained:
            rate = getattr(x, name) * np.exp(-getattr(p, f"log_{_GAMMAS[name]}"))
            log_effective = log_effective + np.log(-np.expm1(-rate))
        terms = [p.log_E, p.log_A - p.alpha * log_effective, p.log_B - p.beta * x.log_tokens]
        if post:
            at_size = p.log_C_T + p.gamma_D * x.log_tokens - p.gamma_N * x.log_params
            terms.append(at_size - x.k_post * np.exp(-p.log_gamma_post))
        return terms

    def starts(x: SimpleNamespace) -> Starts:
        after = {"gamma_D": (0.5,), "gamma_N": (0.3,), "gamma_post": (0.2, 0.5, 1.5)} if post else {}
        return crossed(alpha=_FEWER, beta=_FEWER, **{_GAMMAS[name]: (0.7, 2.5) for name in trained}, **after)

    added = (Parameter("C_T", positive=True), Parameter("gamma_D"), Parameter("gamma_N"))
    return Form(
        name="kumar",
        terms=("E", f"A (params{factors})^-alpha", "B tokens^-beta")
        + post * ("C_T tokens^gamma_D params^-gamma_N e^(-k_post/gamma_post)",),
        source="Kumar et al. 2024: effective parameters, and degradation after training from full precision",
        columns=("params", "tokens", *bits),
        parameters=(_E, _A, _B, _ALPHA, _BETA)
        + tuple(Parameter(_GAMMAS[name], positive=True) for name in trained)
        + post * (*added, Parameter("gamma_post", positive=True)),
        log_terms=log_terms,
        coefficients=("E", "A", "B") + post * ("C_T",),
        starts=starts,
        optional=(*_GAMMAS, "k_post"),
        variant=_kumar,
    )


KUMAR = _kumar((*_GAMMAS, "k_post"))


def _ouyang(columns: Sequence[str]) -> Form:
    """A degradation that is a power of everything; ``tokens`` may be absent."""
    data = "tokens" in columns

    def log_terms(x: SimpleNamespace, p: SimpleNamespace) -> list[Any]:
        growth = p.beta * x.log_tokens if data else 0.0
        return [p.log_C + growth - p.alpha * x.log_params - p.gamma * np.log(x.k)]

    return Form(
        name="ouyang",
        terms=(f"C {'tokens^beta ' * data}params^-alpha k^-gamma",),
        source="Ouyang et al. 2024, rounding after training; there beta .5251, alpha .2261, gamma 5.4967",
        columns=("params", *data * ("tokens",), "k"),
        parameters=(Parameter("C", positive=True), _ALPHA, *data * (_BETA,), Parameter("gamma")),
        log_terms=log_terms,
        linear=True,
        response="delta",
        optional=("tokens",),
        variant=_ouyang,
    )


OUYANG = _ouyang(("tokens",))

QAT = Form(
    name="qat",
    terms=("C tokens^gamma_D log2(block)^gamma_G params^-gamma_N",),
    source="Chen et al. 2025, error of quantization-aware training by size of block; rows of one k",
    columns=("params", "tokens", "block"),
    parameters=(Parameter("C", positive=True), Parameter("gamma_D"), Parameter("gamma_G"), Parameter("gamma_N")),
    log_terms=lambda x, p: [
        p.log_C + p.gamma_D * x.log_tokens + p.gamma_G * np.log(np.log2(x.block)) - p.gamma_N * x.log_params
    ],
    linear=True,
    response="delta",
)


def _degradation(columns: Sequence[str]) -> Form:
    """A degradation that decays with k at a rate that depends on size; with ``tokens`` it grows with the data."""
    data = "tokens" in columns

    def log_terms(x: SimpleNamespace, p: SimpleNamespace) -> list[Any]:
        at_size = p.log_C + p.c * x.log_params + (p.d * x.log_tokens if data else 0.0)
        return [at_size - x.k * np.exp(p.log_g + p.h * x.log_params)]

    def starts(x: SimpleNamespace) -> Starts:
        """Rates of decay a bit between .3 and 2 at the middle size, whatever the exponents."""
        growth = {"d": (0.0, 0.5)} if data else {}
        grid = crossed(c=(-0.5, 0.0, 0.5), g=(0.3, 0.8, 2.0), h=(-0.1, 0.0, 0.1), **growth)
        return grid | {"g": grid["g"] * np.exp(-grid["h"] * x.log_params.mean())}

    return Form(
        name="degradation",
        terms=(f"C params^c {'tokens^d ' * data}exp(-g k params^h)",),
        source="Kumar et al. 2024: degradation exponential in k, here at a rate that depends on size",
        columns=("params", *data * ("tokens",), "k"),
        parameters=(
            Parameter("C", positive=True),
            Parameter("c"),
            *data * (Parameter("d"),),
            Parameter("g", positive=True),
            Parameter("h"),
        ),
        log_terms=log_terms,
        coefficients=("C",),
        starts=starts,
        response="delta",
        optional=("tokens",),
        variant=_degradation,
    )


DEGRADATION = _degradation(("tokens",))

TIME = Form(
    name="time",
    terms=("T", "c bytes"),
    source="the roofline's memory side (Williams et al. 2009): a fixed time, and the bytes read at a bandwidth of 1/c",
    columns=("bytes",),
    parameters=(Parameter("T", offset=True), Parameter("c", positive=True)),
    log_terms=lambda x, p: [p.log_T, p.log_c + x.log_bytes],
    coefficients=("T", "c"),
    response="ms",
)

MEMORY = Form(
    name="memory",
    terms=("M", "m total_bits"),
    source="definition: what does not depend on k, and the weights, of which a bit takes m = 1/8 byte",
    columns=("total_bits",),
    parameters=(Parameter("M", offset=True), Parameter("m", positive=True)),
    log_terms=lambda x, p: [p.log_M, p.log_m + x.log_total_bits],
    coefficients=("M", "m"),
    response="bytes",
)

FORMS = {
    form.name: form
    for form in (
        POWER,
        TUTORIAL,
        KAPLAN,
        CHINCHILLA,
        TOTAL_BITS,
        EFFECTIVE_PARAMETERS,
        FRANTAR,
        PANFEROV,
        KUMAR,
        OUYANG,
        QAT,
        DEGRADATION,
        TIME,
        MEMORY,
    )
}
