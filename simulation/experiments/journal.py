"""Results on disk as they come: one JSON line a finished job, keyed by the job.

What is finished stays finished: a crash, Ctrl-C or a lost worker costs only what was running. The last line may be torn
by a crash; it is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, TextIO

from reference_impl.output_paths import check_output_folder
from simulation.experiments.errors import ExperimentError
from simulation.experiments.measuring import Row
from simulation.scenario.manifest import check_unused

__all__ = ["IDENTITY_FILE", "RESULTS_FILE", "Journal"]

RESULTS_FILE: Final = "results.jsonl"
IDENTITY_FILE: Final = "experiment.json"

# What decides on the tables that are written beside the results.
_QUESTION: Final = {
    "experiment": "another experiment",
    "scenario": "another scenario",
    "asked": "other points or options",
}


class Journal:
    """The results in `folder`; a context manager.

    Args:
        folder: made if need be.
        identity: what was asked, and by which code; written beside the results.
        resume: go on with what is there.

    Raises ExperimentError where results are there and `resume` is not set, or other code made them, or another question;
    OSError where nothing can be written, FileExistsError where a run is.
    """

    def __init__(self, folder: Path, identity: Mapping[str, object], *, resume: bool) -> None:
        self._path = folder / RESULTS_FILE
        self._known: dict[str, Row] = {}
        if self._path.exists():
            if not resume:
                raise ExperimentError(
                    f"{folder}: holds results already; --resume goes on with them, --out chooses another folder"
                )
            self._check_identity(folder / IDENTITY_FILE, identity)
            self._read()
        else:
            check_unused(folder)
        check_output_folder(folder)
        self._identity = json.dumps(dict(identity), indent=2, sort_keys=True)
        self._file: TextIO | None = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: str) -> Row | None:
        """The row of a finished job."""
        return self._known.get(key)

    def record(self, key: str, row: Row) -> None:
        """Keep a finished job's row, on disk when this returns."""
        self._known[key] = row
        file = self._file
        if file is None:
            # Not before there is something to keep: what is refused leaves no folder behind.
            folder = self._path.parent
            folder.mkdir(parents=True, exist_ok=True)
            (folder / IDENTITY_FILE).write_text(self._identity + "\n", "utf-8")
            file = self._file = self._path.open("a", encoding="utf-8")
        file.write(json.dumps({"key": key, "row": row}) + "\n")
        file.flush()
        os.fsync(file.fileno())

    def _check_identity(self, path: Path, identity: Mapping[str, object]) -> None:
        try:
            before = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ExperimentError(f"{path}: cannot be read: {error}; start afresh") from None
        for field in ("commit", "versions"):
            if before.get(field) != identity.get(field):
                raise ExperimentError(
                    f"{path}: the results there were made with another {field}; start afresh with another --out"
                )
        for field, other in _QUESTION.items():
            if before.get(field) != identity.get(field):
                raise ExperimentError(
                    f"{path}: the results there are of {other}; --out chooses another folder"
                )

    def _read(self) -> None:
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = entry["row"]
            except (ValueError, KeyError, TypeError):
                raise ExperimentError(
                    f"{self._path}: line {number} is damaged; start afresh"
                ) from None
        if whole < len(data):
            with self._path.open("r+b") as file:
                file.truncate(whole)
