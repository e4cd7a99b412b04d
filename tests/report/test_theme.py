import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from kbitlib.report import theme

COLOURS = {**{f"k = {k}": colour for k, colour in theme.K_COLOURS.items() if colour != theme.INK}}
COLOURS |= {element: colour for element, (colour, _) in theme.ELEMENT_STYLES.items()}

# What a dichromat sees, in linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
SIGHT = {
    "normal": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]
    ),
}


def linear(colour):
    value = np.array(mpl.colors.to_rgb(colour))
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    light, dark = sorted((float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def oklab(rgb):
    """Björn Ottosson 2020."""
    cone = np.array(
        [[0.4122215, 0.5363325, 0.051446], [0.2119035, 0.6806995, 0.107397], [0.0883025, 0.2817188, 0.6299787]]
    )
    lab = np.array(
        [[0.2104543, 0.7936178, -0.004072], [1.9779985, -2.4285922, 0.4505937], [0.0259040, 0.7827718, -0.8086758]]
    )
    return lab @ np.cbrt(cone @ np.clip(rgb, 0, 1))


@pytest.mark.parametrize("paper", theme.PAPERS)
@pytest.mark.parametrize("name", COLOURS)
def test_colours_stand_out_from_both_papers(name, paper):
    assert contrast(COLOURS[name], theme.PAPERS[paper]) >= 3


@pytest.mark.parametrize("paper", theme.PAPERS)
def test_ink_is_easily_read(paper):
    assert contrast(theme.INKS[paper], theme.PAPERS[paper]) >= 7


@pytest.mark.parametrize(
    ("sight", "least"), [("normal", 0.105), ("protan", 0.066), ("deutan", 0.066), ("tritan", 0.066)]
)
def test_every_two_k_differ_to_every_eye(sight, least):
    seen = [oklab(SIGHT[sight] @ linear(colour)) for colour in theme.K_COLOURS.values() if colour != theme.INK]
    distances = [np.linalg.norm(a - b) for n, a in enumerate(seen) for b in seen[:n]]
    assert min(distances) >= least


def test_equal_colours_have_different_markers():
    styles = list(theme.ELEMENT_STYLES.values())
    assert len(set(styles)) == len(styles)
    assert len(set(theme.K_MARKERS.values())) == len(theme.K_COLOURS)


def test_styles_can_be_plotted_and_unknown_ones_are_refused():
    with mpl.rc_context():
        theme.use()
        figure, axes = plt.subplots()
        axes.plot([1, 2], [1, 2], **theme.k_style(4))
        axes.plot([1, 2], [1, 2], **theme.element_style("nf"))
        plt.close(figure)
    with pytest.raises(ValueError, match="k = 9"):
        theme.k_style(9)
    with pytest.raises(ValueError, match="'nf5'"):
        theme.element_style("nf5")


def test_log_axis_has_ticks_in_plain_numbers():
    figure, axes = plt.subplots()
    axes.plot([2e4, 5e6], [1, 2])
    theme.log_axis(axes, "x")
    figure.canvas.draw()
    labels = [text.get_text().replace("\u00a0", " ") for text in axes.get_xticklabels()]
    plt.close(figure)
    assert {"100 k", "300 k", "1 M"} <= set(labels)
    assert axes.get_xscale() == "log"
