"""The autoscaler: a pure policy inside bounds, with a memory that keeps it from shrinking in haste."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from reference_impl.autoscaler.concurrency import ConcurrencyPolicy
from reference_impl.autoscaler.cpu import CpuPolicy
from reference_impl.autoscaler.port import Observation, ScalingPolicy
from reference_impl.deployment import AutoscalerSpec
from reference_impl.instances.port import InstanceMetrics

__all__ = ["AutoScaler"]


class AutoScaler:
    """Decides by how much the fleet changes.

    Attributes:
        current_instances: how many are ordered (ready or booting), as far as the scaler knows. Each decision is added to
            it; whoever applies decisions sets it when reality differs (a boot failed, an instance died).
    """

    def __init__(
        self,
        min_instances: int = 2,
        max_instances: int = 10,
        cpu_threshold: float = 0.8,
        *,
        policy: ScalingPolicy | None = None,
        down_stabilization_s: float = 0.0,
    ) -> None:
        """The default policy is `CpuPolicy(cpu_threshold)`. Shrinking follows the highest recommendation of the last
        `down_stabilization_s` seconds (Kubernetes HPA; its default is 300). Raises ValueError for impossible bounds.
        """
        if not 1 <= min_instances <= max_instances:
            raise ValueError(
                f"expected 1 <= min_instances <= max_instances, not {min_instances} and {max_instances}"
            )
        if down_stabilization_s < 0:
            raise ValueError(f"down_stabilization_s must not be negative: {down_stabilization_s}")
        self.min_instances = min_instances
        self.max_instances = max_instances
        self.current_instances = min_instances
        self._policy = policy if policy is not None else CpuPolicy(cpu_threshold)
        self._down_stabilization_s = down_stabilization_s
        self._recommended: deque[tuple[float, int]] = deque()

    @classmethod
    def from_spec(cls, spec: AutoscalerSpec) -> AutoScaler:
        policy: ScalingPolicy
        if spec.policy == "cpu":
            policy = CpuPolicy(spec.cpu_threshold)
        else:
            policy = ConcurrencyPolicy(spec.target_in_flight, spec.tolerance)
        return cls(
            spec.min_instances,
            spec.max_instances,
            policy=policy,
            down_stabilization_s=spec.down_stabilization_s,
        )

    def evaluate_scaling(
        self,
        metrics: Sequence[InstanceMetrics],
        *,
        booting: int = 0,
        now_s: float | None = None,
    ) -> int:
        """How many instances to add (> 0) or take away (< 0); `current_instances` follows.

        Of the current instances, `booting` are not ready yet. `now_s` (default: the running loop's clock) is read only
        with a `down_stabilization_s`. Without metrics the fleet only moves into its bounds.
        """
        observation = Observation.of(metrics, self.current_instances, booting)
        wanted = self._policy.recommend(observation) if metrics else self.current_instances
        if self._down_stabilization_s > 0:
            wanted = self._stabilized(
                wanted, asyncio.get_running_loop().time() if now_s is None else now_s
            )
        wanted = min(max(wanted, self.min_instances), self.max_instances)
        delta = wanted - self.current_instances
        self.current_instances = wanted
        return delta

    def _stabilized(self, wanted: int, now_s: float) -> int:
        recommended = self._recommended
        if not recommended:
            # The number at the start counts as recommended: nobody shrinks before a window has been seen.
            recommended.append((now_s, self.current_instances))
        recommended.append((now_s, wanted))
        while recommended[0][0] <= now_s - self._down_stabilization_s:
            recommended.popleft()
        if wanted >= self.current_instances:
            return wanted
        return min(self.current_instances, max(number for _, number in recommended))
