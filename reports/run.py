"""One finished run, read from its folder and checked before anything is said about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
import pandas as pd
import pydantic

from reference_impl.telemetry import (
    CACHE_RESULTS,
    OUTCOMES,
    RequestRecord,
    StationSample,
    SystemEvent,
)
from reference_impl.telemetry.run_folder import (
    EVENTS_FILE,
    REQUESTS_FILE,
    STATIONS_FILE,
    read_events,
    read_requests,
    read_stations,
)
from reports.errors import ReportError
from reports.metrics import derive
from reports.stations import with_host
from simulation.scenario.errors import ScenarioError
from simulation.scenario.manifest import MANIFEST_NAME, Manifest
from simulation.scenario.schema import SLO

__all__ = ["Run", "load_run"]

# The format of run folders that this version reads; a manifest without `format_version` is of format 1.
FORMAT_VERSION: Final = 1


class _Format(msgspec.Struct):
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Run:
    """A run in memory. `requests` is the derived frame (`reports.metrics.derive`), `stations` as recorded.

    `batches` is the same of the requests of message batches, which are not among `requests`: nobody waits for them.
    """

    folder: Path
    manifest: Manifest
    requests: pd.DataFrame
    batches: pd.DataFrame
    stations: pd.DataFrame
    events: tuple[SystemEvent, ...]

    @property
    def world(self) -> str:
        return self.manifest.world

    @property
    def complete(self) -> bool:
        return self.manifest.complete

    @property
    def scenario(self) -> Mapping[str, Any]:
        return self.manifest.scenario

    @property
    def name(self) -> str:
        return str(self.scenario.get("name") or self.folder.name)

    @cached_property
    def worked_on(self) -> pd.DataFrame:
        """`requests` and `batches`: all that the stations had to do with."""
        return pd.concat([self.requests, self.batches]) if len(self.batches) else self.requests

    @cached_property
    def ended(self) -> pd.DataFrame:
        """`requests` with an outcome: where the run was cut short, those in flight then neither failed nor were answered."""
        return self.requests if self.complete else self.requests[self.requests["finished"]]

    @cached_property
    def inside_seen(self) -> bool:
        """Whether any hop or station recorded anything: of a foreign target, only the client's view is known."""
        rows = self.worked_on
        traced = rows["attempts"].gt(0) | rows["cache"].ne("off") | rows["instance"].ne("")
        return len(self.stations) > 0 or bool(traced.any())

    @cached_property
    def servers(self) -> pd.DataFrame:
        """The stations that serve, with the host's CPU as one of them; the fleet, a count, left out."""
        deployment = self.scenario.get("deployment")
        cores = deployment.get("cores") if isinstance(deployment, Mapping) else None
        serving = self.stations[self.stations["kind"] != "fleet"]
        return with_host(serving, cores if isinstance(cores, int) else None)

    @cached_property
    def slos(self) -> tuple[SLO, ...]:
        """The scenario's promises; ReportError if the manifest holds one that cannot be understood."""
        try:
            return tuple(SLO.model_validate(slo) for slo in self.scenario.get("slos") or ())
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            raise ReportError(
                f"{self.folder / MANIFEST_NAME}: scenario.slos: {first['msg']} (found {first['input']!r})"
            ) from error


def load_run(folder: Path) -> Run:
    """Read a run folder.

    Raises ReportError, in one line: no such folder, not a run, a table missing, corrupt, without a column, or written
    by a newer version.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder}: no such folder; give the folder of a finished run")
    manifest = _manifest(folder)
    requests = _table(folder / REQUESTS_FILE, lambda: read_requests(folder), RequestRecord)
    _known_values(folder / REQUESTS_FILE, requests)
    stations = _table(folder / STATIONS_FILE, lambda: read_stations(folder), StationSample)
    try:
        events = tuple(read_events(folder))
    except (OSError, msgspec.MsgspecError) as error:
        raise ReportError(f"{folder / EVENTS_FILE}: cannot be read: {_one_line(error)}") from error
    derived = derive(requests)
    in_batch = derived["kind"] == "batch"
    run = Run(
        folder,
        manifest,
        derived[~in_batch].reset_index(drop=True),
        derived[in_batch].reset_index(drop=True),
        stations,
        events,
    )
    _ = run.slos  # refuse here, not in the middle of a report
    return run


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    try:
        version = msgspec.json.decode(path.read_bytes(), type=_Format).format_version
    except (OSError, msgspec.MsgspecError):
        version = FORMAT_VERSION  # whatever is wrong is told by the reader below
    if version > FORMAT_VERSION:
        raise ReportError(
            f"{path}: run format {version} is newer than this version reads ({FORMAT_VERSION}); update twinload"
        )
    try:
        return Manifest.read(folder)
    except (ScenarioError, OSError) as error:
        raise ReportError(_one_line(error)) from error


def _table(path: Path, read: Callable[[], pd.DataFrame], row: type[msgspec.Struct]) -> pd.DataFrame:
    if not path.is_file():
        partial = path.with_name(path.name + ".partial")
        hint = "the run was killed while it wrote" if partial.exists() else "the run did not end"
        raise ReportError(f"{path}: missing ({hint}); run it again")
    import pyarrow as pa

    try:
        frame = read()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ReportError(f"{path}: not a readable Parquet file: {_one_line(error)}") from error
    missing = [f.name for f in msgspec.structs.fields(row) if f.name not in frame.columns]
    if missing:
        raise ReportError(
            f"{path}: lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            "it was written by another version of twinload, run it again"
        )
    return frame


def _known_values(path: Path, requests: pd.DataFrame) -> None:
    for column, known in (("outcome", OUTCOMES), ("cache", CACHE_RESULTS)):
        strange = sorted(set(requests[column].unique()) - set(known))
        if strange:
            raise ReportError(
                f"{path}: {column} {strange[0]!r} is unknown to this version (known: {', '.join(known)}); update twinload"
            )
    twice = requests["request_id"].duplicated()
    if twice.any():
        request = int(requests.loc[twice, "request_id"].iloc[0])
        raise ReportError(
            f"{path}: request {request} has more than one row; the run was joined wrongly, run it again"
        )


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
