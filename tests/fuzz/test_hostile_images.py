"""Every command on a folder with damaged, disguised and unusual files: it completes and names them, or refuses as
asked."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from diml.cli.errors import one_line
from fuzz.hostile_images import NAMED, READ, make_folder
from fuzz.mutations import ran

#: Sizes of the folder: classes, sound images of each, and how often each hostile file stands in it.
SIZES = [
    pytest.param((6, 6, 1), id="about 60 images"),
    pytest.param((20, 48, 2), id="1,000 images, of which more than 50 are hostile", marks=pytest.mark.slow),
]
SECONDS = 600


class HangError(BaseException):
    """A command took too long, as when it waits for a named pipe."""


@contextmanager
def patience() -> Iterator[None]:
    def hang(_number: int, _frame: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module", params=SIZES)
def hostile(request, tmp_path_factory) -> tuple[Path, list[str]]:
    """The folder, and the names that have to be named."""
    classes, each, copies = request.param
    folder = tmp_path_factory.mktemp("hostile") / "images"
    return folder, make_folder(folder, classes=classes, each=each, copies=copies)


@pytest.fixture(scope="module")
def words(hostile, model) -> dict[str, list[str]]:
    """A call of every command that embeds the images of a data set."""
    data = ["folder", "--data", str(hostile[0])]
    named, small = ["--model", str(model)], ["--workers", "0", "--no-cache"]
    return {
        "evaluate": [*data, *named, *small, "--rerank-at", "3"],
        "compare": [*data, *named, *small, "--rerank-at", "3"],
        "tune": [*data, "--protocol", "class_disjoint", *named, *small, "--rerank-at", "3"],
        "report": [str(model), *data, *small, "--rerank-at", "3", "--queries", "2"],
    }


COMMANDS = ("evaluate", "compare", "tune", "report")


def told_names(told: str, names: list[str]) -> list[str]:
    """The names that are missing from what was told, ends of lines in names and tables aside."""
    joined = "".join(told.split())
    return [name for name in names if "".join(one_line(name).split()) not in joined]


@pytest.mark.parametrize("command", COMMANDS)
def test_by_default_the_first_unreadable_image_is_named(command, hostile, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with patience():
        code, told = ran([command, *words[command]])
    assert code == 2, told
    error = next(line for line in told.splitlines() if line.startswith(f"diml {command}: "))
    assert len(told_names(error, hostile[1])) == len(hostile[1]) - 1, told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_unreadable_images_are_left_out_and_all_named_where_asked(command, hostile, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with patience():
        code, told = ran([command, *words[command], "--on-bad-image", "skip"])
    assert code == 0, told[-3000:]
    for name in told_names(told, hostile[1]):  # a part of the classes is left to other uses, as by `tune`
        folder = next(hostile[0].glob(f"*/{name}")).parent.name
        assert command == "tune"
        assert f"/{folder}/" not in told


def test_data_sets_are_counted(hostile):
    with patience():
        code, told = ran(["datasets", "check", "folder", "--data", hostile[0], "--json"])
    assert code in (0, 1), told
    sound = sum(1 for path in hostile[0].glob("*/[0-9]*.png") if path.is_file() and path.stem.isdigit())
    assert json.loads(told[told.index("{") : told.rindex("}") + 1])["images"] >= sound


def test_index_names_them_and_finds_the_rest(hostile, model, tmp_path):
    folder, named = hostile
    index = tmp_path / "hostile.index"
    with patience():
        code, told = ran(["index", "build", folder, "--index", index, "--model", model, "--workers", "0"])
        assert code == 1, told
        assert told_names(told, named) == []
        again = ran(["index", "build", folder, "--index", index, "--model", model, "--workers", "0"])
        assert again[0] == 1
        assert "0 embedded" in again[1]
        assert ran(["index", "info", index])[0] == 0
        assert ran(["index", "verify", index])[0] == 0
        code, told = ran(["search", index, folder / "class0" / "0.png", "-k", "5", "--json"])
    assert code == 0
    assert len(json.loads(told[told.index("{") : told.rindex("}") + 1])["hits"]) == 5


def test_a_training_refuses_them_or_leaves_them_out(hostile, tmp_path):
    folder, named = hostile
    words = ["train", "folder", "--data", folder, "--model", "test_resnet", "--no-pretrained", "--size", "32"]
    words += ["--dim", "8", "--grid", "2", "--batch-size", "4", "--epochs", "1", "--rerank-at", "2"]
    words += ["--sampler-options", "batches_per_epoch=4", "--validation-fraction", "0"]
    with patience():
        code, told = ran([*words, "--output", tmp_path / "refused"])
        assert code == 2, told[-3000:]
        assert len(told_names(told, named)) < len(named)
        code, told = ran([*words, "--output", tmp_path / "left-out", "--on-bad-image", "skip"])
    assert code == 0, told[-3000:]
    assert (tmp_path / "left-out" / "evaluation.json").is_file()


def test_a_sweep_leaves_them_out(hostile, tmp_path):
    (tmp_path / "sweep.yaml").write_text(
        f"output: {json.dumps(str(tmp_path / 'runs'))}\nbase: {{dataset: folder, data: {json.dumps(str(hostile[0]))}, "
        "model: test_resnet, pretrained: false, size: 32, dim: 8, grid: 2, batch_size: 4, epochs: 1, rerank_at: 2, "
        "validation_fraction: 0, sampler_options: {batches_per_epoch: 2}, on_bad_image: skip}\nruns: {a: {}}\n"
    )
    with patience():
        code, told = ran(["sweep", tmp_path / "sweep.yaml"])
    assert code == 0, told[-3000:]


@pytest.mark.parametrize("command", ["calibrate", "faithfulness", "audit"])
def test_other_commands_complete_or_name_one(command, hostile, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = {
        "calibrate": ["--rerank-at", "3"],
        "faithfulness": ["--pairs", "2", "--no-grad-cam", "--no-sanity", "--no-controls", "--no-interaction"],
        "audit": ["--alpha"],
    }
    with patience():
        code, told = ran([command, "folder", "--data", hostile[0], "--model", model, *own[command]])
    assert code in (0, 2)
    named = len(told_names(told, hostile[1])) < len(hostile[1])
    assert code == 0 or named or "need a query with another image of its class" in told, told


def _place_of(name: str, folder: Path) -> Path:
    return next(path for path in folder.glob("*/*") if path.name == name)


def _written(folder: Path) -> list[object]:
    return ["--html", folder / "a.html", "--json", folder / "a.json", "--output", folder / "a.png"]


def test_unusual_names_stay_names(hostile, model, tmp_path):
    """As hits of one query, with page and JSON."""
    names = [name for name in READ if not name.isascii() or not name.isprintable() or name[0] == "-"]
    hits, sound = [_place_of(name, hostile[0]) for name in names], hostile[0] / "class0" / "0.png"
    with patience():
        code, told = ran(["explain", "--query", sound, "--hits", *hits, "--model", model, *_written(tmp_path)[:4]])
    assert code == 0, told
    assert len(json.loads((tmp_path / "a.json").read_text())["hits"]) == len(names) == 5
    assert "\x1b" not in told + (tmp_path / "a.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_a_pair_with_an_image_that_can_be_read_is_explained(name, hostile, model, tmp_path):
    path, sound = _place_of(name, hostile[0]), hostile[0] / "class0" / "0.png"
    with patience():
        assert ran(["explain", "--model", model, *_written(tmp_path), "--", path, sound])[0] == 0
        assert ran(["explain", "--model", model, "--", sound, path])[0] == 0


@pytest.mark.parametrize("name", [*NAMED, "pipe.png", "loop.png", "broken.png", "folder.png"])
def test_what_cannot_be_read_is_named_and_nothing_is_written(name, hostile, model, tmp_path):
    with patience():
        code, told = ran(
            ["explain", "--model", model, *_written(tmp_path), _place_of(name, hostile[0]), _place_of(name, hostile[0])]
        )
    assert code == 2, told
    assert told_names(told, [name]) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads files without permission")
def test_an_image_without_permission_is_named(hostile, model):
    code, told = ran(
        ["explain", hostile[0] / "class0" / "locked.png", hostile[0] / "class0" / "0.png", "--model", model]
    )
    assert code == 2
    assert "locked.png" in told
