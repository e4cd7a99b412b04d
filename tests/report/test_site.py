import re
import zipfile

import pytest

from kbitlib.report.page import facts
from kbitlib.report.site import build_index, bundle, corpus_sentence, headline, sentences

CHAPTERS = [{"name": "00_a", "title": "A & b", "summary": "first"}, {"name": "01_b", "title": "B", "summary": ""}]


def plain(text):
    return re.sub(r"\s+", " ", text.replace("\u00a0", " ")).strip()


def index(folder, **changes):
    about = {"profile": "smoke", "chapters": CHAPTERS, "answer": None, "status": {}, "provenance": {}} | changes
    build_index(folder, **about)
    return (folder / "index.html").read_text(encoding="utf-8")


def test_the_index_opens_with_the_answer(report):
    soup = report.soup("index")
    assert plain(soup.h1.text) == "At equal memory, 4 bits a weight are best."
    assert plain(soup.find(class_="lead").text) == (
        "Between 60 thousand and 9.5 million bits for the quantized weights, k = 4 has the lowest loss over "
        "78 % of the range (95 % interval 61 % to 93 %). "
        "The best choice changes from 5 to 4 bits a weight at 910 thousand bits in all "
        "(95 % interval 600 thousand to 1.4 million)."
    )
    assert plain(soup.find(class_="meta").text).startswith("14 models · 812 records · 1 March 2026")
    figure = soup.find(id="figure-headline")
    assert figure.svg["aria-label"].startswith("Loss falls with total bits")
    assert len(figure.find_all("a")) == 2


def test_chapters_show_their_state_and_times(report):
    cards = [plain(card.get_text(" ")) for card in report.soup("index").find_all(class_="card")]
    assert cards == [
        "0 Start here What a k-bit scaling law is, in ten minutes. done 8.1 s",
        "1 What k bits can hold Codebooks, blocks and their error. stale 21 s 44 s of computing in all it reads",
        "2 A family at every k Train, quantize, measure. 3 of 96 jobs failed: w128-d6 & <two> more. failed 10 min 12 s",
        "4 The law Which k wins at the same memory. done 1 min 12 s",
    ]


def test_records_store_and_corpus_are_there(report):
    soup = report.soup("index")
    times, records = (
        [[plain(cell.text) for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")]
        for table in soup.find_all("table")
    )
    assert times[1:] == [["family", "96", "10 min 4 s"], ["quantization", "812", "–"]]
    assert records[1:] == [["quantization.csv", "2", "42 bytes"]]  # a line break in a cell starts no row
    text = plain(soup.main.text)
    assert "The store holds 1,012 results in 87 MiB, 3 failed." in text
    assert "the same text on every machine, sha256 5f2bc0de5f2bc0de… as expected" in text


def test_without_an_answer_the_index_says_so(tmp_path):
    text = index(tmp_path)
    assert "<h1>There is no answer yet</h1>" in text
    assert text.count("never run</span>") == 2
    assert "A &amp; b" in text
    assert "<table>" not in text
    assert 'href="00_a.html"' not in text


def test_a_figure_that_is_not_there_is_left_out(tmp_path):
    answer = {
        "k": 4,
        "share": 1,
        "range": [1, 2],
        "models": 1,
        "records": 1,
        "date": "2026-03-01",
        "figure": "figures/x.svg",
    }
    assert "<figure" not in index(tmp_path, answer=answer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "There is no answer yet"),
        ({"k": 4}, "At equal memory, 4 bits a weight are best"),
        ({"k": 1}, "At equal memory, 1 bit a weight is best"),
        ({"k": 4, "ties": [3]}, "At equal memory, 4 bits a weight are best, in a tie with 3"),
        ({"k": 4, "ties": [3, 5]}, "At equal memory, 4 bits a weight are best, in a tie with 3 and 5"),
    ],
)
def test_headline(answer, words):
    assert plain(headline(answer)) == words


def test_ties_and_notes_are_told():
    answer = {"k": 4, "ties": [5], "share": 0.5, "range": [1e5, 1e7], "notes": ["Counted with embeddings, it is 5."]}
    assert [plain(text) for text in sentences(answer)] == [
        "Between 100 thousand and 10 million bits for the quantized weights, k = 4 has the lowest loss over 50 % of "
        "the range.",
        "The differences between 4 and 5 bits are within the noise of training.",
        "Counted with embeddings, it is 5.",
    ]


def test_a_corpus_that_differs_is_told():
    differs = corpus_sentence({"source": "installed", "sha256": "a" * 64, "expected": "b" * 64})
    assert (
        differs
        == f"Corpus “installed”: its text differs from the expected one, sha256 {'a' * 16}… instead of {'b' * 16}…"
    )
    own = corpus_sentence({"source": "my text", "sha256": "a" * 64, "expected": None})
    assert own == f"Corpus “my text”: sha256 {'a' * 16}…"


def test_the_bundle_is_the_report_without_notebooks_and_store(report):
    with zipfile.ZipFile(report.folder / "report.zip") as archive:
        names = set(archive.namelist())
        first = archive.read("laptop/index.html").decode()
        page = archive.read("laptop/04_scaling_regression.html")
    assert names == {
        "laptop/index.html",
        "laptop/04_scaling_regression.html",
        "laptop/records/quantization.csv",
        "laptop/figures/04_scaling_regression-best_k.csv",
        "laptop/figures/04_scaling_regression-best_k.svg",
        "laptop/figures/04_scaling_regression-panels.csv",
        "laptop/figures/04_scaling_regression-panels.svg",
        "laptop/figures/04_scaling_regression-exponents.csv",
    }
    assert page == report.page.read_bytes()
    assert 'href="report.zip"' in (report.folder / "index.html").read_text(encoding="utf-8")
    assert 'href="report.zip"' not in first


def test_the_same_report_has_the_same_bundle(report):
    before = (report.folder / "report.zip").read_bytes()
    assert bundle(report.folder).read_bytes() == before


def test_facts_leave_out_what_is_unknown_and_keep_what_is_new():
    assert facts({}) == []
    assert facts({"commit": None, "gpu": None, "python": "3.13", "world_size": 2}) == [
        ("Hardware", "no GPU"),
        ("Versions", "Python 3.13"),
        ("World size", "2"),
    ]
