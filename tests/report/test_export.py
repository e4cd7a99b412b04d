import re
from html.parser import HTMLParser

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kbitlib.report.export import comments, parameter_rows, render, settle, summary
from kbitlib.report.page import external

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Structure(HTMLParser):
    """Checks that elements are closed in the order in which they were opened."""

    def __init__(self):
        super().__init__()
        self.open, self.faults = [], []

    def handle_starttag(self, tag, attrs):
        if tag in VOID:
            return
        if "p" in self.open and tag in {"p", "div", "figure", "table", "ul", "ol", "pre", "details", "h1", "h2", "h3"}:
            self.faults.append(f"<{tag}> in <p>")
        self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")


def page_of(tmp_path, *cells, name="01_x", **changes):
    notebook = tmp_path / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=list(cells)), notebook)
    about = {"defaults": {}, "parameters": {}, "provenance": {}, "chapters": []} | changes
    render(notebook, tmp_path / f"{name}.html", **about)
    return (tmp_path / f"{name}.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["04_scaling_regression", "index"])
def test_elements_are_closed_in_order(report, name):
    structure = Structure()
    structure.feed((report.folder / f"{name}.html").read_text(encoding="utf-8"))
    assert not structure.faults
    assert not structure.open


@pytest.mark.parametrize("name", ["04_scaling_regression", "index"])
def test_a_page_needs_nothing_but_itself(report, name):
    soup = report.soup(name)
    assert external(str(soup)) == ""
    for element in soup.find_all(True):
        for key in ("src", "srcset", "data", "poster", "xlink:href"):
            assert re.match(r"data:|#", element.get(key, "#")), element
        if element.name != "a":
            assert element.get("href", "#").startswith("#"), element
    assert not re.search(r"@import|url\((?!#|\"?data:)", str(soup))
    assert not [script for script in soup.find_all("script") if script.get("src")]


@pytest.mark.parametrize("name", ["04_scaling_regression", "index"])
def test_ids_are_unique_and_links_lead_somewhere(report, name):
    soup = report.soup(name)
    ids = [element["id"] for element in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    for link in soup.find_all("a", href=True):
        place, _, part = link["href"].partition("#")
        if place.startswith("https:"):
            continue
        known = {chapter["name"] + ".html" for chapter in report.chapters}
        assert not place or place in known or (report.folder / place).is_file(), link
        assert place or part in ids, link
    for reference in re.findall(r'(?:url\(#|xlink:href="#)([^")]+)', str(soup)):
        assert reference in ids


def test_every_picture_is_described(report):
    soup = report.soup()
    pictures = [svg for svg in soup.find_all("svg") if svg.get("aria-hidden") != "true"]
    assert len(pictures) == 2
    for svg in pictures:
        assert svg["role"] == "img"
        assert svg["aria-label"] == 'Loss falls with total bits; "k = 4" is lowest & best.'
    assert all(image.get("alt") for image in soup.find_all("img"))


def test_under_each_figure_stand_caption_files_and_records(report):
    figure = report.soup().find(id="figure-best_k")
    caption = figure.figcaption
    assert re.match(r"\s*Figure 4\.1 Loss against total bits, one curve for each k", caption.text)
    assert caption.math is not None
    assert [link.text for link in caption.find_all("a")] == ["CSV", "SVG"]
    assert "from records/quantization.csv, 812 rows" in caption.text


def test_the_table_of_contents_is_the_headings(report):
    soup = report.soup()
    headings = [
        (heading["id"], re.sub(r"\s+", " ", heading.text).strip())
        for heading in soup.main.find_all(["h2", "h3"], id=True)
    ]
    assert len(headings) == 5
    assert [text for _, text in headings][:3] == [
        "4.1 The law that is fitted",
        "4.1.1 What rounding costs at k bits",
        "4.2 What was measured",
    ]
    assert [id for id, _ in headings][2:] == ["what-was-measured", "exercises", "what-was-measured-2"]
    navigations = [nav for nav in soup.find_all("nav") if "Contents" in nav.get("aria-label", "")]
    assert len(navigations) == 2  # beside the text, and for small windows
    for nav in navigations:
        entries = [(link["href"][1:], re.sub(r"\s+", " ", link.text).strip()) for link in nav.find_all("a")]
        assert entries == headings


def test_the_first_heading_is_the_title(report):
    soup = report.soup()
    assert [h1.text for h1 in soup.find_all("h1")] == ["At the same memory, which k wins?"]
    assert soup.title.text.startswith("At the same memory, which k wins?")
    assert soup.html["lang"] == "en"


def test_math_is_mathml_everywhere_and_no_dollar_is_left(report):
    soup = report.soup()
    assert len(soup.find_all("math")) > 25
    assert soup.find("details", class_=None).find("math") is not None
    assert soup.find_all("math", display="block")
    for part in soup.main.find_all(["code", "pre"]):
        part.decompose()
    text = soup.main.text
    assert text.count("$") == 1  # the price, written as \$0
    assert "costs $0" in text
    assert "\\" not in text


def test_code_in_answers_is_left_alone(report):
    answer = report.soup().find_all("details", class_=None)[1]
    assert answer.find("code").text == 'f"$HOME"'
    assert answer.summary.find("math") is not None


def test_answers_hold_their_text(report):
    """nbconvert, embedding images, closes the element before its text begins."""
    first = report.soup().find_all("details", class_=None)[0]
    assert "four" in first.text or "quarter" in first.text
    assert first.find("math", display="block") is not None


def test_parameters_are_a_table_not_cells(report):
    soup = report.soup()
    table = soup.find(id="parameters").table
    rows = [[cell.text for cell in row.find_all(["th", "td"])] for row in table.tbody.find_all("tr")]
    assert rows == [
        ["bits", "bit widths to compare, 2 to 8", "[2, 3, 4]", "[2, 3, 4, 5, 6, 7, 8]"],
        ["block", "weights that share a scale", "64", "64"],
        ["law", "form that is fitted: ols, or effective (N_eff = N f(k))", '"ols"', '"ols"'],
        ["draws", "bootstrap resamples", "200", "4000"],
    ]
    assert [bool(row.mark) for row in table.tbody.find_all("tr")] == [True, False, False, True]
    code = [part.text for part in soup.find_all("details", class_="code")]
    assert not [text for text in code if "draws = 4000" in text or "bits: list" in text]


def test_code_is_folded_and_says_what_it_does(report):
    soup = report.soup()
    folded = soup.find_all("details", class_="code")
    assert len(folded) == 7
    assert folded[0].summary.text == "Code Settings are checked before anything runs"
    assert not folded[0].has_attr("open")
    assert folded[0].find(class_="kn") is not None  # highlighted
    assert soup.find(id="code-switch") is not None


def test_noise_is_folded_and_settled(report):
    noise = report.soup().find("details", class_="noise")
    assert noise.pre.text == "100%|####| 10/10\nwarning: x"


def test_errors_are_legible(report):
    error = report.soup().find(class_="error")
    assert error.p.text == "ZeroDivisionError: division by zero"
    assert "\x1b" not in error.text
    assert "division by <zero>" in error.pre.text


def test_tables_of_notebooks_have_numbers_scopes_and_files(report):
    soup = report.soup()
    table = soup.find(id="table-exponents")
    assert table.caption.text.startswith("Table 4.1 Slope")
    assert 'href="figures/04_scaling_regression-exponents.csv"' in str(soup)
    assert not soup.find_all("style", scoped=True)
    assert all(cell.get("scope") for cell in table.find_all("th"))


def test_the_footer_says_how_to_make_the_page_again(report):
    footer = {row.dt.text: row.dd.text for row in report.soup().find(id="provenance").find_all("div")}
    assert footer == {
        "Command": "kbit run --profile laptop",
        "Run": "1 March 2026, 14:05 UTC",
        "Wall time": "1\u00a0min\u00a012\u00a0s",
        "Commit": "0f3c2a9d5b8e4f6a7c1d2e3f4a5b6c7d8e9f0a1b with uncommitted changes",
        "Data": "sha256 5f2b7c",
        "Seed": "0",
        "Hardware": "AMD EPYC 9B14, 2 cores, 16.4 GB memory, no GPU",
        "System": "Linux-6.1-x86_64",
        "Versions": "kbitlib 0.1.0, Python 3.11.9, torch 2.13.0, numpy 2.4.6",
    }


def test_neighbours_and_other_chapters_are_linked(report):
    soup = report.soup()
    assert soup.find("a", rel="prev")["href"] == "02_quantization_runs.html"
    assert soup.find("a", rel="next") is None
    assert soup.find("a", string="the second chapter")["href"] == "02_quantization_runs.html#a-family"


def test_keyboard_and_screen_reader_find_their_way(report):
    soup = report.soup()
    assert soup.body.find("a")["href"] == "#main"
    assert soup.find(id="main").name == "main"
    assert not soup.find_all(tabindex=re.compile("^[1-9]"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (r"so $\foo{x}$ it is", r"01_x\.ipynb: math did not convert to MathML, \\foo is not known: \\foo{x}"),
        ("the price is $5", "no partner"),
        ("<details><summary>Answer</summary>\n$\\foo$</details>", r"\\foo is not known"),
    ],
)
def test_math_that_does_not_convert_fails_the_build(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        page_of(tmp_path, new_markdown_cell(text))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "01_x.html").exists()


@pytest.mark.parametrize(
    "html",
    [
        '<img src="https://example.org/a.png" alt="a">',
        '<script src="//example.org/a.js"></script>',
        '<link rel="stylesheet" href="http://example.org/a.css">',
        "<style>body { background: url(https://example.org/a.png) }</style>",
        '<p style="background: url(//example.org/a.png)">x</p>',
        '<img src="elsewhere.png" alt="">',
        "<style>@import 'a.css';</style>",
    ],
)
def test_a_page_that_would_load_something_is_not_written(tmp_path, html):
    output = new_output("display_data", data={"text/html": html})
    with pytest.raises(ValueError, match=r"01_x\.html would load"):
        page_of(tmp_path, new_code_cell("x", outputs=[output]))
    assert not (tmp_path / "01_x.html").exists()


def test_links_to_click_load_nothing():
    assert (
        external('<a href="https://example.org">x</a><p>https://example.org</p><img src="data:image/png;base64,AA">')
        == ""
    )


def test_an_image_named_in_the_prose_is_embedded(tmp_path):
    (tmp_path / "dot.png").write_bytes(b"\x89PNG")
    text = page_of(tmp_path, new_markdown_cell("![a dot](dot.png)"))
    assert '<img src="data:image/png;base64,iVBORw==" alt="a dot"' in text


def test_a_picture_keeps_the_description_in_its_metadata(tmp_path):
    with_alt = new_output("display_data", data={"image/png": "iVBO\nRw=="}, metadata={"image/png": {"alt": "a dot"}})
    without = new_output("display_data", data={"image/png": "iVBORw=="})
    text = page_of(tmp_path, new_code_cell("x", outputs=[with_alt, without]))
    assert 'src="data:image/png;base64,iVBORw==" alt="a dot"' in text
    assert 'alt="A figure without a description"' in text


def test_text_and_latex_outputs(tmp_path):
    outputs = [
        new_output("execute_result", data={"text/plain": "<Result 3>"}),
        new_output("display_data", data={"text/latex": r"$\displaystyle \frac{x}{2}$", "text/plain": "x/2"}),
    ]
    text = page_of(tmp_path, new_code_cell("x", outputs=outputs))
    assert '<pre class="output">&lt;Result 3&gt;</pre>' in text
    assert "<mfrac>" in text


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"status": "failed", "error": "a < b"}, "This chapter failed and shows what ran before: a &lt; b"),
        ({"status": "stale"}, "This chapter is stale: what it rests on has changed"),
        ({"status": "running"}, "This chapter is running"),
    ],
)
def test_a_page_says_when_it_is_not_whole(tmp_path, status, words):
    text = page_of(tmp_path, new_markdown_cell("# T"), status=status)
    assert words in re.sub("</?strong>", "", text)


