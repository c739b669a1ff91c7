"""Where a run comes from: commit, versions, machine, wall clock. For the manifest."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import psutil

__all__ = ["commit", "machine", "now_iso", "versions"]

LIBRARIES: Final = (
    "twinload",
    "locust",
    "gevent",
    "simpy",
    "aiohttp",
    "uvicorn",
    "uvloop",
    "starlette",
    "anthropic",
    "numpy",
)


def now_iso() -> str:
    """The wall clock in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a run's times depend on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # run from a checkout, or without that extra
    return found


def machine() -> dict[str, str | int | float]:
    """Cores, CPU, memory, operating system; nothing that names the machine."""
    return {
        "cores": os.cpu_count() or 0,
        "cpu": _cpu_model(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def commit(folder: Path) -> str:
    """The commit of the checkout at `folder`, with `+` where files differ from it; "" where there is none."""
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()
