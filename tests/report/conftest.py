"""A small report: a notebook as a chapter leaves it (math, figures, tables, answers, noise, an error), its pages."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kbitlib.report import figures, theme
from kbitlib.report.export import render
from kbitlib.report.site import build_index, bundle

CHAPTER = "04_scaling_regression"
CHAPTERS = [
    {"name": "00_start_here", "title": "Start here", "summary": "What a k-bit scaling law is, in ten minutes."},
    {"name": "01_quantizer_theory", "title": "What k bits can hold", "summary": "Codebooks, blocks and their error."},
    {"name": "02_quantization_runs", "title": "A family at every k", "summary": "Train, quantize, measure."},
    {"name": CHAPTER, "title": "The law", "summary": "Which k wins at the same memory."},
]
DEFAULTS = {"bits": [2, 3, 4], "block": 64, "law": "ols", "draws": 200}
PARAMETERS = {"bits": [2, 3, 4, 5, 6, 7, 8], "block": 64, "law": "ols", "draws": 4000}
PROVENANCE = {
    "commit": "0f3c2a9d5b8e4f6a7c1d2e3f4a5b6c7d8e9f0a1b",
    "dirty": True,
    "kbitlib": "0.1.0",
    "python": "3.11.9",
    "packages": {"torch": "2.13.0", "numpy": "2.4.6", "gone": None},
    "platform": "Linux-6.1-x86_64",
    "cpu": "AMD EPYC 9B14",
    "cores": 2,
    "memory_gb": 16.4,
    "gpu": None,
    "command": "kbit run --profile laptop",
    "started": "2026-03-01T14:05:09+00:00",
    "data": "sha256 5f2b7c",
    "seed": 0,
    "seconds": 71.8,
}

PARAMETERS_CELL = """\
bits: list = [2, 3, 4]  # bit widths to compare, 2 to 8
block: int = 64  # weights that share a scale
law: str = "ols"  # form that is fitted: ols, or effective (N_eff = N f(k))
draws: int = 200  # bootstrap resamples
"""

OPENING = r"""# At the same memory, which k wins?

