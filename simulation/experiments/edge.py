"""What only the edge of the program knows, handed to the commands as click's context object."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import click
import msgspec

from simulation.experiments.virtual_run import Provenance

__all__ = ["Edge", "ShowRun"]


class ShowRun(Protocol):
    """Tells people, or a script, of a finished run."""

    def __call__(self, folder: Path, *, as_json: bool) -> None: ...


def _name_run(folder: Path, *, as_json: bool) -> None:  # noqa: ARG001 - whoever knows reports tells more
    click.echo(folder)


def _run_folder(name: str, world: str) -> Path:
    return Path("runs") / f"{name}-{world}"


class Edge(msgspec.Struct, frozen=True):
    """`wall_clock`: for limits in real seconds (without it there are none), for example time.monotonic.

    `provenance`: called once an experiment; results of other code are not mixed with its own. `new_run_folder`: for a run of
    that scenario in that world (`live`, `virtual`). `show_run`: reads reports, which experiments do not know.
    """

    wall_clock: Callable[[], float] | None = None
    provenance: Callable[[], Provenance] = Provenance
    new_run_folder: Callable[[str, str], Path] = _run_folder
    show_run: ShowRun = _name_run
