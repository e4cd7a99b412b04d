"""A record on disk: one folder that holds `record.json` and the artifacts it vouches for."""

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kbitlib.runs.files import sha256, sync_folder, write_file

ARTIFACT = re.compile(r"(?!record\.json$)\w[\w.-]*")


class StoreError(RuntimeError):
    """The store cannot be written or read."""


class Damaged(Exception):
    """What lies on disk is not what was written; the text says how."""


@dataclass(frozen=True)
class Result:
    """What a step returns: tidy rows, and artifacts by file name, e.g. `{"weights.safetensors": b"..."}`."""

    rows: list[dict[str, Any]]
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """What the store gives back.

    `seconds` is the time of the step itself, without that of the steps it rests on; `files` holds the sha256 of each
    artifact by its name.
    """

    key: str
    step: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    seconds: float
    provenance: dict[str, Any]
    folder: Path
    files: dict[str, str]

    def path(self, name: str) -> Path:
        """The file of an artifact, verified. Raises ValueError for a name that is not there, StoreError if damaged."""
        if name not in self.files:
            raise ValueError(f"{self.step} has no artifact {name!r}, only {sorted(self.files)}.")
        try:
            self.verify(name)
        except Damaged as damage:
            raise StoreError(
                f"The record {self.step}/{self.key} is damaged ({damage}); run again to make it anew."
            ) from None
        return self.folder / name

    def read(self, name: str) -> bytes:
        """The bytes of an artifact, verified. Raises as `path` does."""
        return self.path(name).read_bytes()

    def verify(self, name: str) -> None:
        """Raises Damaged unless the artifact is byte for byte what was written."""
        try:
            intact = sha256(self.folder / name) == self.files[name]
        except (FileNotFoundError, IsADirectoryError):
            raise Damaged(f"{name} is missing") from None
        if not intact:
            raise Damaged(f"{name} is not what was written")


def save(record: Record, files: dict[str, bytes]) -> None:
    """Write a record and its artifacts into its folder, down to the disk. Raises ValueError for a bad artifact name."""
    for name, data in files.items():
        if not ARTIFACT.fullmatch(name):
            raise ValueError(f"Artifact name {name!r} of {record.step}: letters, digits, '_', '-' and '.' are allowed.")
        write_file(record.folder / name, data)
    content = {
        "key": record.key,
        "step": record.step,
        "settings": record.settings,
        "rows": record.rows,
        "seconds": record.seconds,
        "provenance": record.provenance,
        "files": {name: {"sha256": digest, "bytes": len(files[name])} for name, digest in record.files.items()},
    }
    text = json.dumps({**content, "checksum": checksum(content)}, indent=1, allow_nan=False)
    write_file(record.folder / "record.json", text.encode())
    sync_folder(record.folder)


def load(folder: Path) -> Record:
    """Read a record, its artifacts' sizes checked, not yet their content. Raises Damaged."""
    try:
        content = json.loads((folder / "record.json").read_bytes())
        if content.pop("checksum") != checksum(content):
            raise Damaged("record.json is not what was written")
        files = content.pop("files")
        record = Record(folder=folder, files={name: file["sha256"] for name, file in files.items()}, **content)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise Damaged("record.json is missing") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Damaged("record.json is no record") from None
    if (record.step, record.key) != (folder.parent.name, folder.name):
        raise Damaged(f"record.json is that of {record.step}/{record.key}")
    for name, file in files.items():
        if not (folder / name).is_file():
            raise Damaged(f"{name} is missing")
        if (folder / name).stat().st_size != file["bytes"]:
            raise Damaged(f"{name} has {(folder / name).stat().st_size} bytes instead of {file['bytes']}")
    return record


def checksum(content: Any) -> str:
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def canonical(content: Any) -> str:
    """JSON that is the same text for the same content."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def plain(value: Any, name: str) -> Any:
    """The value as JSON holds it, numpy scalars converted; `name` is the column or setting it stands in.

    Raises ValueError for NaN, infinity and whatever JSON has no word for.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; a record holds finite numbers only (None for a value that is not there).")
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, name) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"{name} is a {type(value).__name__}; a record holds numbers, strings, lists and dictionaries only."
    )


def plain_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as JSON holds them. Raises ValueError, naming the column, for a value it cannot hold."""
    return [{column: plain(value, f"Column {column!r}") for column, value in row.items()} for row in rows]
