"""Where jobs run: in this process, in processes of this machine, or on a Dask cluster.

Each is a `concurrent.futures.Executor`, opened afresh when it broke.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from simulation.experiments.errors import ExperimentError

__all__ = ["ClusterWorkers", "InlineWorkers", "LocalWorkers", "Workers", "choose_workers"]

P = ParamSpec("P")
T = TypeVar("T")


class Workers(Protocol):
    """A place to run jobs."""

    @property
    def in_flight(self) -> int:
        """How many jobs to hand out at once: enough that nobody idles."""
        ...

    @property
    def lost(self) -> tuple[type[BaseException], ...]:
        """Errors that mean the worker is gone, and not that the job failed."""
        ...

    def open(self) -> Executor:
        """A fresh executor."""
        ...

    def close(self, executor: Executor) -> None:
        """End an executor that has nothing left to do."""
        ...

    def abandon(self, executor: Executor) -> None:
        """End the executor at once, running jobs included."""
        ...


def choose_workers(count: int, cluster: str | None = None) -> Workers:
    """A Dask cluster where an address is given; else so many processes, none of their own for one."""
    if cluster is not None:
        return ClusterWorkers(cluster)
    return InlineWorkers() if count == 1 else LocalWorkers(count)


class _InlineExecutor(Executor):
    """Runs each job when it is submitted."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - carried to whoever asks for the result
            future.set_exception(error)
        return future


class InlineWorkers:
    """This process, one job after the other."""

    in_flight = 1
    lost: tuple[type[BaseException], ...] = ()

    def open(self) -> Executor:
        return _InlineExecutor()

    def close(self, executor: Executor) -> None:
        executor.shutdown()

    def abandon(self, executor: Executor) -> None:
        executor.shutdown(wait=False)


# What asks this program to stop: from the keyboard, from a supervisor, with the terminal.
_STOP_SIGNALS: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


class _Pool(ProcessPoolExecutor):
    """Starts its processes, on `submit`, out of reach of what stops the program.

    A worker that is told to stop before it can listen, or whose parent leaves in the middle of starting it, would print a
    traceback.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        with _stop_signals_deferred():
            return super().submit(fn, *args, **kwargs)


@contextlib.contextmanager
def _stop_signals_deferred() -> Iterator[None]:
    """What stops the program comes after the block. Processes that are started in it have these signals blocked."""
    noted: list[int] = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handlers = {}
    # The mask is inherited, but is that of this thread alone: another one's takes the signal to the main thread's handler.
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    try:
        for number in handlers:
            signal.signal(number, lambda number, _frame: noted.append(number))
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if noted:
            signal.raise_signal(noted[0])


class LocalWorkers:
    """`count` processes of this machine, started afresh (spawn), so that they inherit no threads and no locks."""

    lost: tuple[type[BaseException], ...] = (BrokenExecutor,)

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"workers: must be at least 1, found {count}")
        self._count = count
        self._others: frozenset[int | None] = frozenset()

    @property
    def in_flight(self) -> int:
        return 2 * self._count

    def open(self) -> Executor:
        self._others = frozenset(child.pid for child in multiprocessing.active_children())
        return _Pool(
            self._count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
        )

    def close(self, executor: Executor) -> None:
        executor.shutdown()

    def abandon(self, executor: Executor) -> None:
        executor.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child.pid not in self._others:
                child.kill()  # one that is still starting hears nothing else


def _start_worker() -> None:
    """A worker leaves Ctrl-C and a closed terminal to its parent, and ends with it, however that ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


class ClusterWorkers:
    """The workers of the Dask scheduler at `address`. twinload must be installed where they run."""

    def __init__(self, address: str, connect_timeout_s: float = 10.0) -> None:
        try:
            import distributed
        except ImportError:
            raise ExperimentError(
                "--cluster needs Dask: install twinload with the extra 'experiments'"
            ) from None
        self._address = address
        self._client: Any = None
        connect: Any = distributed.Client  # untyped
        self._connect: Callable[[], Any] = lambda: connect(address, timeout=connect_timeout_s)
        self._cores = 1
        self.lost: tuple[type[BaseException], ...] = (
            BrokenExecutor,
            CancelledError,
            distributed.KilledWorker,
        )

    @property
    def in_flight(self) -> int:
        return 2 * self._cores

    def open(self) -> Executor:
        try:
            self._client = self._connect()
        except (OSError, ValueError) as error:
            raise ExperimentError(f"--cluster {self._address}: cannot connect: {error}") from None
        cores = sum(self._client.nthreads().values())
        if cores == 0:
            raise ExperimentError(f"--cluster {self._address}: the scheduler has no workers")
        self._cores = cores
        try:
            self._client.register_plugin(_finding_plugin(), name="twinload")
        except ImportError:
            self._client.close()
            raise ExperimentError(
                f"--cluster {self._address}: its workers cannot import twinload; install it where they run"
            ) from None
        # Results depend on the job alone; Dask may hand out a task again on its own as often as it likes.
        executor: Executor = self._client.get_executor(pure=False, retries=3)
        return executor

    def close(self, executor: Executor) -> None:
        self.abandon(executor)

    def abandon(self, executor: Executor) -> None:
        executor.shutdown(wait=False)
        if self._client is not None:
            self._client.close()


def _finding_plugin() -> Any:
    """Makes each worker, also one that comes later, find the packages: `import twinload` puts their folder on its path.

    A local class travels by value, so that it can be unpickled before they are found.
    """
    from distributed import WorkerPlugin

    class FindTwinload(WorkerPlugin):
        def setup(self, worker: Any) -> None:  # noqa: ARG002 - Dask's signature
            import importlib

            importlib.import_module("twinload")

    return FindTwinload()
