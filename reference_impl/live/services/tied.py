"""The command of a process whose life is tied to that of the process that starts it, and that may give up root on the way."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

__all__ = ["tied"]

# Becomes the user, asks the kernel for a signal when the parent dies (a change of user would cancel the wish), then becomes the
# command. A program of its own rather than a `preexec_fn`, which may deadlock in a process with threads. If the parent died
# before it asked, it ends.
_LAUNCH: Final = """
import ctypes, os, pwd, sys
death_signal, parent, user = sys.argv[1:4]
if user:
    entry = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
ctypes.CDLL(None).prctl(1, int(death_signal))
if os.getppid() != int(parent):
    sys.exit(1)
os.execvp(sys.argv[4], sys.argv[4:])
"""


def tied(command: Sequence[str], death_signal: int, user: str = "") -> list[str]:
    """`command`, which gets `death_signal` when the thread that starts it ends; as it is where the kernel cannot (not Linux)."""
    if sys.platform != "linux":
        return list(command)
    launch = [sys.executable, "-I", "-S", "-c", _LAUNCH]
    return [*launch, str(int(death_signal)), str(os.getpid()), user, *command]