def test_a_failure_is_told_once_and_linked(tmp_path):
    """Papermill puts shouting cells before the notebook and before the cell that failed."""
    cells = [
        new_markdown_cell(
            '<span style="color:red">An Exception</span>', metadata={"tags": ["papermill-error-cell-tag"]}
        ),
        new_markdown_cell("# T"),
        new_code_cell("1 / 0", outputs=[new_output("error", ename="E", evalue="no", traceback=["E: no"])]),
    ]
    text = page_of(tmp_path, *cells, status={"status": "failed", "error": "no"})
    assert "An Exception" not in text
    assert '<a href="#error">' in text
    assert text.count('id="error"') == 1


def test_a_page_without_anything_still_stands(tmp_path):
    text = page_of(tmp_path, name="notes", chapters=[{"name": "notes", "title": "Notes & more"}])
    assert "<h1>Notes &amp; more</h1>" in text
    assert "code-switch" not in text.split("<script>")[1]


def test_the_same_notebook_has_the_same_bytes(report, tmp_path):
    again = tmp_path / report.page.name
    render(
        report.notebook,
        again,
        defaults=report.defaults,
        parameters=report.parameters,
        provenance=report.provenance,
        chapters=report.chapters,
        status=report.status["chapters"][report.page.stem],
    )
    assert again.read_bytes() == report.page.read_bytes()
    assert len(again.read_bytes()) < 120_000


def test_parameters_without_a_cell_or_a_default():
    rows = parameter_rows(new_notebook(), {"bits": 4}, {"seed": 1})
    assert [(row["name"], row["default"], row["value"], row["differs"]) for row in rows] == [
        ("bits", "4", "4", False),
        ("seed", "–", "1", True),
    ]


def test_comments_are_the_meanings_of_parameters():
    source = """\
bits: list = [
    2,  # two
    3,
]  # widths, 2 to 8
name = "a # b"
law: str = "x"  # "y" if f = 2
# alone
"""
    assert comments(source) == {"bits": "widths, 2 to 8", "law": '"y" if f = 2'}


def test_settle_shows_what_a_terminal_would():
    assert settle("a\rb\r\n\x1b[31mred\x1b[0m\n") == "b\nred"


@pytest.mark.parametrize(
    ("source", "words"), [("# Fit it.\nfit()", "Fit it"), ("fit()", "1 line"), ("a\nb\n", "2 lines")]
)
def test_summary_of_code(source, words):
    assert summary(source) == words
