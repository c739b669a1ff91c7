"""A run of the whole live system as a process of its own, to be interrupted: `python -m tests.loadtests.run_one OUT`."""

from __future__ import annotations

import sys
from pathlib import Path

from loadtests.swarm import SwarmOptions, SwarmProgress, run_swarm
from simulation.scenario.workload import compile_workload
from tests.loadtests.workloads import small

# One instance that boots at once, a made-up fast endpoint, nothing that scales.
SYSTEM = """
endpoint: fast
deployment:
  instances: {initial: 1, boot_s: 0, drain_s: 1}
  autoscaler: {enabled: false}
"""


def main() -> None:
    scenario = small("{kind: constant, rate_per_s: 50}", horizon_s=20.0, more=SYSTEM)

    def tell(progress: SwarmProgress) -> None:
        sys.stdout.write(f"{progress.phase} {progress.requests}\n")
        sys.stdout.flush()

    run_swarm(
        scenario,
        compile_workload(scenario),
        Path(sys.argv[1]),
        options=SwarmOptions(start_delay_s=0.3),
        on_progress=tell,
    )


if __name__ == "__main__":
    main()
