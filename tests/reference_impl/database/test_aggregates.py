"""The export: a file that is whole, or none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from reference_impl.database.aggregates import export_parquet
from reference_impl.database.entries import LedgerEntry
from tests.reference_impl.database.rows import entry


async def pages(ending: BaseException | None = None) -> AsyncIterator[list[LedgerEntry]]:
    yield [entry(1), entry(2)]
    yield [entry(3)]
    if ending is not None:
        raise ending


def test_every_page_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    assert asyncio.run(export_parquet(pages(), path)) == 3
    assert pq.read_table(path)["entry_id"].to_pylist() == ["e000001", "e000002", "e000003"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "ending", [OSError("the disk is full"), asyncio.CancelledError(), KeyboardInterrupt()]
)
def test_an_export_that_fails_or_is_interrupted_leaves_no_file(
    ending: BaseException, tmp_path: Path
) -> None:
    with pytest.raises(type(ending)):
        asyncio.run(export_parquet(pages(ending), tmp_path / "x.parquet"))
    assert list(tmp_path.iterdir()) == []
