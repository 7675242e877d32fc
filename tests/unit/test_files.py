"""`atomic_file`: the new content or the old, never a part, nothing left behind."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import pytest

from diml.files import atomic_file, exclusive_lock, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("old", [None, "old"])
def test_the_file_appears_when_the_block_ends(tmp_path, old):
    target = tmp_path / "table.csv"
    if old:
        target.write_text(old)
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent.parent == tmp_path  # on one file system, so that renaming is one step
        assert temporary.suffix == ".csv"
        assert target.exists() == bool(old)
    assert target.read_text() == "new"
    assert names(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(error), atomic_file(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["table.csv"]


def test_an_exception_makes_no_file_where_there_was_none(tmp_path):
    with pytest.raises(ValueError, match="stop"), atomic_file(tmp_path / "new.csv"):
        raise ValueError("stop")
    assert names(tmp_path) == []


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_permissions_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "table.csv", "x")
        assert os.umask(umask) == umask  # left as it was found
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "table.csv").stat().st_mode) == 0o666 & ~umask


def test_folders_are_made(tmp_path):
    target = tmp_path / "runs" / "demo" / "evaluation.json"
    assert write_text(str(target), "{}") == target
    assert target.read_text() == "{}"


def test_text_is_utf8_whatever_the_locale(tmp_path):
    assert write_text(tmp_path / "a", "ε 95 %\n").read_bytes() == "ε 95 %\n".encode()


def test_the_block_may_replace_the_temporary_file(tmp_path):
    with atomic_file(tmp_path / "model.safetensors") as temporary:
        other = temporary.with_name("other")
        other.write_text("whole")
        other.replace(temporary)
    assert (tmp_path / "model.safetensors").read_text() == "whole"


def test_a_block_that_took_its_file_away_leaves_the_old_one(tmp_path):
    target = write_text(tmp_path / "table.csv", "old")
    with pytest.raises(FileNotFoundError), atomic_file(target) as temporary:
        temporary.unlink()
    assert target.read_text() == "old"


def test_a_block_that_wrote_nothing_is_an_error_and_leaves_the_old_file(tmp_path):
    target = write_text(tmp_path / "table.csv", "old")
    with pytest.raises(OSError), atomic_file(target):  # noqa: PT011
        pass
    assert target.read_text() == "old"
    assert names(tmp_path) == ["table.csv"]


def test_a_folder_in_the_place_of_the_file_is_an_error(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(OSError, match="runs"):
        write_text(tmp_path / "runs", "x")
    assert names(tmp_path) == ["runs"]


def test_one_at_a_time_holds_a_lock(tmp_path):
    inside, most = 0, 0
    counting = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with exclusive_lock(tmp_path / "deep" / "lock"):
                with counting:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.001)
                with counting:
                    inside -= 1

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert (inside, most) == (0, 1)
