"""The pages as a reader has them: opened from disk, offline, in light and dark."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]

# The contrast (WCAG 2.2) of each text's colour with the page's paper.
CONTRASTS = """selector => {
  const channels = colour => {
    const context = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d")
    context.fillStyle = colour; context.fillRect(0, 0, 1, 1)
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3)
  }
  const linear = c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4
  const light = colour => channels(colour).map(c => linear(c / 255))
    .reduce((sum, c, n) => sum + c * [.2126, .7152, .0722][n], 0)
  const paper = light(getComputedStyle(document.body).backgroundColor)
  return [...document.querySelectorAll(selector)].map(element => {
    const style = getComputedStyle(element)
    const ink = light(element.closest("svg") ? style.fill : style.color)
    return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05)
  })
}"""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: the pages are not looked at in a browser")
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install 'kbit-lab[browser]'"
    )
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


class Reader:
    """A window on a page, which notes what the page asks for and what goes wrong."""

    def __init__(self, browser, path, **settings):
        self.context = browser.new_context(offline=True, **settings)
        self.page = self.context.new_page()
        self.requests, self.faults = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.goto(path.as_uri())

    def paper(self):
        return self.page.evaluate("getComputedStyle(document.body).backgroundColor")


@pytest.fixture
def read(browser, report):
    readers = []

    def read(name="04_scaling_regression", **settings):
        readers.append(Reader(browser, report.folder / f"{name}.html", **settings))
        return readers[-1]

    yield read
    for reader in readers:
        reader.context.close()
        assert reader.requests == [reader.requests[0]]
        assert reader.requests[0].startswith("file://")
        assert not reader.faults


@pytest.mark.parametrize("name", ["04_scaling_regression", "index"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_light_and_dark(read, name, scheme):
    reader = read(name, color_scheme=scheme)
    assert reader.paper() == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 23, 26)"}[scheme]
    prose = reader.page.evaluate(
        CONTRASTS, "p, h1, h2, h3, dt, dd, summary, figcaption, caption, td, th, a, button, code span, .hint"
    )
    figures = reader.page.evaluate(CONTRASTS, ".plot svg text")
    assert len(prose) > 30
    assert min(prose) >= 4.5
    assert len(figures) > 10
    assert min(figures) >= 3  # the labels of curves have the colour of their curve
    assert sum(contrast > 7 for contrast in figures) > 10


def test_figures_and_formulas_have_a_size(read):
    page = read().page
    boxes = page.evaluate(
        "[...document.querySelectorAll('.plot svg, math')].map(e => e.getBoundingClientRect().toJSON())"
    )
    shown = [box for box in boxes if box["width"] > 0]  # answers are folded
    assert len(shown) > 20
    assert max(box["width"] for box in shown) > 500


def test_the_switch_of_light_and_dark_works_and_is_remembered(read):
    reader = read(color_scheme="light")
    before = reader.paper()
    reader.page.click("#theme-switch")
    after = reader.paper()
    assert after != before
    reader.page.reload()
    assert reader.paper() == after
    reader.page.click("#theme-switch")
    assert reader.paper() == before
    reader.requests.pop()  # the reload


def test_one_switch_unfolds_all_code_and_is_remembered(read):
    reader = read()
    count = "document.querySelectorAll('details.code[open]').length"
    assert reader.page.evaluate(count) == 0
    reader.page.click("#code-switch")
    assert reader.page.evaluate(count) == 7
    assert reader.page.inner_text("#code-switch") == "Hide code"
    reader.page.reload()
    assert reader.page.evaluate(count) == 7
    reader.requests.pop()


@pytest.mark.parametrize("name", ["04_scaling_regression", "index"])
def test_a_phone_scrolls_in_one_direction(read, name):
    page = read(name, viewport={"width": 360, "height": 700}).page
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_contents_are_at_hand_on_a_phone_and_beside_the_text_on_a_desk(read):
    phone = read(viewport={"width": 360, "height": 700}).page
    assert not phone.is_visible("aside.contents")
    phone.evaluate("scrollTo(0, 2000)")
    phone.click(".contents-small summary")
    phone.click(".contents-small a[href='#exercises']")
    phone.wait_for_function("Math.abs(document.getElementById('exercises').getBoundingClientRect().top) < 120")
    assert not phone.is_visible(".contents-small ol")
    desk = read(viewport={"width": 1400, "height": 900}).page
    desk.evaluate("document.getElementById('exercises').scrollIntoView()")
    desk.wait_for_selector("aside.contents a[aria-current][href='#exercises']")


def test_a_page_works_without_scripts(read):
    page = read(java_script_enabled=False).page
    assert not page.is_visible("#theme-switch")
    page.click("details.code summary")
    assert page.is_visible("details.code[open] .highlight")


def test_paper_is_light_with_answers_open_and_code_gone(read):
    reader = read(color_scheme="dark")
    reader.page.click("#theme-switch")  # to light, then back to a chosen dark
    reader.page.click("#theme-switch")
    reader.page.emulate_media(media="print", color_scheme="dark")
    assert reader.paper() == "rgb(255, 255, 255)"
    assert not reader.page.is_visible("details.code")
    assert not reader.page.is_visible(".bar")
    reader.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert reader.page.is_visible("details:not([class]) math")
    reader.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert reader.page.evaluate("document.querySelectorAll('details[open]').length") == 0
