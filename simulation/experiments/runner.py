"""Runs jobs on workers: hands out what is missing, keeps what is finished, and does again what a dead worker held."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from types import TracebackType
from typing import Final

import msgspec

from simulation.experiments.errors import WorkersLost
from simulation.experiments.job import Job, run_job
from simulation.experiments.journal import Journal
from simulation.experiments.measuring import Row
from simulation.experiments.workers import InlineWorkers, Workers

__all__ = ["JobRunner", "Progress"]

# A job that was running when a worker died may be why: so often it is tried again.
MAX_LOSSES: Final = 3


class Progress(msgspec.Struct, frozen=True):
    """`done` of `total` jobs asked for so far have rows; `found` of these were there from the start."""

    done: int
    total: int
    found: int


class JobRunner:
    """Runs jobs, each at most once; a context manager that ends the workers.

    Args:
        workers: where. By default in this process.
        journal: keeps every row as it comes, and knows those of before.
        wall_clock: for the jobs' wall-clock limits; picklable, for example time.monotonic.
        on_progress: called after every change, in the caller's thread.
        function: what runs a job.
    """

    def __init__(
        self,
        workers: Workers | None = None,
        journal: Journal | None = None,
        *,
        wall_clock: Callable[[], float] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        function: Callable[[Job, Callable[[], float] | None], Row] = run_job,
    ) -> None:
        self._workers = workers or InlineWorkers()
        self._journal = journal
        self._wall_clock = wall_clock
        self._on_progress = on_progress
        self._function = function
        self._executor: Executor | None = None
        self._rows: dict[str, Row] = {}
        self._total = 0
        self._found = 0

    def __enter__(self) -> JobRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def run(self, jobs: Sequence[Job]) -> list[Row]:
        """The rows of `jobs`, in their order.

        Raises WorkersLost when workers die again and again, and what a job raises. Whatever ends it, rows that are
        finished are in the journal.
        """
        keys = [job.key for job in jobs]
        missing = {k: job for k, job in zip(keys, jobs, strict=True) if k not in self._rows}
        self._total += len(missing)
        for key in list(missing):
            row = self._journal.find(key) if self._journal is not None else None
            if row is not None:
                self._rows[key] = row
                self._found += 1
                del missing[key]
        self._report()
        self._run_missing(missing)
        return [self._rows[key] for key in keys]

    def _run_missing(self, jobs: dict[str, Job]) -> None:
        todo = deque(jobs)
        running: dict[Future[Row], str] = {}
        losses: Counter[str] = Counter()
        try:
            while todo or running:
                self._hand_out(jobs, todo, running)
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in [f for f in running if f in done]:
                    key = running.pop(future)
                    try:
                        row = future.result()
                    except self._workers.lost:
                        losses[key] += 1
                        if losses[key] > MAX_LOSSES:
                            raise _gave_up(jobs[key]) from None
                        todo.appendleft(key)
                    else:
                        self._keep(key, row)
        except BaseException:
            for future, key in running.items():
                if future.done() and not future.cancelled() and future.exception() is None:
                    self._keep(key, future.result())
            self._abandon()
            raise

    def _hand_out(
        self, jobs: dict[str, Job], todo: deque[str], running: dict[Future[Row], str]
    ) -> None:
        if self._executor is None:
            self._executor = self._workers.open()
        while todo and len(running) < self._workers.in_flight:
            job = jobs[todo[0]]
            try:
                future = self._executor.submit(self._function, job, self._wall_clock)
            except self._workers.lost:  # broken: what it held comes back as lost
                self._abandon()
                self._executor = self._workers.open()
                continue
            running[future] = todo.popleft()

    def _keep(self, key: str, row: Row) -> None:
        self._rows[key] = row
        if self._journal is not None:
            self._journal.record(key, row)
        self._report()

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(len(self._rows), self._total, self._found))

    def _abandon(self) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            self._workers.abandon(executor)

    def _close(self) -> None:
        """All jobs are done, or `_abandon` has been called."""
        executor, self._executor = self._executor, None
        if executor is not None:
            self._workers.close(executor)


def _gave_up(job: Job) -> WorkersLost:
    scenario = msgspec.json.decode(job.scenario_json)
    return WorkersLost(
        f"{MAX_LOSSES + 1} workers died while they simulated {scenario['name']} with seed {scenario['seed']}: "
        "is there enough memory? Finished results are kept"
    )
