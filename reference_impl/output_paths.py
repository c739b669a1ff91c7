"""Whether something can be written where somebody asks for it: looked at before the work whose result goes there.

The errors are the system's own, an `OSError` that names the path as it was given; the command line makes a line of them.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

__all__ = ["check_output_file", "check_output_folder"]


def check_output_file(path: Path) -> None:
    """Raise OSError where no file can be written at `path`; leaves nothing there."""
    if path.is_dir():
        raise _refused(path, errno.EISDIR)
    _try_a_file_in(path.parent, path)


def check_output_folder(folder: Path) -> None:
    """Raise OSError where `folder` can neither be made nor written into; leaves what was there, and nothing else."""
    made: list[Path] = []
    try:
        for part in (*reversed(folder.parents), folder):
            if not part.is_dir():
                part.mkdir()
                made.append(part)
        _try_a_file_in(folder, folder)
    except OSError as error:
        raise _refused(folder, error.errno or errno.EIO) from None
    finally:
        for part in reversed(made):
            part.rmdir()


def _try_a_file_in(folder: Path, asked: Path) -> None:
    # Permissions do not tell all (a file system may be read-only, or take no files at all): a file does.
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _refused(asked, error.errno or errno.EIO) from None


def _refused(path: Path, number: int) -> OSError:
    return OSError(number, os.strerror(number), str(path))
