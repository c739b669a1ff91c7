"""What the vocabulary loads: it is read by processes that must stay small."""

import subprocess
import sys
from pathlib import Path


def test_the_whole_vocabulary_loads_no_engine_no_swarm_and_no_plotting() -> None:
    modules = sorted(
        f"simulation.scenario.{file.stem}"
        for file in (Path(__file__).parents[3] / "simulation" / "scenario").glob("*.py")
        if file.stem != "__init__"
    )
    program = (
        f"import sys, {', '.join(modules)}\n"
        "heavy = {'simpy', 'locust', 'gevent', 'pandas', 'scipy', 'matplotlib', 'pyarrow'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "simulation.scenario.spec" in modules
    assert done.stdout.strip() == "[]"
