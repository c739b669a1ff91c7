"""Server-sent events, incrementally: where events end, and what they say.

A proxy passes bytes on; it needs to know where an event ends (so that what it passes is whole events) and to read the few
events that matter. `SseFramer` does the first at the speed of one search a read; `split_events` does the second, and is
called only for blocks that carry something to read. The format: WHATWG HTML, "Server-sent events", 9.2.5 and 9.2.6.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

__all__ = ["EventTooLong", "SseEvent", "SseFramer", "split_events"]

# Two line ends in a row; a line ends with CRLF, LF or CR.
_BOUNDARY: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")


class EventTooLong(ValueError):
    """The peer sends an event without end."""


class SseEvent(msgspec.Struct, frozen=True):
    """One event: its name ("message" when it has none), its data lines joined by newlines, and where it starts and ends
    in the block that it was split from."""

    name: str
    data: bytes
    start: int
    end: int


class SseFramer:
    """Cuts a stream of bytes into blocks of whole events, bytes unchanged.

    Args:
        max_event_bytes: an event that has not ended after so many bytes is an error, so that a peer cannot fill the
            memory.
    """

    __slots__ = ("_carriage_returns", "_max_event_bytes", "_rest")

    def __init__(self, max_event_bytes: int = 8 * 1024 * 1024) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = b""
        self._carriage_returns = False

    @property
    def rest(self) -> bytes:
        """What has been fed since the last event ended: a stream that ends with more than white space here was cut."""
        return self._rest

    def feed(self, data: bytes) -> bytes:
        """The whole events that `data` completes (b"" if none), as one block; the remainder is kept.

        Raises EventTooLong.
        """
        if self._carriage_returns or b"\r" in data:
            self._carriage_returns = True
            return self._feed_any_line_end(data)
        kept = len(self._rest)
        joined = self._rest + data if kept else data
        # The boundary may straddle the seam by one byte.
        end = joined.rfind(b"\n\n", kept - 1 if kept else 0) + 2
        return self._cut(joined, end if end > 1 else 0)

    def _feed_any_line_end(self, data: bytes) -> bytes:
        joined = self._rest + data
        end = 0
        # A CR at the very end may be the first half of a CRLF. The boundary holds either way: the LF that follows is an
        # empty line before the next event, which means nothing.
        for match in _BOUNDARY.finditer(joined, max(0, len(self._rest) - 3)):
            end = match.end()
        return self._cut(joined, end)

    def _cut(self, joined: bytes, end: int) -> bytes:
        if len(joined) - end > self._max_event_bytes:
            raise EventTooLong(f"an event has no end after {len(joined) - end} bytes")
        if end == len(joined):
            self._rest = b""
            return joined
        self._rest = joined[end:]
        return joined[:end]


def split_events(block: bytes) -> list[SseEvent]:
    """The events of a block of whole events, in order; comments and empty events are left out."""
    events = []
    start = 0
    while start < len(block):
        boundary = _BOUNDARY.search(block, start)
        end = boundary.end() if boundary else len(block)
        name = ""
        data: list[bytes] = []
        for line in _LINE_END.split(block[start:end]):
            field, _, value = line.partition(b":")
            if field == b"event":
                name = value.removeprefix(b" ").decode(errors="replace")
            elif field == b"data":
                data.append(value.removeprefix(b" "))
        if data or name:
            events.append(SseEvent(name or "message", b"\n".join(data), start, end))
        start = end
    return events
