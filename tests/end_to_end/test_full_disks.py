"""A full disk and a read-only one: one line, earlier files whole, and what was begun goes on once there is space.

The disks are small ones in memory, which only root can mount.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import yaml

from diml.models import load_embedder
from diml.search import open_store
from end_to_end.small_runs import SMALL, make_images, tensors_of
from end_to_end.stopping import MarkedCommand
from tiny_model import save_tiny_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts disks, as root"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disks")
    make_images(folder / "images")
    save_tiny_model(folder / "model")
    return folder


@pytest.fixture
def disk(tmp_path):
    """A disk of 24 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", path], check=False).returncode:
        pytest.skip("disks cannot be mounted here")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def fill(disk, left: int = 0) -> None:
    """Fill a disk up to some bytes."""
    space = os.statvfs(disk)
    with (disk / "filler").open("wb") as file:
        file.write(bytes(max(0, space.f_bavail * space.f_frsize - left)))


def read_only(disk) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


def words(name, place, disk):
    csv, model = place / "images" / "images.csv", place / "model"
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in SMALL.items()}
    base = plain | {"data": str(csv), "epochs": 1}
    (place / "train.yaml").write_text(yaml.safe_dump(base))
    (place / "sweep.yaml").write_text(yaml.safe_dump({"base": base, "runs": {"a": {}}, "output": str(disk / "sweep")}))
    images = [place / "images" / f"class{number}" / "0.png" for number in (0, 1)]
    return {
        "index build": ("index", "build", csv, "--index", disk / "index", "--model", model),
        "train": ("train", "csv", "--config", place / "train.yaml", "--output", disk / "run", "--no-progress"),
        "sweep": ("sweep", place / "sweep.yaml", "--no-progress"),
        "evaluate": ("evaluate", "csv", "--data", csv, "--model", model, "--no-cache", "--output", disk / "evaluation"),
        "explain": ("explain", *images, "--model", model, "--output", disk / "why.png", "--html", disk / "why.html"),
    }[name]


def left_over(disk) -> list[str]:
    return [str(path) for path in disk.rglob(".diml-*")] + [str(path) for path in disk.rglob(".*.partial")]


def files(disk) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in disk.rglob("*") if path.is_file() and path.name != "filler"}


COMMANDS = ("index build", "train", "sweep", "evaluate", "explain")


@pytest.mark.parametrize("why", ["full", "read-only"])
@pytest.mark.parametrize("name", COMMANDS)
def test_one_line_and_earlier_files_are_whole(place, disk, name, why):
    with MarkedCommand(*words(name, place, disk)) as first:
        code, _, error = first.end(300)
        assert code == 0, error
    before = files(disk)
    assert before
    if why == "full":
        fill(disk)
    else:
        read_only(disk)
    again = list(words(name, place, disk))
    if name == "train":  # into another folder: there is a run in this one
        again[again.index(disk / "run")] = disk / "other"
    if name == "sweep":
        text = (place / "sweep.yaml").read_text().replace("runs:\n  a:", "runs:\n  b:")
        (place / "sweep.yaml").write_text(text)
    if name == "index build":
        again += ["--batch-size", "7"]
        (place / "images" / "class0" / "0.png").touch()
    with MarkedCommand(*again) as second:
        code, _, error = second.end(300)
    assert "Traceback" not in error
    if name != "index build":  # nothing new: it may have nothing to write
        assert code != 0
        said = ("the disk is full; free", "MB are free; free") if why == "full" else ("only readable", "not writable")
        assert any(part in error for part in said), error
    after = files(disk)
    assert {path for path in before if after.get(path) != before[path] and not path.endswith(".in_use")} == set()
    assert left_over(disk) == []


def test_a_training_goes_on_when_there_is_space_again(place, disk, tmp_path):
    longer = ("--epochs", "20")
    with MarkedCommand(*words("train", place, tmp_path), *longer) as whole:
        code, _, error = whole.end(300)
        assert code == 0, error
    with MarkedCommand(*words("train", place, disk), *longer) as first:
        first.wait_for_file(disk / "run" / "last.ckpt")
        fill(disk)
        code, _, error = first.end(300)
    assert code == 2, error
    assert "disk is full" in error
    assert "Traceback" not in error
    assert load_embedder(disk / "run" / "last.ckpt").dim == 16
    (disk / "filler").unlink()
    with MarkedCommand("train", "--resume", "--output", disk / "run", "--no-progress") as second:
        code, _, error = second.end(300)
        assert code == 0, error
    ours, theirs = (tensors_of(folder / "run" / "last.ckpt") for folder in (disk, tmp_path))
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)
    assert left_over(disk) == []


def test_an_index_goes_on_when_there_is_space_again(place, disk, tmp_path):
    with MarkedCommand(*words("index build", place, tmp_path)) as whole:
        assert whole.end(300)[0] == 0
    fill(disk, left=60_000)
    with MarkedCommand(*words("index build", place, disk), "--commit-every", "8", "--batch-size", "8") as first:
        code, _, error = first.end(300)
    assert code == 2, error
    assert "disk is full" in error
    (disk / "filler").unlink()
    time.sleep(0.1)
    with MarkedCommand(*words("index build", place, disk)) as second:
        code, _, error = second.end(300)
        assert code == 0, error
    ours, theirs = (open_store(folder / "index").count() for folder in (disk, tmp_path))
    assert ours == theirs
