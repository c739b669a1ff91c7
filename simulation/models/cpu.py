"""The CPU of virtual processes: one event loop each, on a host whose cores they share.

A process is one FIFO server: its event loop runs one thing at a time. Work is booked when it is declared, so a job costs one
timer and no queue: it starts when the process is free and a core is, whichever is later. Per-chunk work of streams whose
chunks are not played one by one is a background load that stretches the booked work instead.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar, get_args

from reference_impl.compute import NO_WAIT, Step
from reference_impl.messages import BYTES_PER_KB, Chunk
from reference_impl.telemetry import StationSample
from simulation.kernel import running_loop
from simulation.scenario.schema import ProcessCpu

__all__ = ["Host", "VirtualCpu"]

P = ParamSpec("P")
T = TypeVar("T")

# Beyond this share of background work a process cannot keep up; the rest is played at the speed that is left.
MAX_BACKGROUND = 0.95


class Host:
    """Cores that several processes share; each knows until when it is taken."""

    def __init__(self, cores: int) -> None:
        self.free_at_s = [0.0] * cores


class VirtualCpu:
    """Implements `Compute` in virtual time; `demands` of zero take no time. Must be made on the running loop."""

    def __init__(self, name: str, demands: ProcessCpu, host: Host) -> None:
        self.name = name
        steps: tuple[Step, ...] = get_args(Step)
        self._demands = {
            step: (getattr(demands, step).base_s, getattr(demands, step).per_kb_s) for step in steps
        }
        self._loop = running_loop()
        self._host = host
        self._core = 0
        self._free_at_s = 0.0
        self._background = 0.0
        self._background_s = 0.0
        self._background_since_s = 0.0
        self._streams: list[
            tuple[float, float]
        ] = []  # (end, share of the CPU) of streams under way
        self._slowdown = 1.0
        self._paused_until_s = 0.0
        self._booked_s = 0.0
        self._waited_s = 0.0
        self._jobs = 0
        # At the last sample: instant, jobs, busy and waiting integrals.
        self._marked = (0.0, 0, 0.0, 0.0)

    def use(self, step: Step, kilobytes: float = 0.0) -> Awaitable[None]:
        """Hold this process' CPU for the step's demand, after all that was declared before it.

        The work stays booked if nobody waits for it any more: a loop finishes the step that it has begun.
        """
        base_s, per_kb_s = self._demands[step]
        demand_s = base_s + per_kb_s * kilobytes
        if demand_s <= 0.0:
            return NO_WAIT
        return self._loop.until(self._book(demand_s))

    def _book(self, demand_s: float) -> float:
        """The instant at which a job that is declared now will be done."""
        now_s = self._loop.time()
        if self._streams:
            self._settle_background(now_s)
        cores_free_at_s = self._host.free_at_s
        start_s = self._free_at_s
        if start_s <= now_s:
            start_s = now_s
            self._core = cores_free_at_s.index(min(cores_free_at_s))
        core_free_at_s = cores_free_at_s[self._core]
        if core_free_at_s > start_s:
            start_s = core_free_at_s
        stretched_s = demand_s * self._slowdown / (1.0 - min(self._background, MAX_BACKGROUND))
        done_s = start_s + stretched_s
        cores_free_at_s[self._core] = self._free_at_s = done_s
        self._jobs += 1
        self._booked_s += demand_s
        self._waited_s += start_s - now_s
        return done_s

    async def offload(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` at once: Python code takes no virtual time, and its demand is declared beside it."""
        return function(*args, **kwargs)

    def relay(self, chunk: Chunk) -> Awaitable[None]:
        """One chunk is a job like any other; one that stands for many is a background load while they last."""
        base_s, per_kb_s = self._demands["chunk"]
        demand_s = chunk.count * base_s + per_kb_s * (
            max(len(chunk.data), chunk.size_bytes) / BYTES_PER_KB
        )
        if demand_s <= 0.0:
            return NO_WAIT
        if chunk.over_s <= 0.0:
            return self._loop.until(self._book(demand_s))
        now_s = self._loop.time()
        if self._paused_until_s > now_s:
            return self._loop.until(self._paused_until_s)
        self._settle_background(now_s)
        share = demand_s / chunk.over_s
        self._background += share
        heapq.heappush(self._streams, (now_s + chunk.over_s, share))
        return NO_WAIT

    def _settle_background(self, now_s: float) -> None:
        """Integrate the background load up to now and drop the streams that have ended."""
        streams = self._streams
        while streams and streams[0][0] <= now_s:
            ended_s, share = heapq.heappop(streams)
            self._background_s += self._background * (ended_s - self._background_since_s)
            self._background_since_s = ended_s
            self._background = self._background - share if streams else 0.0
        self._background_s += self._background * (now_s - self._background_since_s)
        self._background_since_s = now_s

    def pause(self, until_s: float) -> None:
        """The process stands still until then, as one that was stopped by a signal; what it had begun goes on after."""
        now_s = self._loop.time()
        self._free_at_s = until_s + max(0.0, self._free_at_s - now_s)
        self._paused_until_s = max(self._paused_until_s, until_s)

    def slow_down(self, factor: float) -> None:
        """From now on work takes `factor` times what it would (1: as usual)."""
        self._slowdown = factor

    def busy_s(self, now_s: float) -> float:
        """CPU seconds used up to now; booked work that has not been done yet is left out."""
        self._settle_background(now_s)
        working_since_s = max(now_s, self._paused_until_s)
        return self._booked_s - max(0.0, self._free_at_s - working_since_s) + self._background_s

    def sample(self, now_s: float, origin_s: float) -> StationSample:
        """The interval since the last sample. Waits are counted where they begin."""
        from_s, jobs, busy_s, waited_s = self._marked
        self._marked = (now_s, self._jobs, self.busy_s(now_s), self._waited_s)
        interval_s = now_s - from_s
        busy_in_interval_s = max(0.0, self._marked[2] - busy_s)
        return StationSample(
            t_s=now_s - origin_s,
            interval_s=interval_s,
            station=f"{self.name} cpu",
            kind="cpu",
            arrivals=self._jobs - jobs,
            completions=self._jobs - jobs,
            busy_s=busy_in_interval_s,
            queue_length=(self._waited_s - waited_s) / interval_s if interval_s > 0 else 0.0,
            in_service=busy_in_interval_s / interval_s if interval_s > 0 else 0.0,
            capacity=1.0,
        )
