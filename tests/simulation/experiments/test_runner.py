"""Jobs on workers: the same rows however they are run, and nothing finished is lost."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest

from simulation.experiments.errors import WorkersLost
from simulation.experiments.job import Job, make_job, run_job
from simulation.experiments.journal import RESULTS_FILE, Journal
from simulation.experiments.measuring import Row
from simulation.experiments.runner import JobRunner, Progress
from simulation.experiments.sweep import sweep
from simulation.experiments.workers import ClusterWorkers, InlineWorkers, LocalWorkers
from simulation.scenario.errors import ScenarioError
from tests.simulation.experiments import tools

ROOT = Path(__file__).resolve().parents[3]


def jobs(count: int) -> list[Job]:
    return [make_job(tools.small(), seed=seed) for seed in range(1, count + 1)]


def group_of(group: int) -> list[psutil.Process]:
    """The processes of a group that are not dead; the group's pid may belong to none of them any more."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_one_and_two_workers_give_equal_frames() -> None:
    frames = []
    for workers in (InlineWorkers(), LocalWorkers(2)):
        with JobRunner(workers) as runner:
            frames.append(sweep(tools.small(), tools.rates(8), runner, replications=2))
    pd.testing.assert_frame_equal(frames[0], frames[1], check_exact=True)


def test_rows_come_in_the_order_of_their_jobs_and_equal_jobs_run_once() -> None:
    calls: list[str] = []

    def count(job: Job, clock: tools.Clock) -> Row:
        calls.append(job.key)
        return run_job(job, clock)

    first, second = jobs(2)
    with JobRunner(function=count) as runner:
        rows = runner.run([second, first, second])
        assert runner.run([first]) == [rows[1]]
    assert rows[0] == rows[2] != rows[1]
    assert calls == [second.key, first.key]


def test_a_worker_that_is_killed_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(tools.MARKER, str(tmp_path / "died"))
    with JobRunner(LocalWorkers(2), function=tools.die_once) as runner:
        rows = runner.run(jobs(6))
    assert (tmp_path / "died").exists()
    assert rows == [run_job(job) for job in jobs(6)]


def test_a_job_that_kills_every_worker_is_given_up_and_what_is_finished_is_kept(
    tmp_path: Path,
) -> None:
    with (
        Journal(tmp_path, {}, resume=False) as journal,
        pytest.raises(WorkersLost, match="4 workers died while they simulated mm1 with seed"),
        JobRunner(LocalWorkers(1), journal, function=tools.die_always) as runner,
    ):
        runner.run(jobs(3))
    kept = Journal(tmp_path, {}, resume=True)
    assert kept.find(jobs(1)[0].key) == run_job(jobs(1)[0])
    assert multiprocessing.active_children() == []


def test_an_error_of_a_job_ends_the_experiment_and_keeps_the_others(tmp_path: Path) -> None:
    impossible = make_job(
        tools.small(workload__arrivals={"kind": "closed", "users": 1_000_000, "think_s": 0.001})
    )
    with (
        Journal(tmp_path, {}, resume=False) as journal,
        pytest.raises(ScenarioError, match="could send more than"),
        JobRunner(journal=journal) as runner,
    ):
        runner.run([*jobs(2), impossible])
    assert len(Journal(tmp_path, {}, resume=True)) == 2


def test_progress_counts_finished_and_found_runs(tmp_path: Path) -> None:
    with Journal(tmp_path, {}, resume=False) as journal, JobRunner(journal=journal) as runner:
        runner.run(jobs(2))
    seen: list[Progress] = []
    with (
        Journal(tmp_path, {}, resume=True) as journal,
        JobRunner(journal=journal, on_progress=seen.append) as runner,
    ):
        runner.run(jobs(3))
    assert seen == [Progress(2, 3, 2), Progress(3, 3, 2)]


def test_ctrl_c_keeps_what_is_done_and_resume_goes_on_to_the_same_frame(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    command = [sys.executable, "-m", "tests.simulation.experiments.tools", str(folder)]
    # A group of its own gets the signal as a terminal's would: parent and workers alike.
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as interrupted:
        assert interrupted.stdout is not None
        for line in interrupted.stdout:
            if int(line.split()[0]) == 5:
                break
        os.killpg(interrupted.pid, signal.SIGINT)
        _, errors = interrupted.communicate(timeout=30)
    assert interrupted.returncode != 0
    assert errors.strip().splitlines()[-1] == "KeyboardInterrupt"
    finished = len((folder / RESULTS_FILE).read_text().splitlines())
    assert 5 <= finished <= 9  # with what the workers held
    _, alive = psutil.wait_procs(group_of(interrupted.pid), timeout=10)
    assert alive == []

    resumed = subprocess.run(
        [*command, "resume"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert resumed.stdout.splitlines()[0] == f"{finished} {finished}"
    with JobRunner() as runner:
        serial = sweep(tools.small(horizon_s=500), tools.rates(40), runner)
    pd.testing.assert_frame_equal(
        pd.read_parquet(folder / "frame.parquet"), serial, check_exact=True
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalWorkers(0), "at least 1"),
        (lambda: ClusterWorkers("127.0.0.1:1", connect_timeout_s=0.5).open(), "cannot connect"),
    ],
)
def test_a_place_that_cannot_work_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
