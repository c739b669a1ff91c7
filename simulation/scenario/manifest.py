"""The manifest of a run: what was run, on what, and whether it ended as planned. `manifest.json` in the run's folder.

And whether a folder is free for a run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

from reference_impl.telemetry.run_folder import (
    EVENTS_FILE,
    REQUESTS_FILE,
    STATIONS_FILE,
    partial_of,
)
from simulation.scenario.errors import ScenarioError

__all__ = ["MANIFEST_NAME", "RAW", "WORKLOAD_FILE", "Manifest", "check_unused"]

MANIFEST_NAME: Final = "manifest.json"
WORKLOAD_FILE: Final = "workload.npz"
# What the processes of a live run wrote, each for itself.
RAW: Final = "raw"


def check_unused(folder: Path) -> None:
    """Raise FileExistsError where `folder` holds anything of a run, finished or killed, or a file under such a name."""
    tables = (Path(REQUESTS_FILE), Path(STATIONS_FILE))
    names = (MANIFEST_NAME, REQUESTS_FILE, STATIONS_FILE, EVENTS_FILE, WORKLOAD_FILE, RAW)
    for name in (*names, *(partial_of(table).name for table in tables)):
        if (folder / name).exists():
            raise FileExistsError(f"{folder} already holds a run ({name}); name another folder")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a run's records mean.

    Attributes:
        world: `live` or `virtual`.
        scenario: its whole description, defaults written out; scenario_sha256, workload_sha256: their digests.
        seed: of every draw. With the commit and the scenario's hash it repeats the run.
        commit: of the code, "" where there is no repository. versions: of Python and the libraries that matter.
        machine: cores, CPU, memory, operating system.
        complete: False while the run goes on, and for ever if it was broken off.
        started_at: wall clock, ISO 8601 in UTC. t0_monotonic_s: the monotonic clock at the run's time 0 (live only).
        notes: for people. validity: named checks of the run (for example the injector's lag) with their figures.
    """

    world: Literal["live", "virtual"]
    scenario: dict[str, object]
    scenario_sha256: str
    workload_sha256: str
    seed: int
    commit: str = ""
    versions: Mapping[str, str] = {}
    machine: Mapping[str, str | int | float] = {}
    complete: bool = False
    started_at: str = ""
    t0_monotonic_s: float | None = None
    notes: tuple[str, ...] = ()
    validity: Mapping[str, float | int | str | bool | None] = {}

    def write(self, folder: str | Path) -> Path:
        """Write the file whole or not at all; returns its path."""
        path = Path(folder) / MANIFEST_NAME
        partial = path.with_suffix(".json.partial")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")
        os.replace(partial, path)  # noqa: PTH105 - the call that is atomic
        return path

    @classmethod
    def read(cls, folder: str | Path) -> Manifest:
        """Read the manifest of a run folder; raises ScenarioError where there is none, or not a valid one."""
        path = Path(folder) / MANIFEST_NAME
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            raise ScenarioError(f"{folder}: not a run folder: it has no {MANIFEST_NAME}") from None
        except msgspec.MsgspecError as error:
            raise ScenarioError(f"{path}: not a manifest: {error}") from None
