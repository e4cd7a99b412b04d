"""The smoke report as a reader has it: opened from disk in a browser that has no network."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbitlib.experiments.settings import CHAPTERS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PAGES = ["index", *CHAPTERS]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: the pages are not looked at in a browser")
    reason = "playwright is not installed: pip install 'kbit-lab[browser]'"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_needs_nothing_but_itself_and_shows_all_it_has(browser, smoke: Path, name: str, scheme: str) -> None:
    context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": 1200, "height": 900})
    page = context.new_page()
    requests, faults = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto((smoke / f"{name}.html").as_uri())
    assert all(url.startswith("file://") for url in requests)
    assert not faults
    figures = page.locator("figure svg")
    assert figures.count() >= 1
    for figure in figures.all():
        assert (figure.get_attribute("aria-label") or "").strip()
        box = figure.bounding_box()
        assert box is not None
        assert box["width"] > 200
        assert box["height"] > 50
    if name != "index" and name != "00_start_here":
        assert page.locator("math").count() >= 1
    assert "$" not in page.locator("main").inner_text().replace("\\$", "")
    broken = page.evaluate("[...document.images].filter(image => !image.naturalWidth).length")
    assert broken == 0
    too_wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth + 1")
    assert not too_wide
    context.close()


def test_the_first_page_opens_with_the_answer_of_the_records(browser, smoke: Path) -> None:
    answer = json.loads((smoke / "records" / "answer.json").read_text())
    page = browser.new_page()
    page.goto((smoke / "index.html").as_uri())
    assert str(answer["k"]) in page.locator("h1").inner_text()
    text = page.locator("main").inner_text()
    assert f"{100 * answer['share']:.0f}" in text
    assert all(f"{name}.html" in page.content() for name in CHAPTERS)
    page.close()
