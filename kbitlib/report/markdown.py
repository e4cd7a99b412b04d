"""Markdown of notebook cells and outputs -> HTML with MathML, numbered headings and their table of contents."""

import html
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mistune import InlineState
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath, MathInlineParser

from kbitlib.report.mathml import convert_html, keep_together, mathml, prose

RESERVED = ("main", "contents", "parameters", "provenance")  # ids that the page itself uses


@dataclass(frozen=True)
class Heading:
    """A section: its level (2 or 3), the id to link to, its number ("4.2") and its title as HTML."""

    level: int
    id: str
    number: str
    title: str


@dataclass
class Chapter:
    """The prose of one page: converts its pieces in order and collects its title and headings on the way.

    number: the chapter's, which sections and figures are counted under ("4" gives "4.1"); may be empty.
    folder: where images named in the Markdown are found; they are embedded in the page.
    """

    number: str = ""
    folder: Path = Path()
    title: str = ""
    headings: list[Heading] = field(default_factory=list)
    _ids: set[str] = field(default_factory=lambda: set(RESERVED))
    _counts: dict[str, int] = field(default_factory=dict)

    def convert(self, source: str, attachments: dict[str, Any] | None = None) -> str:
        """Markdown -> HTML; raises ValueError on math that does not convert."""
        renderer = _Renderer(self, attachments or {})
        text = MarkdownWithMath(renderer=renderer, inline=_Inline()).render(source)
        text = keep_together(re.sub(r"<th(?=[ >])", '<th scope="col"', text))
        return text.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")

    def heading(self, text: str, level: int) -> str:
        """Number and name a heading; the first of level 1 becomes the page's title and leaves the text."""
        if level == 1 and not self.title:
            self.title = text
            return ""
        level = max(level, 2)
        id = self.unique(re.sub(r"\W+", "-", _plain(text).lower()).strip("-") or "section")
        if level > 3:
            return f'<h{level} id="{id}">{text}</h{level}>\n'
        number = self._section(level)
        self.headings.append(Heading(level, id, number, re.sub(r"</?a\b[^>]*>", "", text)))
        return f'<h{level} id="{id}"><a class="section" href="#{id}">{number}</a> {text}</h{level}>\n'

    def unique(self, id: str) -> str:
        """An id that the page does not have yet, close to the one asked for."""
        candidate, count = id, 2
        while candidate in self._ids:
            candidate, count = f"{id}-{count}", count + 1
        self._ids.add(candidate)
        return candidate

    def count(self, what: str) -> str:
        """The next number of a figure or table: "4.1", "4.2", ..."""
        self._counts[what] = self._counts.get(what, 0) + 1
        return ".".join(filter(None, (self.number, str(self._counts[what]))))

    def _section(self, level: int) -> str:
        if level == 2:
            self._counts["subsection"] = 0
            return self.count("section")
        self._counts["subsection"] = self._counts.get("subsection", 0) + 1
        section = self._counts.get("section", 0)
        return ".".join(filter(None, (self.number, str(section), str(self._counts["subsection"]))))


class _Inline(MathInlineParser):
    def parse_escape(self, m: re.Match[str], state: InlineState) -> int:
        r"""Take the backslash from everything but `\$`, which `prose` must be able to tell from a forgotten formula."""
        state.append_token({"type": "text", "raw": re.sub(r"\\([^$])", r"\1", m[0]), "_emphasis": False})
        return m.end()


class _Renderer(IPythonRenderer):
    def __init__(self, chapter: Chapter, attachments: dict[str, Any]) -> None:
        super().__init__(escape=False, embed_images=True, path=str(chapter.folder), attachments=attachments)
        self.chapter = chapter

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        return self.chapter.heading(text, level)

    def text(self, text: str) -> str:
        return super().text(prose(text))

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """Chapters cite each other as notebooks; here they are pages."""
        return super().link(text, re.sub(r"^([\w-]+)\.ipynb(?=#|$)", r"\1.html", url), title)

    def block_html(self, html: str) -> str:
        """As it stands but for its math: nbconvert, embedding images, would close a `<details>` that opens here."""
        return convert_html(html) + "\n"

    def inline_html(self, html: str) -> str:
        return html

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        inner = name.startswith("equation")
        return mathml(body if inner else rf"\begin{{{name}}}{body}\end{{{name}}}", "block")


def _plain(text: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", text))
