"""Exact and near duplicates: text that is there twice is learned twice, and leaks from training into testing.

Whole documents are compared: what repeats within one, or is a small part of another, is not looked for.
"""

import zlib
from collections.abc import Iterator
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from kbitlib.data.sources import Document

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE = 5  # words
PERMUTATIONS = 128  # the estimate's standard error is sqrt(J (1 - J) / 128), .035 at J = .8
PIECE = 1 << 20  # bytes of a document whose words are in memory at once
CHUNK = 1024  # shingles hashed at once: their 512 KiB of permutations stay in the cache


class Duplicate(NamedTuple):
    """A document that was dropped, the earlier one that it repeats, and their estimated Jaccard similarity."""

    dropped: str
    kept: str
    jaccard: float


def drop_exact(documents: list[Document]) -> list[Document]:
    """Keep the first of all documents with the same text."""
    seen: dict[bytes, Document] = {}
    for document in documents:
        seen.setdefault(sha256(document.text).digest(), document)
    return list(seen.values())


def drop_near(documents: list[Document], threshold: float) -> tuple[list[Document], list[Duplicate]]:
    """Drop each document whose Jaccard similarity to one kept before it is estimated to be `threshold` or more.

    Similarity is that of the sets of five-word shingles, white space left out, estimated by MinHash with 128
    permutations (Broder 1997, "On the resemblance and containment of documents"). Candidates come from
    locality-sensitive hashing with bands that rather propose too many: each is then confirmed by its estimate.
    """
    from datasketch import MinHash, MinHashLSH  # takes most of a second, which `identify` need not wait for

    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(0.1, 0.9))
    empty = MinHash(num_perm=PERMUTATIONS, hashfunc=int)
    signatures: dict[int, MinHash] = {}
    kept: list[Document] = []
    dropped: list[Duplicate] = []
    for document in documents:
        signature = _signature(document.text, empty)
        nearest = max(
            ((signature.jaccard(signatures[i]), -i) for i in index.query(signature)),
            default=(0.0, 0),
        )
        if nearest[0] >= threshold:
            dropped.append(Duplicate(document.name, kept[-nearest[1]].name, nearest[0]))
            continue
        index.insert(len(kept), signature)
        signatures[len(kept)] = signature
        kept.append(document)
    return kept, dropped


def _signature(text: bytes, empty: "MinHash") -> "MinHash":
    signature = empty.copy()
    for hashes in shingles(text):
        for start in range(0, len(hashes), CHUNK):
            signature.update_batch(hashes[start : start + CHUNK].tolist())
    return signature


def shingles(text: bytes) -> Iterator[npt.NDArray[np.uint32]]:
    """Hash every run of five words, or all words where there are fewer, a MiB of text at a time.

    A word's hash is its CRC-32, which is the same on every machine; a shingle's is a polynomial in those of its words.
    The few shingles across the border of two pieces are left out.
    """
    for start in range(0, len(text), PIECE):
        words = text[start : start + PIECE].split()
        hashes = np.fromiter(map(zlib.crc32, words), dtype=np.uint32, count=len(words))
        width = min(SHINGLE, len(words))
        count = len(words) - width + 1 if width else 0
        shingle = np.zeros(count, dtype=np.uint32)
        for offset in range(width):
            shingle = shingle * np.uint32(0x9E3779B1) + hashes[offset : offset + count]
        yield shingle
