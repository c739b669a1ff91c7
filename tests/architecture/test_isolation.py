"""twinload works from a directory that has folders of its own named like ours (docs/decisions/0001)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OUR_FOLDERS = ("simulation", "reports", "loadtests", "reference_impl")
RUN = "import sys, twinload; sys.argv[0] = 'twinload'; twinload.main()"


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    """A working directory whose own packages end any process that imports them."""
    folder = tmp_path / "work"
    for name in OUR_FOLDERS:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise SystemExit('the user's own {name}')\n")
    return folder


@pytest.fixture(scope="module")
def installed_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages, as `pip install` would leave it, from a wheel built out of this checkout."""
    dist = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(dist)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=100,
    )
    site = tmp_path_factory.mktemp("site")
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def twinload(
    *arguments: str, cwd: Path, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_wheel_installs_nothing_with_a_generic_name(installed_wheel: Path) -> None:
    top_level = {p.name for p in installed_wheel.iterdir() if not p.name.endswith(".dist-info")}
    assert top_level == {"twinload.py", "_twinload"}
    assert set(OUR_FOLDERS) <= {p.name for p in (installed_wheel / "_twinload").iterdir()}


def test_the_installed_wheel_simulates_beside_a_users_own_folders_of_the_same_names(
    installed_wheel: Path, users_folder: Path
) -> None:
    result = twinload(
        "simulate", "demo", "--set", "horizon_s=3", "--json", cwd=users_folder, path=installed_wheel
    )
    assert result.stderr == ""
    assert json.loads(result.stdout)["requests"] > 0
    assert (users_folder / "runs").is_dir()


def test_a_checkout_simulates_beside_a_users_own_folders_of_the_same_names(
    users_folder: Path,
) -> None:
    result = twinload("simulate", "demo", "--set", "horizon_s=3", "--json", cwd=users_folder)
    assert result.stderr == ""
    assert json.loads(result.stdout)["requests"] > 0


def test_modules_come_from_the_wheel_and_not_from_elsewhere(
    installed_wheel: Path, users_folder: Path
) -> None:
    code = "import twinload, simulation.kernel, reports.document as d; print(simulation.kernel.__file__, d.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=users_folder,
        env=os.environ | {"PYTHONPATH": str(installed_wheel)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert [Path(p).is_relative_to(installed_wheel) for p in result.stdout.split()] == [True, True]
