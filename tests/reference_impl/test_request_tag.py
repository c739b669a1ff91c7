"""The header that ties a request to a compiled workload: what is written is read, by either way of reading it."""

from __future__ import annotations

import pytest

from reference_impl.errors import InvalidRequest
from reference_impl.messages import RequestTag

TAG = RequestTag(123, 4, 56, 789, 10)


def test_what_is_written_is_read() -> None:
    assert RequestTag.decode(TAG.encode()) == TAG
    huge = RequestTag(10**18 - 1)
    assert RequestTag.decode(huge.encode()) == huge


@pytest.mark.parametrize(
    "text",
    [
        "output=10;input=789;prompt=56;attempt=4;id=123",
        "id=123; attempt=4; prompt=56; input=789; output=10",
        "id=1;id=123;attempt=4;prompt=56;input=789;output=10",
        "id=0123;attempt=4;prompt=56;input=789;output=10",
    ],
)
def test_order_and_spaces_do_not_matter_and_the_last_of_a_name_wins(text: str) -> None:
    assert RequestTag.decode(text) == TAG


def test_only_the_id_is_needed() -> None:
    assert RequestTag.decode("id=7") == RequestTag(7)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("id=1;attempt=-1;prompt=0;input=0;output=0", "attempt=-1"),
        ("id=1;attempt=0;prompt=0;input=0;output=1e3", "output=1e3"),
        ("id=1;attempt=0;prompt=0;input=0;output=0;", "''"),
        ("id=1;attempt=0;prompt=0;input=0;output=0\n;x=1", "x=1"),
        (f"id={10**18};attempt=0;prompt=0;input=0;output=0", f"id={10**18}"),
        ("id=²;attempt=0;prompt=0;input=0;output=0", "id=²"),
        ("attempt=0;prompt=0;input=0;output=0", "id=<digits>"),
        ("", "''"),
    ],
)
def test_anything_else_is_refused_by_its_offending_part(text: str, part: str) -> None:
    with pytest.raises(InvalidRequest, match="x-twinload-request: ") as refused:
        RequestTag.decode(text)
    assert part in str(refused.value)
