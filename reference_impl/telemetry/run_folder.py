"""A run on disk: `requests.parquet`, `stations.parquet` and `events.jsonl` in one folder.

Rows are streamed out in batches, so memory does not grow with the length of a run. A table is written under a temporary
name and takes its own on `close()`: a table that exists is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import msgspec

from reference_impl.telemetry.records import RequestRecord, StationSample, SystemEvent

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "EVENTS_FILE",
    "REQUESTS_FILE",
    "STATIONS_FILE",
    "RunWriter",
    "partial_of",
    "read_events",
    "read_requests",
    "read_stations",
]

REQUESTS_FILE: Final = "requests.parquet"
STATIONS_FILE: Final = "stations.parquet"
EVENTS_FILE: Final = "events.jsonl"

# Rows a batch: large enough that the columns compress, small enough to stay in the processor's cache.
BATCH_ROWS: Final = 8192


class RunWriter:
    """Writes the tables of one run. Use as a context manager; `close()` keeps whatever was recorded.

    Raises FileExistsError if the folder already holds a run, or what is left of one.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tables = (folder / REQUESTS_FILE, folder / STATIONS_FILE)
        for path in (*tables, *map(partial_of, tables), folder / EVENTS_FILE):
            if path.exists():
                raise FileExistsError(
                    f"{folder} already holds a run ({path.name}); name another folder"
                )
        self.folder = folder
        self._events: IO[bytes] = (folder / EVENTS_FILE).open("xb")
        self._requests = _Table(tables[0], RequestRecord)
        self._stations = _Table(tables[1], StationSample)
        self.request = self._requests.append
        self.station = self._stations.append

    def event(self, event: SystemEvent) -> None:
        """Append one event; written at once, since events are few and explain a run that was cut short."""
        self._events.write(msgspec.json.encode(event) + b"\n")
        self._events.flush()

    @property
    def requests_written(self) -> int:
        return self._requests.rows

    def close(self) -> None:
        self._requests.close()
        self._stations.close()
        self._events.close()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def partial_of(table: Path) -> Path:
    """Where a table grows until it is whole."""
    return table.with_name(table.name + ".partial")


class _Table:
    """A Parquet file that grows by batches of one struct type."""

    def __init__(self, path: Path, row_type: type[msgspec.Struct]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._pa = pa
        self._path = path
        self._partial = partial_of(path)
        self._schema = pa.schema(
            [(f.name, _arrow_type(pa, f)) for f in msgspec.structs.fields(row_type)]
        )
        # Text repeats, times do not: a dictionary of them would cost time and make the file larger.
        text = [field.name for field in self._schema if field.type == pa.string()]
        self._writer = pq.ParquetWriter(
            self._partial, self._schema, compression="zstd", use_dictionary=text
        )
        self._batch: list[msgspec.Struct] = []
        self.rows = 0

    def append(self, row: msgspec.Struct) -> None:
        batch = self._batch
        batch.append(row)
        if len(batch) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._batch:
            return
        pa = self._pa
        columns = zip(*map(msgspec.structs.astuple, self._batch), strict=True)
        arrays = [
            pa.array(column, type=field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        self.rows += len(self._batch)
        self._batch = []

    def close(self) -> None:
        self._flush()
        self._writer.close()
        self._partial.replace(self._path)


def _arrow_type(pa: Any, field: msgspec.structs.FieldInfo) -> Any:
    """Float, int and text columns; literals are text."""
    if field.type is float:
        return pa.float64()
    if field.type is int:
        return pa.int64()
    return pa.string()


def read_requests(folder: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """`requests.parquet` as a frame, one row a request (columns: `RequestRecord`)."""
    import pandas as pd

    return pd.read_parquet(folder / REQUESTS_FILE, columns=list(columns) if columns else None)


def read_stations(folder: Path) -> pd.DataFrame:
    """`stations.parquet` as a frame, one row a station and interval (columns: `StationSample`)."""
    import pandas as pd

    return pd.read_parquet(folder / STATIONS_FILE)


def read_events(folder: Path) -> list[SystemEvent]:
    """The events of a run in the order in which they happened; none if the file does not exist."""
    path = folder / EVENTS_FILE
    if not path.exists():
        return []
    decoder = msgspec.json.Decoder(SystemEvent)
    return [decoder.decode(line) for line in path.read_bytes().splitlines() if line.strip()]
