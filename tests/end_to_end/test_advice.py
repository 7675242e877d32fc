"""The command that an evaluation advises is run as it was printed, and so is the one that that advises, and so on."""

from __future__ import annotations

import shlex
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from diml.cli import main
from diml.matching import Matcher
from diml.models import load_embedder
from diml.training import train
from diml.training.presets import FROZEN_BACKBONE
from end_to_end.small_runs import small_config

#: Advice leads to advice at most so often.
LONGEST = 4


@pytest.fixture(autouse=True)
def _short(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch of a training is enough, but in the slow test."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr("diml.training.config.FROZEN_BACKBONE", FROZEN_BACKBONE | {"epochs": 1})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: `images.csv`, its class folders in `photos`, weights, saved models."""
    lines = ["path,label,split"]
    random = np.random.default_rng(0)
    for number in range(8):
        (tmp_path / "photos" / f"class{number}").mkdir(parents=True)
        for shot in range(4):  # noise, in which no ranking is perfect
            path = tmp_path / "photos" / f"class{number}" / f"{shot}.png"
            Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
            lines.append(f"{path.relative_to(tmp_path)},class{number},{'train' if number < 6 else 'test'}")
    (tmp_path / "images.csv").write_text("\n".join(lines))
    few = [lines[0], *(line for line in lines[1:] if "class0" in line or "test" in line)]
    (tmp_path / "few.csv").write_text("\n".join(few))  # one training class: nothing to train or to tune on
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "own weights.safetensors")
        for head in ("identity", "linear"):
            matcher = Matcher(structural_weight=0.0, share=0.8)
            options: dict[str, Any] = {"pretrained": False, "size": 64, "head": head, "matcher": matcher}
            load_embedder("test_resnet", **options).save(tmp_path / head)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIML_CACHE", str(tmp_path / "cache"))
    return tmp_path


OWN = ("--model", "test_resnet", "--weights-file", "own weights.safetensors", "--size", "64", "--grid", "2")
FLAT = ("--structural-weight", "0")  # re-ranking is then the plain ranking: it shows no gain


def advised(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str] | None:
    """Run a command, which has to succeed; the words that its last line advises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few images: a whitening has fewer channels, a batch fewer classes
        assert main(words) == 0, (shlex.join(words), capsys.readouterr().err)
    lines = capsys.readouterr().out.rstrip().splitlines()
    if len(lines) < 2 or not lines[-2].endswith("Next, try:"):
        return None
    name, *found = shlex.split(lines[-1])
    assert name == "diml"
    return found


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["folder", "--data", "photos", *OWN, "--head", "identity"], "evaluate"),
        (["folder", "--data", "photos", *OWN, "--head", "whiten", *FLAT], "compare"),
        (["folder", "--data", "photos", "--protocol", "class_disjoint", *OWN, "--dim", "16", *FLAT], "train"),
        (["csv", "--data", "images.csv", *OWN, "--head", "whiten", "--dim", "16", "--no-cache", *FLAT], "train"),
        (["csv", "--data", "few.csv", *OWN, "--head", "whiten", "--dim", "16", *FLAT], "compare"),
        (["csv", "--data", "images.csv", "--model", "identity", "--no-cache"], "tune"),
        (["csv", "--data", "images.csv", "--model", "linear", "--resize", "square"], "train"),
        (["folder", "--data", "photos", "--model", "linear"], "compare"),
    ],
)
def test_the_advised_commands_run(
    words: list[str], expected: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command: list[str] | None = ["evaluate", *words, "--no-copies"]
    seen = []
    while command is not None and len(seen) < LONGEST:
        command = advised(command, capsys)
        seen.append(command)
    assert seen[0] is not None
    assert seen[0][0] == expected
    assert command is None, "advice in a circle"


def test_unreadable_images_are_left_out_by_the_advised_command_too(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "photos" / "class7" / "0.png").write_bytes(b"no image")
    (place / "photos" / "class1" / "0.png").write_bytes(b"no image")
    data = ["csv", "--data", "images.csv", "--on-bad-image", "skip", "--no-copies"]
    for model, expected in (
        ([*OWN, "--head", "whiten", "--dim", "16", *FLAT], "train"),
        (["--model", "identity"], "tune"),
    ):
        found = advised(["evaluate", *data, *model], capsys)
        assert found is not None
        assert (found[0], "--on-bad-image" in found) == (expected, True)
        advised(found, capsys)


def test_a_run_and_folders_that_are_there_already(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(small_config(Path("images.csv"), Path("runs/csv-head"), epochs=1, batch_size=4))
    assert advised(["evaluate", "runs/csv-head", *FLAT, "--no-copies"], capsys) == ["tune", "runs/csv-head"]
    words = ["csv", "--data", "images.csv", *OWN, "--head", "whiten", "--dim", "16", *FLAT, "--no-copies"]
    found = advised(["evaluate", *words], capsys)
    assert found is not None
    assert found[found.index("--output") + 1] == "runs/csv-head-2"
    advised(found, capsys)
    advised(["tune", "runs/csv-head"], capsys)


@pytest.mark.slow
def test_grocery_photos_from_a_new_user_to_a_trained_head(
    grocery_root: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As somebody with a folder of photos would go, from advice to advice, with the network that needs no hub."""
    classes = sorted(path for path in (grocery_root / "train" / "Fruit").iterdir() if path.is_dir())
    for folder in classes[:8]:
        images = sorted(folder.rglob("*.jpg"))[:5]
        (place / "shop" / folder.name).mkdir(parents=True)
        for image in images:
            shutil.copy(image, place / "shop" / folder.name)
    words = ["folder", "--data", "shop", "--size", "96", "--no-copies"]
    first = advised(["evaluate", *words, "--head", "identity", *FLAT], capsys)
    assert first is not None
    assert first[0] == "evaluate"
    advised(first, capsys)
    again = [*words, "--protocol", "class_disjoint", "--dim", "32", *FLAT]
    found = advised(["evaluate", *again], capsys)
    assert found is not None
    assert (found[0], "--frozen-backbone" in found) == ("train", True)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert main(found) == 0
    assert any("batches of 12 images, 4 of each of 3 classes" in str(warning.message) for warning in warned)
    assert load_embedder(place / found[found.index("--output") + 1]).config.head == "linear"
