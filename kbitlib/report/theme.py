"""One look for every figure: colours that hold on white and on near-black paper, and matplotlib's settings for them.

Ink (text, axes, grid) and paper are drawn in two stand-in colours that `kbitlib.report.svg` replaces, so that a figure
follows the light or dark setting of the page it stands in. All other colours have a contrast of at least 3 with both
papers (WCAG 2.2, 1.4.11); the nearest two of the k colours differ by .11 in OKLab, and by .066 as seen with any of the
three dichromacies (Machado et al. 2009). A marker goes with each colour, so that colour is never the only sign.
"""

from collections.abc import Sequence
from typing import Any, Literal

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from kbitlib.report.numbers import short

INK = "#010203"  # becomes `currentColor`
PAPER = "#fdfcfe"  # becomes the colour of the page; for halos and the rims of markers

PAPERS = {"light": "#ffffff", "dark": "#15171a"}
INKS = {"light": "#1c1e21", "dark": "#e6e4df"}

K_COLOURS = {
    1: "#287379",
    2: "#267ce6",
    3: "#7b4bba",
    4: "#aa63ac",
    5: "#cf227c",
    6: "#dc7277",
    7: "#bf8b1d",
    8: "#81803d",
    16: INK,
}
K_MARKERS = {1: "P", 2: "v", 3: "^", 4: "o", 5: "s", 6: "D", 7: "X", 8: "p", 16: "H"}

ELEMENT_STYLES: dict[str, tuple[str, str]] = {
    "int": ("#2e6e96", "o"),
    "nf": ("#da7922", "s"),
    "float": ("#9b4965", "^"),
    "pot": ("#6b6619", "v"),
    "log": ("#c671c6", "D"),
    "quantile": ("#1e99f4", "P"),
    "kmeans": ("#905dca", "X"),
    "dynamic": ("#5d8d8d", "p"),
    "bnbfp4": ("#a17154", "<"),
    "fixed": ("#a17154", ">"),
    "binary": ("#808488", "d"),
    "ternary": ("#808488", "h"),
    "vq": ("#5d8d8d", "*"),
    "e8": ("#6b6619", "*"),
}

SERIES = ("#2e6e96", "#da7922", "#905dca", "#9b4965", "#1e99f4", "#6b6619", "#c671c6", "#5d8d8d")

SETTINGS: dict[Any, Any] = {
    "figure.figsize": (7.2, 4.2),
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib: layout is measured alike on every machine
    "font.size": 10.0,
    "mathtext.fontset": "dejavusans",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelsize": 10.0,
    "axes.labelpad": 5.0,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=SERIES),
    "grid.alpha": 0.13,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.7,
    "lines.markersize": 6.0,
    "lines.markeredgewidth": 0.8,
    "lines.markeredgecolor": PAPER,
    "errorbar.capsize": 2.5,
    "scatter.edgecolors": PAPER,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "legend.title_fontsize": 9.0,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "image.cmap": "cividis",
    "svg.fonttype": "none",  # text stays text: it takes the page's face, can be searched, and is a third of the bytes
    **dict.fromkeys(
        (
            "text.color",
            "axes.labelcolor",
            "axes.edgecolor",
            "axes.titlecolor",
            "xtick.color",
            "ytick.color",
            "grid.color",
        ),
        INK,
    ),
}


def use() -> None:
    """Draw all further figures of this process in the report's look."""
    mpl.rcParams.update(SETTINGS)


def k_style(k: int) -> dict[str, Any]:
    """Colour and marker of a bit width, for `axes.plot(x, y, **k_style(4))`; 16 stands for unquantized.

    Raises ValueError for a k that is not 1 to 8 or 16.
    """
    if k not in K_COLOURS:
        raise ValueError(f"no colour for k = {k!r}: it is 1 to 8, or 16 for unquantized")
    return {"color": K_COLOURS[k], "marker": K_MARKERS[k]}


def element_style(element: str) -> dict[str, Any]:
    """Colour and marker of an element type, for `axes.plot(x, y, **element_style("nf"))`.

    Raises ValueError for an element without a style of its own.
    """
    if element not in ELEMENT_STYLES:
        raise ValueError(f"no colour for element {element!r}: known are {', '.join(ELEMENT_STYLES)}")
    colour, marker = ELEMENT_STYLES[element]
    return {"color": colour, "marker": marker}


def log_axis(axes: Axes, which: Literal["x", "y"] = "x", subs: Sequence[float] = (1.0, 3.0)) -> None:
    """Make an axis logarithmic, with ticks such as 300 k, 1 M, 3 M instead of powers of ten.

    `subs` are the multiples of each power of ten that get a tick.
    """
    axes.set(**{f"{which}scale": "log"})
    axis: Axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_formatter(NullFormatter())
