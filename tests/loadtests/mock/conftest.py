"""Mock servers in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loadtests.mock.process import Mock, running_mock

# Quick, but long enough for a stream to be interrupted.
_QUICK = """
name: quick
service: {kind: provider, ttft_s: 0.02, tokens_per_s: 1000, prefill_s_per_token: 0}
output_tokens: 40
"""


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    """One server for a module's tests, which accept faults on order."""
    folder: Path = tmp_path_factory.mktemp("mock")
    (folder / "quick.yaml").write_text(_QUICK)
    with running_mock(folder, "--profile", str(folder / "quick.yaml"), "--allow-fault-header") as m:
        yield m
