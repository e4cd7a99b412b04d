"""matplotlib's SVG -> a file that follows the reader's light or dark setting, and the same picture inside a page."""

import html
import re

from kbitlib.report.theme import INK, INKS, PAPER, PAPERS

FACES = 'system-ui, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans", Arial, sans-serif'

# The file paints its own paper: where it is shown (a README, a slide) the background may not follow the reader.
STYLE = f"""<style>
svg{{--paper:{PAPERS["light"]};color:{INKS["light"]};background:var(--paper);fill:currentColor;font-family:{FACES};\
stroke-linejoin:round;stroke-linecap:butt}}
@media (prefers-color-scheme:dark){{svg{{--paper:{PAPERS["dark"]};color:{INKS["dark"]}}}}}
</style>"""

ROOT = re.compile(r"<svg\b[^>]*>")
COLOURS = {INK: "currentColor", "#000000": "currentColor", PAPER: "var(--paper)", "#ffffff": "var(--paper)"}


def stand_alone(drawing: str, label: str) -> str:
    """The text of an SVG file, from what matplotlib wrote; `label` is what a screen reader says.

    Black and the ink of `theme` become the reader's ink, white and its paper the reader's paper; the face of the text
    is left to the reader's system.
    """
    text = re.sub(
        r"(?s)<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>|<defs>\s*</defs>",
        "",
        drawing,
    )
    for colour, meaning in COLOURS.items():
        text = text.replace(f": {colour}", f": {meaning}").replace(f'"{colour}"', f'"{meaning}"')
    text = re.sub(r"font-family: [^;\"]*(; )?", "", text)
    text = re.sub(
        r'(?<= )d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text
    )  # hundredths of a point
    text = re.sub(r"\n\s*", "\n", text).strip()
    root = _root(text)
    named = root[:-1] + f' role="img" aria-label="{html.escape(label)}">'
    return text.replace(root, f"{named}\n{STYLE}", 1) + "\n"


def inline(drawing: str, prefix: str, label: str) -> str:
    """The `<svg>` element to stand in a page, from a stand-alone file.

    Its ids get a prefix (a clip path of one figure must not cut another), its size gives way to the page's, and its
    style sheet, which would hold for the whole page, is dropped.
    """
    text = re.sub(
        r"(?s)<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", drawing
    ).strip()
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: f' id="{prefix}{match[1]}"' if match[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", text)
    root = _root(text)
    plain = re.sub(r'\s(width|height|role|aria-label|version|xmlns(:xlink)?)="[^"]*"', "", root)
    return text.replace(root, f'{plain[:-1]} role="img" aria-label="{html.escape(label)}">', 1)


def label_of(drawing: str) -> str:
    """What a stand-alone file tells a screen reader; empty when it says nothing."""
    label = re.search(r'aria-label="([^"]*)"', _root(drawing))
    return html.unescape(label[1]) if label else ""


def _root(text: str) -> str:
    root = ROOT.search(text)
    if root is None:
        raise ValueError(f"not an SVG drawing: it begins with {text[:40]!r}")
    return root[0]
