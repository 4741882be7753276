"""Sidecar tables under DATASET/srpo: parquet files, written atomically, whose metadata names recipe and parent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from srpo_robot.errors import StaleTable
from srpo_robot.files import write_whole

_KEY = b"srpo"


@dataclass(frozen=True, eq=False)
class Table:
    """A table.

    Attributes:
        columns: arrays (n,) by column name.
        metadata: inputs of the computation, and a hash of the content.
    """

    columns: dict[str, np.ndarray]
    metadata: dict[str, Any]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]


def write_table(
    path: Path, columns: Mapping[str, np.ndarray], metadata: Mapping[str, Any], foreign: Mapping[str, str] | None = None
) -> Table:
    """Writes `columns` (equal lengths) atomically: a reader sees the old table or the new one, never half of one.

    Adds a `content` hash of the columns to the metadata. A child table names its parent by this hash.

    Args:
        foreign: further keys of the file's schema, for other programs that read the file.
    """
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    stamped = {**metadata, "content": _content_hash(columns)}
    schema = {**(foreign or {}), _KEY: json.dumps(stamped, sort_keys=True).encode()}
    table = table.replace_schema_metadata(schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, partial(pq.write_table, table))
    return Table(dict(columns), stamped)


def _content_hash(columns: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(columns):
        values = columns[name]
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(json.dumps(values.tolist()).encode() if values.dtype == object else values.tobytes())
    return digest.hexdigest()[:16]


def read_table(path: Path, *, refresh: str, **expected: Any) -> Table:
    """Reads a table and checks that its metadata equals `expected`.

    Args:
        path: the parquet file.
        refresh: command that recomputes the table, for the error message.
        expected: required metadata values, for example `dataset="1f..."`.

    Raises:
        StaleTable: the table is absent or unreadable, or was computed from other inputs.
    """
    if not path.is_file():
        raise StaleTable(f"{path} does not exist; run: {refresh}")
    try:
        table = pq.read_table(path)
        metadata = json.loads((table.schema.metadata or {})[_KEY])
    except (pa.ArrowException, OSError, KeyError, json.JSONDecodeError):
        raise StaleTable(f"{path} is not a table of srpo-robot; run: {refresh}") from None
    for name, value in expected.items():
        if metadata.get(name) != value:
            raise StaleTable(f"{path} was made from another state of its {name}; run: {refresh}")
    columns = {name: table[name].to_numpy() for name in table.column_names}
    return Table(columns, metadata)