A model of $N$ parameters at $k$ bits each takes about $N \cdot b$ bits, where $b = k + 16/B$ counts one 16-bit scale
for every block of $B$ weights. Two such models compete **when their total bits are equal**, not their parameters: a
model with half as many bits a weight may have twice as many weights. The question goes back to
[Dettmers and Zettlemoyer](https://arxiv.org/abs/2212.09720), who found four bits almost always best; it costs \$0 to
ask it again here, of a family that was trained in [the second chapter](02_quantization_runs.ipynb#a-family).
"""

LAW = r"""## The law that is fitted

**Question.** How does the loss fall with the number of bits? A family that differs in size alone follows

$$L(N, D) = E + \frac{A}{N^{\alpha}} + \frac{B}{D^{\beta}},$$

and quantization to $k$ bits acts as if some parameters were missing, $N_\text{eff} = N\,(1 - e^{-k/\gamma})$:

\begin{aligned}
\log(L - E) &= \log A - \alpha \log N_\text{eff} + \varepsilon, & \varepsilon &\sim \mathcal{N}(0, \sigma^2), \\
\hat\theta &= \arg\min_\theta \sum_i \rho\left(\log L_i - \log \hat L(N_i, D_i)\right).
\end{aligned}

> **Prediction.** Below three bits the error of the quantizer grows faster than parameters can make up for.

### What rounding costs at $k$ bits

| format | levels | bits a weight | error |
|---|---:|---:|---:|
| `int4-b64` | 16 | 4.25 | 0.103 |
| `nf4-b64` | 16 | 4.25 | 0.092 |

Rounding to the nearest of $2^k$ levels, $\hat w = s\,\operatorname{round}(w / s)$ with $w \in [-1, 1]$ and
$\lvert w - \hat w \rvert \le s/2$, leaves a mean squared error of about $\tfrac{1}{12} s^2$:

```python
scale = weight.abs().amax(dim=-1, keepdim=True) / 7.5  # one for each block
codes = torch.round(weight / scale - 0.5).clamp(-8, 7)
```
"""

MEASURED = r"""## What was measured

**Measurement.** Each curve holds one $k$; the lowest curve at a budget is the choice to make. See
[the figure](#figure-best_k) and [the table](#table-exponents).
"""

EXERCISES = r"""## Exercises

1. Why does `k = 16` lose everywhere? What would the total bits be at $N = 10^6$?

<details>
<summary>Answer to exercise 1</summary>

At the same total bits it has a quarter of the parameters of $k = 4$, and $L - E \propto N^{-\alpha}$ with
$\alpha \approx 0.3$:

$$\frac{L_{16} - E}{L_4 - E} = 4^{\alpha} \approx 1.5.$$

</details>

2. Which of $A$ and $\alpha$ is better known?

<details><summary>Answer to exercise 2, for $\alpha$</summary>
<p>Neither: their estimates correlate by .999, so $A = 478 \pm 125$ alone says little (code: <code>f"$HOME"</code>).</p>
</details>

## What was measured

A second heading of the same name, so that links stay apart.
"""


def figure() -> Any:
    """Loss against total bits, a curve for each k, with what figures usually hold: bands, bars, math, annotations."""
    theme.use()
    drawing, axes = plt.subplots()
    size = np.geomspace(14e3, 1.2e6, 6)
    for k in (2, 3, 4, 5, 6, 8, 16):
        total, loss = size * (k + (0.25 if k < 16 else 0)), 1.05 + 9 * (size * (1 - np.exp(-((k / 2.1) ** 2)))) ** -0.26
        axes.plot(total, loss, **theme.k_style(k))
        axes.annotate(
            f"{k}",
            (total[-1], loss[-1]),
            xytext=(11, -3),
            textcoords="offset points",
            color=theme.K_COLOURS[k],
            ha="center",
        )
    axes.fill_between(total, loss * 0.98, loss * 1.02, color=theme.INK, alpha=0.08)
    theme.log_axis(axes, "x")
    axes.set(xlabel="total bits of the quantized weights", ylabel="loss, nats a byte", ylim=(1.2, 2.2))
    axes.set_title("At equal memory, four bits a weight lose least")
    return drawing


def panels() -> Any:
    """Two panels with bars, a legend and a log axis in matplotlib's own math notation."""
    theme.use()
    drawing, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2))
    for position, element in enumerate(("int", "nf", "float", "kmeans", "pot")):
        style = theme.element_style(element)
        k = np.arange(2, 9)
        left.semilogy(k, 2.0 ** (-1.6 * k + 0.3 * position), label=element, **style)
        right.bar(position, 1 + 0.2 * position, color=style["color"], yerr=0.1, ecolor=theme.INK, width=0.7)
    left.set(xlabel="k, bits a code", ylabel="mean squared error")
    left.legend(title="element", ncols=2)
    right.set_xticks(range(5), ("int", "nf", "float", "kmeans", "pot"))
    right.set(ylabel=r"slope $\alpha$ with 95 % interval")
    return drawing


def exponents() -> pd.DataFrame:
    k = [2, 3, 4, 5]
    return pd.DataFrame(
        {"k": k, "slope": [0.19, 0.2431, 0.2614, 0.2629], "error": [0.02, 0.011, 0.009, np.nan], "models": 6}
    )


def capture(monkeypatch: Any, call: Any) -> Any:
    """What a call displays, as the output of a cell."""
    shown = []
    monkeypatch.setattr(figures, "display", lambda data, raw, metadata: shown.append((data, metadata)))
    call()
    data, metadata = shown[0]
    return new_output("display_data", data=data, metadata=metadata)


def notebook(folder: Path, monkeypatch: Any) -> Path:
    """The executed notebook, and in `folder` the files its figures wrote."""

    def publish(drawing: Any, name: str, caption: str) -> Any:
        return capture(
            monkeypatch,
            lambda: figures.publish(
                drawing,
                folder=folder,
                chapter=CHAPTER,
                name=name,
                table=exponents(),
                alt='Loss falls with total bits; "k = 4" is lowest & best.',
                caption=caption,
                records="records/quantization.csv, 812 rows",
            ),
        )

    table = capture(
        monkeypatch,
        lambda: figures.show_table(
            exponents(),
            caption=r"Slope $\alpha$ of the law at each $k$, with its standard error.",
            formats={"slope": ".3f", "error": ".3f"},
            folder=folder,
            chapter=CHAPTER,
            name="exponents",
            records="records/quantization.csv",
        ),
    )
    cells = [
        new_markdown_cell(OPENING),
        new_code_cell(PARAMETERS_CELL, metadata={"tags": ["parameters"]}),
        new_code_cell("bits = [2, 3, 4, 5, 6, 7, 8]\ndraws = 4000", metadata={"tags": ["injected-parameters"]}),
        new_code_cell(
            "# Settings are checked before anything runs\nimport pandas as pd\n\nsettings = Settings(bits=bits)",
            outputs=[
                new_output(
                    "stream", name="stderr", text="\r 10%|#   | 1/10\r100%|####| 10/10\n\x1b[33mwarning\x1b[0m: x\n"
                )
            ],
        ),
        new_markdown_cell(LAW),
        new_code_cell(
            "fit(table)\nprint(summary)",
            outputs=[new_output("stream", name="stdout", text="24 of 24 fits converged\n")],
        ),
        new_markdown_cell(MEASURED),
        new_code_cell(
            "# Loss against total bits, a curve for each k\npublish(figure, ...)",
            outputs=[
                publish(
                    figure(),
                    "best_k",
                    r"Loss against total bits, one curve for each $k$; the shaded band is $k = 16 \pm 2$ %.",
                ),
                new_output(
                    "display_data",
                    data={
                        "text/markdown": r"The best is **4 bits** over 78 % of the range, $p < 0.01$.",
                        "text/plain": "",
                    },
                ),
            ],
        ),
        new_code_cell(
            "publish(panels, ...)", outputs=[publish(panels(), "panels", "Left, error by element; right, slopes.")]
        ),
        new_code_cell("show_table(exponents)", outputs=[table]),
        new_code_cell(
            "pd.DataFrame({'loss': [1.5]})",
            outputs=[
                new_output(
                    "execute_result",
                    data={"text/html": pd.DataFrame({"loss": [1.5, 1.25]})._repr_html_(), "text/plain": "loss"},
                    execution_count=9,
                )
            ],
        ),
        new_markdown_cell(EXERCISES),
        new_code_cell(
            "1 / 0",
            outputs=[
                new_output(
                    "error",
                    ename="ZeroDivisionError",
                    evalue="division by zero",
                    traceback=["\x1b[0;31m-----\x1b[0m", "\x1b[0;31mZeroDivisionError\x1b[0m: division by <zero>"],
                )
            ],
        ),
    ]
    path = folder / "notebooks" / f"{CHAPTER}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


STATUS = {
    "chapters": {
        "00_start_here": {"status": "done", "seconds": 8.1, "started": "2026-03-01T14:05:09+00:00"},
        "01_quantizer_theory": {"status": "stale", "seconds": 21.1, "compute_seconds": 44.0},
        "02_quantization_runs": {
            "status": "failed",
            "seconds": 612.0,
            "error": "3 of 96 jobs failed: w128-d6 & <two> more.",
        },
        CHAPTER: {"status": "done", "seconds": 71.8, "started": "2026-03-01T14:05:09+00:00"},
    },
    "stages": [
        {"name": "family", "records": 96, "compute_seconds": 604.0},
        {"name": "quantization", "records": 812},
    ],
    "store": {"bytes": 91_234_567, "records": 1012, "failed": 3, "stale": 0},
    "corpus": {"source": "installed", "sha256": "5f2bc0de" * 8, "expected": "5f2bc0de" * 8},
}
ANSWER = {
    "k": 4,
    "share": 0.78,
    "interval": [0.61, 0.93],
    "range": [6e4, 9.5e6],
    "handovers": [{"from": 5, "to": 4, "total_bits": 9.1e5, "interval": [6e5, 1.4e6]}],
    "models": 14,
    "records": 812,
    "date": "2026-03-01",
    "chapter": CHAPTER,
    "figure": f"figures/{CHAPTER}-best_k.svg",
    "caption": "Loss against total bits, a curve for each k.",
}


@dataclass
class Report:
    """A rendered report in a folder, and what it was made from."""

    folder: Path
    notebook: Path
    page: Path

    chapters = CHAPTERS
    defaults = DEFAULTS
    parameters = PARAMETERS
    provenance = PROVENANCE
    status = STATUS
    answer = ANSWER

    def soup(self, name: str = CHAPTER) -> BeautifulSoup:
        return BeautifulSoup((self.folder / f"{name}.html").read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports") / "laptop"
    with pytest.MonkeyPatch.context() as patch:
        source = notebook(folder, patch)
    page = folder / f"{CHAPTER}.html"
    shared = {"provenance": PROVENANCE, "chapters": CHAPTERS}
    render(source, page, defaults=DEFAULTS, parameters=PARAMETERS, status=STATUS["chapters"][CHAPTER], **shared)
    (folder / "records").mkdir()
    (folder / "records" / "quantization.csv").write_text(
        'model,note\n"w24-d2","two\nlines"\n"w32-d3",\n', encoding="utf-8"
    )
    build_index(folder, profile="laptop", answer=ANSWER, status=STATUS, **shared)
    bundle(folder)
    return Report(folder, source, page)


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, as (data, metadata), in order."""
    displayed = []
    monkeypatch.setattr(figures, "display", lambda data, raw, metadata: displayed.append((data, metadata)))
    return displayed
