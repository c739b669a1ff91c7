"""What a test says where a server that it needs cannot be had."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from reference_impl.live.services.server_process import ServiceUnavailable

__all__ = ["require"]


def require(find: Callable[[], object]) -> None:
    """Skip the test with the reason that `find` raises; fail in CI, where the server must be there."""
    try:
        find()
    except ServiceUnavailable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
