import re
import xml.etree.ElementTree as ET

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from kbitlib.report import publish, show_table, theme
from kbitlib.report.svg import inline, label_of, stand_alone

TABLE = pd.DataFrame({"k": [2, 3], "loss": [1.5, 1.25]})


def draw():
    theme.use()
    figure, axes = plt.subplots()
    axes.plot(TABLE.k, TABLE.loss, **theme.k_style(4))
    axes.plot(TABLE.k, TABLE.loss + 1, color="black")
    axes.fill_between(TABLE.k, TABLE.loss, 3, color="black", alpha=0.1)
    axes.set(xlabel="k", title="loss & bits")
    return figure


def send(folder, **changes):
    about = {
        "chapter": "01_theory",
        "name": "loss",
        "table": TABLE,
        "alt": 'Loss "falls" & rests.',
        "caption": "Loss.",
        "records": "r",
    }
    publish(draw(), folder=folder, **(about | changes))


def test_a_figure_leaves_its_drawing_and_its_table(tmp_path, shown):
    send(tmp_path)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "01_theory-loss.csv",
        "01_theory-loss.svg",
    ]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "figures" / "01_theory-loss.csv"), TABLE)
    [(data, metadata)] = shown
    about = metadata["image/svg+xml"]["kbit"]
    assert data["image/svg+xml"] == (tmp_path / "figures" / "01_theory-loss.svg").read_text()
    assert (tmp_path / about["svg"]).is_file()
    assert (tmp_path / about["csv"]).is_file()
    assert (about["alt"], about["caption"], about["records"]) == ('Loss "falls" & rests.', "Loss.", "r")
    assert plt.get_fignums() == []


def test_the_same_figure_has_the_same_bytes(tmp_path, shown):
    send(tmp_path / "a")
    send(tmp_path / "b")
    a, b = ((tmp_path / x / "figures" / "01_theory-loss.svg").read_bytes() for x in "ab")
    assert a == b


def test_the_drawing_follows_light_and_dark(tmp_path, shown):
    send(tmp_path)
    drawing = (tmp_path / "figures" / "01_theory-loss.svg").read_text()
    ET.fromstring(drawing)
    body = drawing.split("</style>")[1]
    assert "prefers-color-scheme:dark" in drawing
    assert theme.INK not in drawing
    assert "#000000" not in body
    assert "#ffffff" not in body
    assert "currentColor" in body
    assert "var(--paper)" in body  # the rims of markers
    assert "<text" in body  # not outlines
    assert "font-family" not in body
    assert label_of(drawing) == 'Loss "falls" & rests.'
    assert not re.search(r"(?:href|src)=\"(?!#)|@import|DOCTYPE", drawing)


@pytest.mark.parametrize("changes", [{"alt": " "}, {"caption": ""}, {"name": "a/b"}, {"name": ""}, {"chapter": "../x"}])
def test_a_figure_without_words_or_with_a_bad_name_is_refused(tmp_path, shown, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        send(tmp_path, **changes)
    plt.close("all")
    assert not shown
    assert not list(tmp_path.rglob("*.svg"))


def test_two_drawings_in_one_page_share_no_id():
    drawing = stand_alone(
        '<svg viewBox="0 0 1 1"><clipPath id="p1"/><g id="axes"/><path clip-path="url(#p1)"/></svg>', "x"
    )
    one, two = (inline(drawing, prefix, 'a "label"') for prefix in ("a-", "b-"))
    assert 'id="a-p1"' in one
    assert "url(#a-p1)" in one
    assert 'id="axes"' not in one
    assert not set(re.findall(r'id="([^"]+)"', one)) & set(re.findall(r'id="([^"]+)"', two))
    assert "<style" not in one
    assert BeautifulSoup(one, "html.parser").svg["aria-label"] == 'a "label"'


def test_what_is_no_drawing_is_refused():
    with pytest.raises(ValueError, match="not an SVG drawing: it begins with 'hello'"):
        stand_alone("hello", "x")


def test_a_table_has_headings_caption_and_aligned_numbers(tmp_path, shown):
    frame = pd.DataFrame({"element": ["int", "a<b"], "error": [0.12345, np.nan], "n": [3, 40]})
    show_table(
        frame,
        caption=r"Errors at $k = 4$ & less.",
        formats={"error": ".3f", "n": lambda n: f"{n} of 40"},
        folder=tmp_path,
        chapter="01",
        name="errors",
    )
    [(data, metadata)] = shown
    table = BeautifulSoup(data["text/html"], "html.parser").table
    assert [cell["scope"] for cell in table.thead.find_all("th")] == ["col"] * 3
    assert [row.th["scope"] for row in table.tbody.find_all("tr")] == ["row"] * 2
    assert [cell.text for cell in table.tbody.find_all(["th", "td"])] == [
        "int",
        "0.123",
        "3 of 40",
        "a<b",
        "–",
        "40 of 40",
    ]
    assert all("number" in cell["class"] for cell in table.tbody.find_all("td"))
    assert table.caption.math is not None
    assert "&amp; less" in str(table.caption)
    about = metadata["text/html"]["kbit"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / about["csv"]), frame)


def test_an_index_with_names_becomes_the_first_column(shown):
    show_table(pd.DataFrame({"loss": [1.0]}, index=pd.Index(["w24"], name="model")), caption="Losses.")
    table = BeautifulSoup(shown[0][0]["text/html"], "html.parser")
    assert table.thead.text == "modelloss"
    assert table.tbody.th.text == "w24"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption": " "}, "caption"),
        ({"formats": {"loss": ".2f"}}, "'loss': the columns are k"),
        ({"name": "x"}, "folder"),
    ],
)
def test_a_table_that_lacks_something_is_refused(shown, changes, message):
    with pytest.raises(ValueError, match=message):
        show_table(pd.DataFrame({"k": [1]}), **({"caption": "c"} | changes))
    assert not shown
