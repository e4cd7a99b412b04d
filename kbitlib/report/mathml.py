"""LaTeX math -> MathML, which browsers set by themselves; what does not convert is an error, not a garbled formula."""

import html
import re
import unicodedata
from collections.abc import Callable
from typing import Literal
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert

# Spellings that latex2mathml misreads, and what it does know.
SPELLINGS = {
    r"\begin{aligned}": r"\begin{align*}",
    r"\end{aligned}": r"\end{align*}",
    r"\arg\min": r"\argmin",
    r"\arg\max": r"\argmax",
}
# Given to the converter as they are, these come out as something else without a word.
MISREAD = (r"\operatorname*", r"\tag", r"\label", r"\ref", r"\color", r"\mathop")

# Characters that TeX sets as ordinary symbols: as operators they would get space on both sides.
ORDINARY = "∞⊤⊥∅†′%…"
THIN_SPACE = "\u2009"
LIMITS = ("min", "max", "lim", "inf", "sup")  # names under which a subscript goes in a display
TOKENS = ("mi", "mo", "mn", "mtext")
SCRIPTS = ("msub", "msup", "msubsup", "munder", "mover", "munderover")

DOLLARS = re.compile(r"(?<!\\)\$\$(?P<block>.+?)(?<!\\)\$\$|(?<![\\$])\$(?P<inline>[^$]+?)(?<!\\)\$(?!\$)", re.DOTALL)
# Tags, and elements whose text is not prose: a dollar sign in them is none of ours.
NOT_PROSE = re.compile(
    r"(?s)(<!--.*?-->|<(pre|code|script|style|svg|math)\b.*?</\2>|</?[a-zA-Z][\w-]*(?:\s[^<>]*)?/?>)"
)
# A formula in the text, with the punctuation that touches it.
FORMULA = r'<math display="inline">(?:(?!</math>).)*</math>'
CLINGING = re.compile(rf"(?s)[(\[“]+{FORMULA}[)\].,;:!?”]*|{FORMULA}[)\].,;:!?”]+")


def mathml(latex: str, display: Literal["inline", "block"] = "inline") -> str:
    """A `<math>` element for a formula, written without its dollar signs.

    Raises ValueError naming the formula when a part of it does not convert.
    """
    text = latex.strip()
    for spelling, known in SPELLINGS.items():
        text = text.replace(spelling, known)
    if not text or not _balanced(text):
        raise _refusal(latex, "its braces do not balance" if text else "it is empty")
    for command in MISREAD:
        if command in text:
            raise _refusal(latex, f"{command} is not supported")
    try:
        root = ElementTree.fromstring(convert(text, xmlns="", display=display))
    except Exception as error:  # the converter raises a dozen types, IndexError and KeyError among them
        raise _refusal(latex, type(error).__name__) from error
    for element in root.iter():
        if element.tag in TOKENS and (fault := _fault(element)):
            raise _refusal(latex, fault)
        _tidy(element)
    formula = ElementTree.tostring(root, encoding="unicode")
    return f'<span class="display">{formula}</span>' if display == "block" else formula


def convert_html(source: str) -> str:
    r"""Replace `$...$` and `$$...$$` in the prose of a piece of HTML; code stays untouched and `\$` is a dollar sign.

    Raises ValueError for a formula that does not convert or a dollar sign without its partner.
    """
    parts = NOT_PROSE.split(source)  # prose, markup, name of its element, prose, ...
    for number in range(0, len(parts), 3):
        parts[number] = convert_text(parts[number])
    return "".join(part or "" for number, part in enumerate(parts) if number % 3 < 2)


def convert_text(text: str, rest: Callable[[str], str] = str) -> str:
    """Replace the math in text without markup; `rest` is applied to what lies between (escaping it, say)."""
    pieces, end = [], 0
    for match in DOLLARS.finditer(text):
        block = match["block"]
        formula = html.unescape(block or match["inline"])
        pieces += [rest(prose(text[end : match.start()])), mathml(formula, "block" if block else "inline")]
        end = match.end()
    return "".join([*pieces, rest(prose(text[end:]))])


def keep_together(source: str) -> str:
    """Keep the comma after a formula, or the bracket around it, on its line: browsers break lines there."""
    return CLINGING.sub(r'<span class="whole">\g<0></span>', source)


def prose(text: str) -> str:
    r"""Text that holds no math: `\$` becomes a dollar sign, a bare one raises ValueError."""
    if re.search(r"(?<!\\)\$", text):
        raise ValueError(rf"a dollar sign has no partner (write \$ for the sign itself) in: {_shorten(text)}")
    return text.replace(r"\$", "$")


def _fault(token: Element) -> str:
    """What is wrong with a token of the converter's output; empty when nothing is."""
    text = token.text or ""
    if text.startswith("\\") or text == "&":
        return f"{text} is not known"
    if len(token) or (token.tag == "mo" and not text):
        return "a function's name holds more than letters"
    return ""


def _tidy(parent: Element) -> None:
    """Give operators and names of functions the space that TeX gives them; the converter takes many for variables."""
    children = list(parent)
    bars = [core for core in map(_core, children) if core.text in ("|", "‖") and not core.get("form")]
    if len(bars) % 2 == 0:  # pairs, as in |x|; a single one separates, as in P(x | y)
        for number, bar in enumerate(bars):
            bar.attrib |= {"form": "postfix" if number % 2 else "prefix", "stretchy": "false"}
    for before, element, after in zip([None, *children], children, [*children[1:], None], strict=False):
        core = _core(element)
        if core.tag not in ("mi", "mo"):
            continue
        core.text = "∼" if core.text == "~" else core.text or ""
        if len(core.text) > 1 and core.text.replace(THIN_SPACE, "").isalpha():
            core.tag = "mo"
            core.set("lspace", "0" if before is None or before.tag == "mo" else "0.167em")
            core.set("rspace", "0" if after is None or _opens(after) else "0.167em")
            if element.tag == "msub" and core.text.endswith(LIMITS):
                element.tag = "munder"
                core.set("movablelimits", "true")
        elif core.text in tuple(ORDINARY):
            core.tag = "mi"
        elif core.text and unicodedata.category(core.text[0]) in ("Sm", "Ps", "Pe"):
            core.tag = "mo"
            if core.text in tuple("+−±") and (
                before is None or (before.tag == "mo" and before.text not in tuple(")]}|"))
            ):
                core.set("form", "prefix")


def _core(element: Element) -> Element:
    """What a script is attached to: x of x²."""
    return element[0] if element.tag in SCRIPTS and len(element) else element


def _opens(element: Element) -> bool:
    """Whether a bracket follows: `log (x)` is set without the space of `log x`."""
    return any((part.text or "") in tuple("([{") for part in (element, *element[:1]))


def _balanced(latex: str) -> bool:
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", latex.replace(r"\\", "")):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def _refusal(latex: str, why: str) -> ValueError:
    return ValueError(f"math did not convert to MathML, {why}: {_shorten(latex)}")


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 120 else line[:117] + "..."
