"""A sweep on a Dask cluster of two worker processes, one of them killed in the middle."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from simulation.experiments.errors import ExperimentError
from simulation.experiments.runner import JobRunner, Progress
from simulation.experiments.sweep import sweep
from simulation.experiments.workers import ClusterWorkers
from tests.simulation.experiments import tools

distributed: Any = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as made:
        yield made


@pytest.mark.serial
@pytest.mark.filterwarnings("default")  # Dask's own, about a worker that dies
def test_a_killed_worker_of_a_cluster_changes_nothing_in_the_frame(cluster: Any) -> None:
    scenario, points = tools.small(horizon_s=3000), tools.rates(40)
    with JobRunner() as runner:
        serial = sweep(scenario, points, runner)
    killed: list[int] = []
    with distributed.Client(cluster) as client:
        before = client.run(os.getpid)

        def kill_one(progress: Progress) -> None:
            if progress.done == 10 and not killed:
                killed.append(next(iter(before.values())))
                os.kill(killed[0], signal.SIGKILL)

        workers = ClusterWorkers(cluster.scheduler_address)
        with JobRunner(workers, on_progress=kill_one) as runner:
            parallel = sweep(scenario, points, runner)
        after = client.run(os.getpid)
    assert killed
    assert killed[0] not in after.values()
    pd.testing.assert_frame_equal(parallel, serial, check_exact=True)


@pytest.mark.serial
@pytest.mark.filterwarnings("default")
def test_workers_without_twinload_are_refused(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FindNothing(distributed.WorkerPlugin):  # type: ignore[misc]
        def setup(self, worker: Any) -> None:
            raise ModuleNotFoundError("No module named 'twinload'")

    monkeypatch.setattr("simulation.experiments.workers._finding_plugin", FindNothing)
    with pytest.raises(ExperimentError, match="its workers cannot import twinload"):
        ClusterWorkers(cluster.scheduler_address).open()
