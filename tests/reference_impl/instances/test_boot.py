"""Boot times: one draw an instance, whatever else boots."""

from __future__ import annotations

import math

from reference_impl.deployment import InstanceSpec
from reference_impl.instances.boot import boot_time_s
from reference_impl.overload.jitter import hashed_uniform


def test_a_constant_boot_time_is_the_same_for_all() -> None:
    spec = InstanceSpec(boot_s=3.0)
    times = {boot_time_s(spec, f"instance-{n}", hashed_uniform(n)) for n in range(5)}
    assert times == {3.0}


def test_an_exponential_boot_time_depends_on_seed_and_number_alone() -> None:
    spec = InstanceSpec(boot_s=4.0, boot_distribution="exponential")
    luck = hashed_uniform(7)
    times = [boot_time_s(spec, f"instance-{n}", luck) for n in range(4000)]
    assert boot_time_s(spec, "instance-17", hashed_uniform(7)) == times[17]
    assert boot_time_s(spec, "instance-17", hashed_uniform(8)) != times[17]
    mean_s = sum(times) / len(times)
    assert abs(mean_s - 4.0) < 4 * 4.0 / math.sqrt(len(times))
    # Memoryless: half of them are over within mean x ln 2.
    share = sum(t <= 4.0 * math.log(2) for t in times) / len(times)
    assert abs(share - 0.5) < 0.04
