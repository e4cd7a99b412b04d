"""The corpus: collect, clean, drop exact and near duplicates, split by document, hash.

A token is a byte, so that no tokenizer has to be trained or downloaded and a loss means the same for every corpus:
nats a byte. Documents are separated by the byte 0, which cleaned text never contains.
"""

import csv
import io
from hashlib import sha256
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from kbitlib.data import dedup, sources
from kbitlib.data.batches import Tokens
from kbitlib.data.sources import Collection, Document
from kbitlib.data.split import SPLITS, split
from kbitlib.runs.store import Record, Result, Store

SEPARATOR = b"\0"
MINIMUM_BYTES = 64 * 1024
# The collected text of 'installed', with these versions.
EXPECTED_SHA256 = "6733af10506d75f02de74ccd5cfd424d950d1801f9de8f9e4e554f076981e119"
EXPECTED_VERSIONS = {
    "matplotlib": "3.11.2",
    "networkx": "3.6.1",
    "numpy": "2.4.6",
    "pandas": "3.1.1",
    "scipy": "1.17.1",
    "statsmodels": "0.15.0",
    "sympy": "1.14.0",
}
# Every control character but tab and newline; in UTF-8 these bytes stand for nothing else.
_CONTROL = bytes(sorted(set(range(32)) - set(b"\t\n"))) + b"\x7f"


class CorpusSettings(BaseModel, frozen=True, extra="forbid"):
    """Which text, what counts as a near duplicate, and how much is held out."""

    source: str = Field("installed", min_length=1)
    near_duplicate: float = Field(0.8, ge=0.5, le=0.95)  # Jaccard similarity
    validation: float = Field(0.05, ge=0.005, le=0.25)  # share of the bytes
    test: float = Field(0.05, ge=0.005, le=0.25)
    seed: int = Field(0, ge=0, lt=2**63)
    content: str = ""  # sha256 of the collected text, filled by `identify`


def identify(settings: CorpusSettings) -> CorpusSettings:
    """Fill in `content`, the sha256 of the collected text, so that a change of the text changes the key of its record.

    Raises ValueError if the source cannot be had or is below 64 KiB.
    """
    documents = sources.collect(settings.source).documents
    _require_enough(settings.source, documents, "in all")
    return settings.model_copy(update={"content": _digest(documents)})


def prepare(settings: CorpusSettings, store: Store) -> Result:
    """Turn a source into three files of bytes, and count what each stage kept and dropped; rests on no other record.

    Rows: stage, documents, bytes, dropped, sha256, note. Files: train.bin, validation.bin and test.bin, documents
    separated by a zero byte, and near_duplicates.csv, what was dropped for its likeness to what.
    Raises ValueError if `content` is not that of the source, or too little text is left to split.
    """
    collection = sources.collect(settings.source)
    content = _digest(collection.documents)
    if settings.content != content:
        raise ValueError(
            f"the corpus {settings.source!r} has the sha256 {content}, not {settings.content!r} as its settings say: "
            "identify it anew."
        )
    rows = [_row("collect", collection.documents, sum(collection.skipped.values()), content, _passed_over(collection))]
    documents = [cleaned for document in collection.documents if (cleaned := clean(document)).text]
    rows.append(_row("clean", documents, len(collection.documents) - len(documents), note="empty ones dropped"))
    distinct = dedup.drop_exact(documents)
    rows.append(_row("exact duplicates", distinct, len(documents) - len(distinct)))
    kept, duplicates = dedup.drop_near(distinct, settings.near_duplicate)
    note = f"estimated Jaccard similarity of {settings.near_duplicate:g} or more"
    rows.append(_row("near duplicates", kept, len(duplicates), note=note))
    _require_enough(settings.source, kept, "once duplicates are gone")
    parts, how = split(kept, settings.validation, settings.test, settings.seed)
    files = {f"{name}.bin": SEPARATOR.join(parts[name]) for name in SPLITS}
    for name in SPLITS:
        if not parts[name]:
            raise ValueError(f"no text fell to {name} with seed {settings.seed}: choose another seed or more text.")
        pieces = [Document(name, text) for text in parts[name]]
        rows.append(_row(name, pieces, 0, sha256(files[f"{name}.bin"]).hexdigest(), how))
    return Result(rows=rows, files=files | {"near_duplicates.csv": _table(duplicates)})


def load(record: Record) -> dict[str, Tokens]:
    """The splits of a prepared corpus, verified and mapped read-only: "train", "validation", "test" -> (L,) uint8."""
    return {name: np.memmap(record.path(f"{name}.bin"), dtype=np.uint8, mode="r") for name in SPLITS}


def clean(document: Document) -> Document:
    """Remove control characters, white space at line ends, and empty lines around the text, which then ends in LF.

    Nothing else is changed: a model of bytes reads letters as their author wrote them, so Unicode stays as it is, and
    indentation and blank lines within the text are part of it.
    """
    text = document.text.translate(None, _CONTROL)
    lines = [line.rstrip(b" \t") for line in text.split(b"\n")]
    text = b"\n".join(lines).strip(b"\n")
    return Document(document.name, text + b"\n" if text else b"")


def difference(settings: CorpusSettings) -> str | None:
    """Say in a sentence how this machine's installed corpus differs from the reference; None if it does not.

    None too for any other source, which has no reference. `settings` come from `identify`.
    """
    if settings.source != "installed" or settings.content == EXPECTED_SHA256:
        return None
    versions = sources.installed_versions()
    others = [
        f"{name} {versions[name]} for {want}" for name, want in EXPECTED_VERSIONS.items() if versions[name] != want
    ]
    why = f"it has {', '.join(others)}" if others else "the versions are the same, but files of these packages differ"
    return (
        f"The corpus on this machine is not the reference corpus, so losses will differ a little: {why} "
        f"(sha256 {settings.content[:12]}, not {EXPECTED_SHA256[:12]})."
    )


def _digest(documents: list[Document]) -> str:
    digest = sha256()
    for _, text in documents:
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text)
    return digest.hexdigest()


def _row(stage: str, documents: list[Document], dropped: int, digest: str = "", note: str = "") -> dict[str, Any]:
    size = sum(len(text) for _, text in documents)
    return {
        "stage": stage,
        "documents": len(documents),
        "bytes": size,
        "dropped": dropped,
        "sha256": digest,
        "note": note,
    }


def _passed_over(collection: Collection) -> str:
    return f"passed over: {sources.describe(collection.skipped)}" if collection.skipped else ""


def _table(duplicates: list[dedup.Duplicate]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(dedup.Duplicate._fields)
    writer.writerows(duplicates)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _require_enough(source: str, documents: list[Document], when: str) -> None:
    size = sum(len(text) for _, text in documents)
    if size < MINIMUM_BYTES:
        raise ValueError(
            f"the corpus {source!r} holds {size:,} bytes of text {when}: at least {MINIMUM_BYTES:,} are needed."
        )
