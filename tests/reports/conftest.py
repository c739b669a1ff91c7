"""Run folders that several tests read; each is written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.document import ReportPaths, build_report
from reports.run import Run, load_run
from tests.reports.synthetic import Truth, write_run

# One instance cannot carry the load (8 slots for 8 busy): the second comes after a minute of queueing.
QUEUEING = Truth(steps=((0.0, 1), (60.0, 2)), failing=0.005)
TWIN = Truth(steps=((0.0, 1), (60.0, 2)), failing=0.005, world="live", lag_s=0.002, noise=0.05)
ROOMY = Truth(steps=((0.0, 4),))


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: `queueing` (virtual), `live` (its noisy twin) and `roomy` (nothing limits)."""
    base = tmp_path_factory.mktemp("runs")
    for name, truth in (("queueing", QUEUEING), ("live", TWIN), ("roomy", ROOMY)):
        write_run(base / name, truth)
    return base


@pytest.fixture(scope="session")
def queueing(runs: Path) -> Run:
    return load_run(runs / "queueing")


@pytest.fixture(scope="session")
def live(runs: Path) -> Run:
    return load_run(runs / "live")


@pytest.fixture(scope="session")
def roomy(runs: Path) -> Run:
    return load_run(runs / "roomy")


@pytest.fixture(scope="session")
def single(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> ReportPaths:
    """The report of one run."""
    return build_report([runs / "queueing"], tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="session")
def twins(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> ReportPaths:
    """The report of a live run and its twin, named in the other order."""
    return build_report([runs / "queueing", runs / "live"], tmp_path_factory.mktemp("twins"))
