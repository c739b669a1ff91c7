"""Every benchmark of this folder, one after the other: `python -m tests.benchmarks [NAME ...]`.

A benchmark is a module here that knows the option `--json` and then prints one JSON object. Each runs in a process of its own;
the result is one JSON object with theirs by name, or the last line of what a failed one said under `errors`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def benchmarks() -> list[str]:
    """The names of the modules."""
    return sorted(
        path.stem
        for path in FOLDER.glob("[!_]*.py")
        if not path.stem.startswith("test_") and '"--json"' in path.read_text()
    )


def run_all(names: list[str]) -> dict[str, Any]:
    """Their results by name; `errors` only if there are any."""
    results: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for name in names:
        print(f"{name} ...", file=sys.stderr)
        done = subprocess.run(
            [sys.executable, "-m", f"tests.benchmarks.{name}", "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            results[name] = json.loads(done.stdout)
        except ValueError:
            said = (done.stderr or done.stdout).strip().splitlines()
            errors[name] = said[-1] if said else f"exit code {done.returncode}"
    return results | ({"errors": errors} if errors else {})


def main(arguments: list[str]) -> int:
    known = benchmarks()
    unknown = [name for name in arguments if name not in known]
    if unknown:
        print(
            f"no such benchmark: {', '.join(unknown)}; there are {', '.join(known)}",
            file=sys.stderr,
        )
        return 2
    results = run_all(arguments or known)
    print(json.dumps(results, indent=2))
    return 1 if "errors" in results else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
