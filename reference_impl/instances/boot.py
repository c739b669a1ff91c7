"""How long an instance takes to boot: one draw an instance, the same in both worlds."""

from __future__ import annotations

import math

from reference_impl.deployment import InstanceSpec
from reference_impl.overload.jitter import Uniform

__all__ = ["boot_time_s"]


def boot_time_s(spec: InstanceSpec, instance_id: str, uniform: Uniform) -> float:
    """Seconds from the order to readiness; exponential by inversion, keyed by the number in the id ("instance-7")."""
    if spec.boot_distribution == "constant":
        return spec.boot_s
    number = int(instance_id.rpartition("-")[2])
    return -spec.boot_s * math.log(uniform("boot", number, 0))
