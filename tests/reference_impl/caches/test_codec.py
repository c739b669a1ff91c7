"""Values as bytes, and keys."""

from __future__ import annotations

import zlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_impl.answers import Answer
from reference_impl.caches.codec import MsgpackCodec
from reference_impl.caches.keys import cache_key
from reference_impl.caches.port import InvalidCacheKey, NotSerialisable
from reference_impl.messages import Completion, Usage

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(deadline=None)  # the machine may be busy
@given(plain, st.sampled_from([0, 10, 4096]))
def test_plain_data_comes_back_as_it_was(value: object, compress_from_bytes: int) -> None:
    codec: MsgpackCodec[object] = MsgpackCodec(compress_from_bytes=compress_from_bytes)
    assert codec.decode(codec.encode(value)) == value


def test_an_answer_comes_back_as_the_struct_that_it_was() -> None:
    codec: MsgpackCodec[Answer] = MsgpackCodec(Answer)
    answer = Answer(Completion(Usage(3, 5), body=b'{"text": "x"}' * 1000, size_bytes=13_000), b"e")
    payload = codec.encode(answer)
    assert codec.decode(payload) == answer
    assert len(payload) < 1000


@pytest.mark.parametrize("value", [object(), {1, object()}, 2**70, lambda: 0])
def test_a_value_that_cannot_be_serialised_is_named_by_its_type(value: object) -> None:
    codec: MsgpackCodec[object] = MsgpackCodec()
    with pytest.raises(NotSerialisable, match=f"a value of type {type(value).__name__} cannot"):
        codec.encode(value)


def test_bytes_that_inflate_without_bound_are_refused() -> None:
    bomb = b"\x02" + zlib.compress(bytes(65 * 1024 * 1024), 9)
    assert len(bomb) < 100_000
    codec: MsgpackCodec[object] = MsgpackCodec()
    with pytest.raises(NotSerialisable, match="inflates to more than"):
        codec.decode(bomb)


def test_a_truncated_value_is_refused() -> None:
    codec: MsgpackCodec[object] = MsgpackCodec(compress_from_bytes=0)
    payload = codec.encode(["words"] * 100)
    for end in range(len(payload)):
        with pytest.raises(NotSerialisable):
            codec.decode(payload[:end])


def test_keys_do_not_collide_by_how_their_parts_are_glued() -> None:
    parts: list[tuple[object, ...]] = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        (["ab", "c"],),
        ("ab", "c", ""),
        ("ab", None, "c"),
        (1,),
        ("1",),
        (True,),
    ]
    keys = {cache_key(*one) for one in parts} | {
        cache_key("ab", "c", tenant="t"),
        cache_key("t", "ab", "c"),
    }
    assert len(keys) == len(parts) + 2


def test_the_order_of_a_mapping_does_not_matter_and_that_of_a_list_does() -> None:
    assert cache_key({"a": 1, "b": [1, 2]}) == cache_key({"b": [1, 2], "a": 1})
    assert cache_key({"b": [2, 1], "a": 1}) != cache_key({"b": [1, 2], "a": 1})


def test_a_key_is_32_hex_digits_whatever_its_parts_weigh() -> None:
    assert len(cache_key("x" * 1_000_000)) == 32
    int(cache_key(Usage(1, 2)), 16)


@pytest.mark.parametrize("part", [object(), {1: object()}, float])
def test_a_part_without_a_canonical_form_is_refused(part: object) -> None:
    with pytest.raises(InvalidCacheKey, match="has no canonical form"):
        cache_key("model", part)


def test_a_codec_of_one_kind_refuses_the_bytes_of_another() -> None:
    payload = MsgpackCodec[object]().encode({"text": "x"})
    with pytest.raises(NotSerialisable):
        MsgpackCodec[Answer](Answer).decode(payload)
    assert msgspec.msgpack.decode(payload[1:]) == {"text": "x"}
