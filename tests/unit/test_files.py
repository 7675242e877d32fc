"""`atomic_file`: the new content or the old, never a part, nothing left behind."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from diml.files import (
    InUseError,
    atomic_file,
    atomic_folder,
    exclusive_lock,
    only_user,
    require_writable,
    scratch_folder,
    write_text,
)


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


def ended(process: subprocess.Popen[str]) -> int:
    """Wait for a process; its exit status."""
    process.communicate(timeout=60)
    return process.returncode


def in_another_process(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Run code that prints a line when it is where the test wants it."""
    words = [sys.executable, "-c", f"import os, signal, sys, time\nfrom pathlib import Path\n{code}"]
    process = subprocess.Popen([*words, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


WRITE = """
from diml.files import atomic_file
with atomic_file(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print(flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_was_writing_is_removed_by_the_next_and_that_of_a_living_one_is_not(tmp_path):
    target = write_text(tmp_path / "table.csv", "old")
    killed, living = (in_another_process(WRITE, target) for _ in range(2))
    killed.kill()
    ended(killed)
    (tmp_path / ".diml-abcdefgh").mkdir()  # of a process that was killed before it had its lock
    write_text(tmp_path / ".diml-of-users" / "notes", "kept")
    assert len(names(tmp_path)) == 5
    script = "from diml.files import write_text\nwrite_text(sys.argv[1], 'new')\nprint()"
    assert ended(in_another_process(script, target)) == 0
    kept = names(tmp_path)
    assert ".diml-of-users" in kept
    assert len(kept) == 3
    living.terminate()
    ended(living)
    assert target.read_text() == "new"


SWAP = """
from diml.files import atomic_folder
with atomic_folder(Path(sys.argv[1])) as new:
    (new / "a").write_text("new")
    count = 0
    def hook(event, arguments):
        global count
        if event in ("os.rename", "os.remove", "os.rmdir", "open", "os.mkdir", "os.listdir", "os.scandir"):
            count += 1
            if count == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
print()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_folder_is_replaced_or_not_whenever_the_process_is_killed(tmp_path):
    """Where it was killed between the two renames, the next writer finishes the swap."""
    seen = []
    for operation in range(1, 40):
        place = tmp_path / str(operation)
        (place / "folder").mkdir(parents=True)
        (place / "folder" / "a").write_text("old")
        code = ended(in_another_process(SWAP, place / "folder", operation))
        write_text(place / "other", "")
        assert names(place) == ["folder", "other"]
        seen.append((place / "folder" / "a").read_text())
        if code == 0:
            break
    assert code == 0
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {"old", "new"}


USE = """
from diml.files import only_user
with only_user(Path(sys.argv[1]), "output"):
    print(flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_user_at_a_time_until_it_ends_however_it_ends(tmp_path):
    folder = tmp_path / "run"
    user = in_another_process(USE, folder)
    with pytest.raises(InUseError, match=rf"output: .*run is in use by process {user.pid} on .*; wait"):  # noqa: SIM117
        with only_user(folder, "output"):
            pass
    user.send_signal(signal.SIGKILL)
    ended(user)
    with (
        only_user(folder, "output"),
        pytest.raises(InUseError, match=rf"in use by process {os.getpid()} on "),
        only_user(folder, "output"),
    ):
        pass
    with only_user(folder, "output"):
        pass


def test_a_disk_without_locks_is_used_without_and_that_is_said(tmp_path, monkeypatch):
    import fcntl

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserWarning, match="no locks"), only_user(tmp_path / "run", "output"):
        pass


def test_whether_results_can_be_written_is_known_before(tmp_path):
    require_writable(tmp_path / "deep" / "results", space=1000)
    assert names(tmp_path / "deep" / "results") == []
    with pytest.raises(OSError, match=r"results: need .* MiB of free disk space, got [\d,]+ MiB; free some"):
        require_writable(tmp_path / "results", space=1 << 60)
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        with pytest.raises(OSError, match="file"):
            require_writable(tmp_path / place)


def test_concurrent_writers_of_one_file_leave_one_of_their_contents(tmp_path):
    def work(text: str) -> None:
        for _ in range(20):
            write_text(tmp_path / "table.csv", text)

    workers = [threading.Thread(target=work, args=(letter * 10_000,)) for letter in "abcd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert (tmp_path / "table.csv").read_text() in {letter * 10_000 for letter in "abcd"}
    assert names(tmp_path) == ["table.csv"]


def test_a_scratch_folder_may_be_renamed_away(tmp_path):
    with scratch_folder(tmp_path / "asset") as scratch:
        (scratch / "unpacked").mkdir()
        (scratch / "unpacked" / "a").touch()
        shutil.copy(scratch / "unpacked" / "a", scratch / "b")
        (scratch / "unpacked").rename(tmp_path / "asset")
    assert names(tmp_path) == ["asset"]


def test_a_folder_is_replaced_by_another(tmp_path):
    for number in range(2):
        with atomic_folder(tmp_path / "model") as new:
            (new / f"{number}").touch()
    assert names(tmp_path / "model") == ["1"]
