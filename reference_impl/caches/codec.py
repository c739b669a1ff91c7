"""Values as bytes for level 2: MessagePack by msgspec, deflated where that pays.

The first byte tells the format, so that a reader of tomorrow recognises what today's wrote.
"""

from __future__ import annotations

import zlib
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from reference_impl.caches.port import NotSerialisable

__all__ = ["Codec", "MsgpackCodec"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_PLAIN: Final = b"\x01"
_DEFLATED: Final = b"\x02"
# A hostile or foreign payload must not inflate without bound; far above any Messages answer.
_MAX_INFLATED_BYTES: Final = 64 * 1024 * 1024


class Codec(Protocol[T]):
    """Turns values into bytes and back; both raise `NotSerialisable` when they cannot."""

    def encode(self, value: T) -> bytes: ...

    def decode(self, payload: bytes) -> T: ...


class MsgpackCodec(Generic[T]):
    """msgspec's MessagePack for values of `kind` (a struct, dataclass or annotation; by default plain data).

    Payloads from `compress_from_bytes` on are deflated at level 1 (JSON of 4 KB: about 40 µs, a fifth of the size) and kept
    so if that saves at least a tenth.
    """

    def __init__(self, kind: Any = Any, *, compress_from_bytes: int = 4096) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        self._compress_from_bytes = compress_from_bytes

    def encode(self, value: T) -> bytes:
        try:
            payload = self._encoder.encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise NotSerialisable(
                f"a value of type {type(value).__name__} cannot be shared: {error}: "
                "return plain data or a msgspec struct, or hand a codec to the cache"
            ) from error
        if len(payload) >= self._compress_from_bytes:
            deflated = zlib.compress(payload, 1)
            if len(deflated) < 0.9 * len(payload):
                return _DEFLATED + deflated
        return _PLAIN + payload

    def decode(self, payload: bytes) -> T:
        try:
            return self._decoder.decode(self._inflated(payload))
        except (msgspec.DecodeError, zlib.error, UnicodeDecodeError) as error:
            raise NotSerialisable(f"stored bytes are not what this codec wrote: {error}") from error

    @staticmethod
    def _inflated(payload: bytes) -> bytes | memoryview:
        if payload[:1] == _PLAIN:
            return memoryview(payload)[1:]
        if payload[:1] == _DEFLATED:
            inflater = zlib.decompressobj()
            inflated = inflater.decompress(memoryview(payload)[1:], _MAX_INFLATED_BYTES)
            if inflater.unconsumed_tail:
                raise zlib.error(f"inflates to more than {_MAX_INFLATED_BYTES:,} bytes")
            if not inflater.eof:
                raise zlib.error("the end is missing")
            return inflated
        raise zlib.error(f"unknown format {payload[:1]!r}")
