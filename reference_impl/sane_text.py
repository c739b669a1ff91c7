"""Text from outside, as every store, queue and header can hold it."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["sane_text"]

# What UTF-8, or a text column of a database, cannot hold: NUL and lone surrogates, as Python has them in the names of files.
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


def sane_text(text: str, max_chars: int = 256) -> str:
    """The first `max_chars` of `text` (by default those of a name), without NUL or lone surrogates."""
    return _UNSTORABLE.sub("\ufffd", text[:max_chars])
