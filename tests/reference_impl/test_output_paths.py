"""What is asked before something is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from reference_impl.output_paths import check_output_file, check_output_folder


def test_a_folder_that_can_be_made_is_not_made(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "a" / "b")
    check_output_folder(tmp_path)
    check_output_file(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_be_made_only_in_part_leaves_no_part(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File name too long") as refused:
        check_output_folder(tmp_path / "a" / ("b" * 300))
    assert refused.value.filename == str(tmp_path / "a" / ("b" * 300))
    assert list(tmp_path.iterdir()) == []


def test_the_error_names_what_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for check, path, kind in (
        (check_output_folder, tmp_path / "file", FileExistsError),
        (check_output_folder, tmp_path / "file" / "x", FileExistsError),
        (check_output_folder, Path("/proc/x/y"), FileNotFoundError),
        (check_output_file, tmp_path, IsADirectoryError),
        (check_output_file, tmp_path / "nowhere" / "x", FileNotFoundError),
        (check_output_file, Path("/proc/x"), FileNotFoundError),
    ):
        with pytest.raises(kind) as refused:
            check(path)
        assert refused.value.filename == str(path)
