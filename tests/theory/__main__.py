"""`python -m tests.theory > docs/theory.md`: play every textbook system and write the page of results."""

from __future__ import annotations

import sys
import time

from tests.theory.cases import CASES, play

HEAD = """# Textbook systems, simulated and exact

Every row is played by the gateway, balancer, instances, cache and endpoint of any other run, described by overrides of the
preset `mm1` (`tests/theory/systems.yaml`), and compared with a closed form (`tests/theory/formulas.py`, each with its
source). `z` is the distance in standard errors over independent replications; the tests want it below 3.5 in size. Mean-field
values are compared with fleets of 500 only; LRU over 1,000 has no closed form, but an approximation whose error here is
below the standard error.

This page is written by `python -m tests.theory > docs/theory.md`.

| system | observable | exact | simulated | standard error | z | observations | source |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    write = sys.stdout.write
    write(f"{HEAD}\n")
    worst, began_s = 0.0, time.process_time()
    for system, case in CASES.items():
        from_s = time.process_time()
        for name, e in play(system).items():
            worst = max(worst, abs(e.z))
            cells = (
                system,
                name,
                f"{e.exact:.4f}",
                f"{e.found:.4f}",
                f"{e.standard_error:.4f}",
                f"{e.z:+.2f}",
                f"{e.observations:,}",
                case.source,
            )
            write(f"| {' | '.join(cells)} |\n")
        sys.stderr.write(f"{system}: {time.process_time() - from_s:.1f} s\n")
    spent_s = time.process_time() - began_s
    write(f"\nLargest |z|: {worst:.2f}. CPU time: {spent_s:.0f} s.\n")


if __name__ == "__main__":
    main()
