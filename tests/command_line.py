"""The command line in this process: what a person would see of `twinload ...`."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from typing import NamedTuple
from unittest import mock

import pytest

import twinload

__all__ = ["Printed", "run_twinload"]


class Printed(NamedTuple):
    status: int
    out: str
    err: str


def run_twinload(*arguments: str) -> Printed:
    """What `twinload ARGUMENTS` prints and its exit status; an error that nobody caught passes through."""
    # Texts over bytes, as a terminal's: JSON is printed as bytes.
    out, err = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO())
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        with (
            mock.patch.object(sys, "argv", ["twinload", *arguments]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            twinload.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    status = ended.value.code
    assert isinstance(status, int)
    return Printed(status, _text(out), _text(err))


def _text(printed: io.TextIOWrapper) -> str:
    printed.seek(0)
    return printed.read()
