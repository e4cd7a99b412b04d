import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from kbitlib.data import hub
from kbitlib.data.hub import DatasetName
from kbitlib.data.sources import collect


class Table:
    """What of a `datasets.Dataset` is used: its columns, their types, their values."""

    def __init__(self, **columns):
        self.columns = columns
        self.column_names = list(columns)
        self.features = {
            name: SimpleNamespace(dtype="string" if isinstance(values[0], str) else "int64")
            for name, values in columns.items()
        }

    def __getitem__(self, name):
        return self.columns[name]


@pytest.fixture
def library(monkeypatch):
    """A stand-in for the package `datasets`, and a hub that answers: no test may wait for a network."""
    module = ModuleType("datasets")
    module.__spec__ = ModuleSpec("datasets", None)
    module.disable_progress_bars = lambda: None
    module.asked = []
    module.answer = Table(text=["one\n", "two"], label=[0, 1])

    def load_dataset(name, config, split):
        module.asked.append((name, config, split))
        if isinstance(module.answer, Exception):
            raise module.answer
        return module.answer

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr(hub, "_reachable", lambda: True)
    return module


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf:imdb", ("imdb", None, "train")),
        ("hf:wikitext:wikitext-2-raw-v1:validation", ("wikitext", "wikitext-2-raw-v1", "validation")),
        ("hf:imdb::test", ("imdb", None, "test")),
        ("owner/name", ("owner/name", None, "train")),
        ("owner/name:config", ("owner/name", "config", "train")),
        ("owner/name:train[:1%]", ("owner/name", None, "train[:1%]")),
        ("owner/name:config:train[10:20]", ("owner/name", "config", "train[10:20]")),
    ],
)
def test_names_are_read(text, name):
    assert DatasetName.parse(text) == name


@pytest.mark.parametrize(
    "text", ["name", "./a/b", "/a/b", "../a", "a/b/c", "hf:", "hf:/x", "~/x", "C:\\x", "a/b c", ""]
)
def test_what_is_no_name_is_not_read(text):
    assert DatasetName.parse(text) is None


def test_each_row_is_a_document(library):
    documents = collect("hf:imdb::test").documents
    assert documents == [("imdb/000000000", b"one\n"), ("imdb/000000001", b"two")]
    assert library.asked == [("imdb", None, "test")]


def test_rows_that_are_lines_of_a_running_text_are_joined(library):
    library.answer = Table(text=["", " = Title = \r\n", "", "Text.\n", "More."])
    (document,) = collect("hf:wikitext").documents
    assert document.text == b"\n = Title = \n\nText.\nMore.\n"


def test_one_empty_row_among_many_joins_nothing(library):
    library.answer = Table(text=["a"] * 20 + [""])
    assert len(collect("hf:x").documents) == 21


def test_the_column_of_text_is_found(library):
    library.answer = Table(id=[1], content=["b"], title=["a"])
    assert collect("hf:x").documents[0].text == b"b"
    library.answer = Table(id=[1], body=["c"])
    assert collect("hf:x").documents[0].text == b"c"
    library.answer = Table(id=[1], question=["c"], answer=["d"])
    with pytest.raises(ValueError, match=r"needs a column 'text' or 'content'.* but has id, question, answer\."):
        collect("hf:x")


def test_too_much_text_is_refused(library, monkeypatch):
    monkeypatch.setattr("kbitlib.data.sources.MAXIMUM_BYTES", 5)
    with pytest.raises(ValueError, match=r"'imdb' .* is too large: at most 5 bytes"):
        collect("hf:imdb")


def test_an_unknown_name_is_one_sentence(library):
    library.answer = RuntimeError("Dataset 'x' doesn't exist on the Hub or cannot be accessed.\nmore\nlines")
    with pytest.raises(
        ValueError, match=r"the Hugging Face data set 'x' .* cannot be had: Dataset 'x' doesn't"
    ) as raised:
        collect("hf:x")
    assert "\n" not in str(raised.value)


def test_a_hub_out_of_reach_is_said_and_the_cache_is_used(library, monkeypatch):
    monkeypatch.setattr(hub, "_reachable", lambda: False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    assert len(collect("hf:imdb").documents) == 2
    library.answer = ConnectionError("no route")
    with pytest.raises(ValueError, match="the hub is out of reach and the cache does not hold it"):
        collect("hf:imdb")


def test_without_the_package_the_sentence_says_how_to_get_it_and_that_no_such_path_is_there(monkeypatch):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^the Hugging Face data set 'x' .* pip install 'kbit-lab\[hub\]'"):
        collect("hf:x")
    with pytest.raises(
        ValueError, match=r"no file or folder 'data/x.txt', and the .* 'data/x.txt' .* needs the package"
    ):
        collect("data/x.txt")


def test_a_hub_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    for endpoint in ("http://127.0.0.1:9", "nonsense"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        assert not hub._reachable()
