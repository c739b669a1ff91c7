"""The loop that closes the circle: metrics in, changes of the fleet out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from reference_impl.autoscaler.autoscaler import AutoScaler
from reference_impl.autoscaler.port import Observation
from reference_impl.instances.fleet import Fleet
from reference_impl.telemetry import SystemEvent

__all__ = ["ScalingLoop"]


class ScalingLoop:
    """Every `interval_s` seconds, asks the autoscaler and applies its answer to the fleet.

    Each change is a SystemEvent of the kind "scaling" with `delta`, `before`, `after` and what the decision saw. Ticks
    keep absolute deadlines, so that neither drift nor a late tick moves the later ones.
    """

    def __init__(
        self,
        autoscaler: AutoScaler,
        fleet: Fleet,
        interval_s: float,
        on_event: Callable[[SystemEvent], None],
        *,
        origin_s: float = 0.0,
    ) -> None:
        """`origin_s`: the run's start on the loop's clock; the instants of events count from it."""
        self._autoscaler = autoscaler
        self._fleet = fleet
        self._interval_s = interval_s
        self._on_event = on_event
        self._origin_s = origin_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; the first decision is one interval away."""
        if self._task is not None:
            raise RuntimeError("the scaling loop runs already")
        self._task = asyncio.create_task(self._run(), name="background:autoscaler")
        self._task.add_done_callback(_report_failure)

    async def aclose(self) -> None:
        """Stop deciding; changes under way are the fleet's."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def tick(self) -> int:
        """One decision now; returns the change that was made."""
        fleet, autoscaler = self._fleet, self._autoscaler
        now_s = asyncio.get_running_loop().time()
        counts = fleet.counts
        metrics = fleet.metrics()
        # Boots that failed and instances that died are not the autoscaler's doing.
        autoscaler.current_instances = counts.ordered
        delta = autoscaler.evaluate_scaling(metrics, booting=counts.booting, now_s=now_s)
        applied = fleet.scale_by(delta) if delta else 0
        if applied:
            seen = Observation.of(metrics, counts.ordered, counts.booting)
            self._on_event(
                SystemEvent(
                    t_s=now_s - self._origin_s,
                    kind="scaling",
                    subject="fleet",
                    detail={
                        "delta": applied,
                        "before": counts.ordered,
                        "after": counts.ordered + applied,
                        "booting": counts.booting,
                        "draining": counts.draining,
                        "in_flight": seen.in_flight,
                        "cpu_usage": seen.cpu_usage,
                        "error_rate": seen.error_rate,
                    },
                )
            )
        return applied

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        tick = 0
        while True:
            # A tick that is over already (the process was held up) is skipped, not made up for.
            tick = max(tick + 1, int((loop.time() - started_s) / self._interval_s))
            await asyncio.sleep(started_s + tick * self._interval_s - loop.time())
            self.tick()


def _report_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler(
            {"message": "the scaling loop failed", "exception": error, "task": task}
        )
