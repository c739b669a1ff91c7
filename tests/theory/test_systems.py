"""Every textbook system, played by the system under study, has its exact values.

|z| < 3.5: of a true value, a test of 12 or more replications goes beyond by chance less than once in 200 times; the seeds
are fixed, so it does or does not for good. `python -m tests.theory` prints the table of docs/theory.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.theory.cases import CASES, play
from tests.theory.observing import SYSTEMS, estimate, replicate

PAGE = (Path(__file__).parents[2] / "docs" / "theory.md").read_text("utf-8")


@pytest.mark.parametrize("system", CASES)
def test_a_textbook_system_has_its_exact_values(system: str) -> None:
    found = play(system)
    assert {name: e for name, e in found.items() if not abs(e.z) < 3.5} == {}


def test_every_system_of_the_file_is_tested() -> None:
    assert set(SYSTEMS) == set(CASES)


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_a_value_that_is_five_percent_off_is_noticed(factor: float) -> None:
    """The fraction that waits in M/M/1, known to better than 1%."""
    case = CASES["M/M/1"]
    pairs = []
    for seed in range(1, case.replications + 1):
        run = replicate("M/M/1", seed, from_s=case.warm_s, until_s=3000, horizon_s=3000)
        pairs.append(case.observe["fraction that waits"](run))
    assert abs(estimate(0.7 * factor, pairs).z) > 3.5


@pytest.mark.parametrize("system", CASES)
def test_the_page_shows_the_exact_values(system: str) -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith(f"| {system} |")]
    for name, exact in CASES[system].exact.items():
        assert any(f"| {name} | {exact:.4f} |" in row for row in rows)
