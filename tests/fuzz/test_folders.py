"""Folders that were damaged - of an embedder, a run, an index, a calibration - are named in one line."""

from __future__ import annotations

import json
import os
import pickle
import zipfile

import pytest
import torch
from hypothesis import strategies as st

from fuzz.mutations import (
    damaged_bytes,
    damaged_values,
    edited,
    edits,
    few_or,
    files_of,
    fresh_copy,
    fuzz,
    ran,
    resealed,
)

NUMBER = st.integers(0, 10**6)


@few_or(500, 12)
def test_folder_of_an_embedder(count, place, model, pair_of_images):
    @fuzz(count, NUMBER, damaged_bytes())
    def check(number, damage):
        folder = fresh_copy(model, place / "damaged-model")
        name = files_of(folder)[number % len(files_of(folder))]
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        ran(["explain", *pair_of_images, "--model", folder])

    check()


@few_or(500, 25)
def test_settings_of_an_embedder(count, place, model, pair_of_images):
    settings = json.loads((model / "embedder.json").read_text())
    folder = fresh_copy(model, place / "damaged-settings")

    @fuzz(count, damaged_values(settings))
    def check(given):
        (folder / "embedder.json").write_text(resealed(given))
        ran(["explain", *pair_of_images, "--model", folder])

    check()


@few_or(300, 3)
def test_folder_of_a_run_that_is_resumed(count, place, run):
    @fuzz(count, NUMBER, damaged_bytes())
    def check(number, damage):
        folder = fresh_copy(run, place / "damaged-run")
        name = files_of(folder)[number % len(files_of(folder))]
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        ran(["train", "--resume", "--output", folder])
        ran(["evaluate", folder, "--workers", "0", "--no-cache", "--rerank-at", "0"])

    check()


@few_or(300, 10)
def test_state_of_a_checkpoint(count, place, run):
    state = next(path for path in (run / "last.ckpt").glob("*.json") if path.name != "embedder.json")
    document = json.loads(state.read_text())

    @fuzz(count, edits())
    def check(changes):
        folder = fresh_copy(run, place / "damaged-state")
        (folder / state.relative_to(run)).write_text(resealed(edited(document, changes)))
        (folder / "evaluation.json").unlink()
        ran(["train", "--resume", "--output", folder])

    check()


@few_or(300, 8)
def test_folder_of_an_index(count, place, index, pair_of_images):
    """Every command that opens an index; what was damaged is found, or did not matter."""

    @fuzz(count, NUMBER, damaged_bytes())
    def check(number, damage):
        folder = fresh_copy(index, place / "damaged.index")
        name = files_of(folder)[number % len(files_of(folder))]
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        ran(["index", "info", folder])
        ran(["index", "verify", folder])
        ran(["search", folder, pair_of_images[0], "-k", "3", "--explain", "none"])

    check()


@few_or(300, 15)
def test_file_of_a_calibration(count, place, index, pair_of_images, calibration):
    document = json.loads(calibration.read_text())
    path = place / "damaged-calibration.json"

    @fuzz(count, damaged_values(document))
    def check(given):
        path.write_text(resealed(given))
        ran(["search", index, pair_of_images[0], "-k", "2", "--explain", "none", "--calibration", path])

    check()


# ------------------------------------------------------------------------------------------------ hostile checkpoints


class _Runs:
    """Pickled, it calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _hostile(mark: str) -> dict[str, object]:
    import runpy
    import subprocess

    touch = f"open({mark!r}, 'w')"
    return {
        "os.system": _Runs(os.system, f"touch {mark}"),
        "eval": _Runs(eval, touch),
        "exec": _Runs(exec, touch),
        "open": _Runs(open, mark, "w"),
        "compile": _Runs(compile, touch, "x", "exec"),
        "Popen": _Runs(subprocess.Popen, ["touch", mark]),
        "check_output": _Runs(subprocess.check_output, ["touch", mark]),
        "run_path": _Runs(runpy.run_path, mark),
        "getattr": _Runs(getattr, "x", "upper"),
        "import": _Runs(__import__, "antigravity"),
        "mkdir": _Runs(os.mkdir, mark),
        "hub": _Runs(torch.hub.load, "a/b", "c"),
        "load": _Runs(torch.load, mark),
        "set_num_threads": _Runs(torch.set_num_threads, 1),
        "in a state": {"state_dict": {"model.weight": _Runs(os.system, f"touch {mark}")}},
    }


@pytest.mark.parametrize(
    ("form", "name"),
    [(form, name) for form in ("pickle", "torch", "zip") for name in _hostile("x") if form == "torch" or "s" in name],
)
def test_a_hostile_checkpoint_runs_no_code(name, form, tmp_path, pair_of_images):
    mark, path = tmp_path / "mark", tmp_path / "weights.pth"
    content = _hostile(str(mark))[name]
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    elif form == "torch":
        torch.save(content, path)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(content))
            archive.writestr("archive/version", "3")
    code, told = ran(["explain", *pair_of_images, "--model", path, "--architecture", "resnet50"])
    assert code == 2
    assert str(path) in told or "weights.pth" in told
    assert not mark.exists()


@few_or(300, 3)
def test_checkpoint_files(count, tmp_path, pair_of_images):
    path = tmp_path / "weights.pth"
    torch.save({"model.weight": torch.ones(3, 3), "epoch": 3}, path)
    sound = path.read_bytes()

    @fuzz(count, damaged_bytes())
    def check(damage):
        path.write_bytes(damage(sound))
        assert ran(["explain", *pair_of_images, "--model", path, "--architecture", "resnet50"])[0] == 2

    check()
