"""What can be known before the first image is read is refused there, by every command, in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from diml.cli import main
from diml.matching import Matcher
from diml.models import load_embedder
from diml.search import build_index
from end_to_end.small_runs import SMALL, make_images
from tiny_model import save_tiny_model

#: Images that were opened since the list was emptied; None while nothing is recorded.
_opened: list[str] | None = None


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and str(arguments[0]).endswith(".png"):
        _opened.append(str(arguments[0]))


sys.addaudithook(_record)  # every way to open a file is seen


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The images that the test has opened."""
    global _opened
    _opened = []
    yield _opened
    _opened = None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images.csv` with its images, `train.yaml`, a model without attention and an index of it."""
    folder = tmp_path_factory.mktemp("early")
    make_images(folder, train=4, test=2)
    save_tiny_model(folder / "model")
    build_index(folder / "class0", folder / "index", load_embedder(folder / "model"), model=str(folder / "model"))
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in SMALL.items()}
    plain |= {"data": str(folder / "images.csv"), "epochs": 1, "batch_size": 4}
    (folder / "train.yaml").write_text(yaml.safe_dump(plain))
    return folder


def words_of(name: str, place: Path, output: Path) -> list[str | Path]:
    """A small, valid call of a command that writes to `output`, where it can."""
    data: list[str | Path] = ["csv", "--data", place / "images.csv", "--model", place / "model"]
    loading = ["--no-cache", "--workers", "0"]
    pair = [place / "class0" / "0.png", place / "class0" / "1.png"]
    calls: dict[str, list[str | Path]] = {
        "evaluate": ["evaluate", *data, *loading, "--output", output],
        "evaluate --save": ["evaluate", *data, *loading, "--save", output],
        "compare": ["compare", *data, *loading, "--output", output],
        "tune": ["tune", *data, *loading, "--save", output],
        "report": ["report", place / "model", *data[:3], *loading, "--html", output / "page.html"],
        "calibrate": ["calibrate", *data, *loading, "--output", output],
        "faithfulness": ["faithfulness", *data, "--pairs", "2", "--no-grad-cam", "--no-sanity", "--output", output],
        "faithfulness --json": ["faithfulness", *data, "--pairs", "2", "--no-grad-cam", "--json", output / "all.json"],
        "audit": ["audit", *data, "--alpha", "--workers", "0", "--output", output],
        "explain": ["explain", *pair, "--model", place / "model", "--output", output / "why.png"],
        "explain --html": ["explain", *pair, "--model", place / "model", "--html", output / "why.html"],
        "explain --json": ["explain", *pair, "--model", place / "model", "--json", output / "why.json"],
        "embed": ["embed", place / "images.csv", *data[3:], *loading, "--output", output / "regions.npz"],
        "index build": ["index", "build", place / "images.csv", "--index", output, *data[3:], "--workers", "0"],
        "search": ["search", place / "index", pair[0], "--html", output / "hits.html"],
        "search --csv": ["search", place / "index", "--queries", place / "class1", "--csv", output / "hits.csv"],
        "duplicates": ["duplicates", place / "index", "--html", output / "copies.html"],
        "duplicates --csv": ["duplicates", place / "index", "--csv", output / "copies.csv"],
        "serve": ["serve", "--folder", place / "class0", "--model", place / "model", "--port", "0"],
        "serve --index": ["serve", "--index", place / "index", "--port", "0"],
        "train": ["train", "--config", place / "train.yaml", "--output", output],
        "train --frozen-backbone": [
            *("train", "csv", "--data", place / "images.csv", "--model", place / "model", "--frozen-backbone"),
            *("--batch-size", "4", "--per-class", "2", "--no-cache", "--output", output),
        ],
        "train-matcher": ["train-matcher", *data, *loading, "--no-tune", "--output", output],
    }
    return calls[name]


def refused(words: list[str | Path], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that has to be refused."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("diml.web.serve", _must_not_run)
        code = main([str(word) for word in words])
    told = capsys.readouterr().err
    assert code == 2, told
    assert "Traceback" not in told
    return told


def _must_not_run(*_: object, **__: object) -> None:
    raise AssertionError("it was not refused")


@pytest.mark.parametrize(
    "name",
    [
        *("evaluate", "compare", "report", "calibrate", "faithfulness", "audit", "explain", "index build", "search"),
        *("search --csv", "serve", "serve --index", "train", "train --frozen-backbone"),
    ],
)
def test_rollout_without_attention(
    name: str, place: Path, tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flag = ["--matchers", "paper", "weights=rollout"] if name == "compare" else ["--weights", "rollout"]
    told = refused([*words_of(name, place, tmp_path / "out"), *flag], capsys)
    assert "'rollout' needs the masses of the regions" in told
    assert "use 'cross_correlation' or 'uniform'" in told
    assert opened == []


def test_no_embedder_has_a_matcher_that_it_cannot_be_compared_by(place: Path) -> None:
    with pytest.raises(ValueError, match="'rollout' needs the masses"):
        load_embedder(place / "model", matcher=Matcher(weights="rollout"))
    with pytest.raises(ValueError, match=r"rollout_blocks is 0; use 'cross_correlation'"):
        load_embedder("test_vit", pretrained=False, size=64, rollout_blocks=0, matcher=Matcher(weights="rollout"))
    transformer = load_embedder("test_vit", pretrained=False, size=64)
    assert transformer.massless == ""
    transformer.check_matcher(Matcher(weights="rollout"))


OUTPUTS = (
    *("evaluate", "evaluate --save", "compare", "tune", "report", "calibrate", "faithfulness", "faithfulness --json"),
    *("audit", "explain", "explain --html", "explain --json", "embed", "index build", "search", "search --csv"),
    *("duplicates", "duplicates --csv"),
    *("train", "train --frozen-backbone", "train-matcher"),
)


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_cannot_be_written(
    name: str, place: Path, tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A file is in the place of the folder above: also root cannot write there."""
    (tmp_path / "file").touch()
    told = refused(words_of(name, place, tmp_path / "file" / "out"), capsys)
    assert str(tmp_path / "file") in told
    assert opened == []


@pytest.mark.parametrize(
    "name", ["report", "faithfulness --json", "explain", "explain --html", "embed", "search", "duplicates"]
)
def test_a_folder_in_the_place_of_a_file(
    name: str, place: Path, tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(name, place, tmp_path / "out")
    path = Path(words[-1])
    path.mkdir(parents=True)
    assert f"{path}: is a folder; name a file" in refused(words, capsys)
    assert opened == []


@pytest.mark.parametrize("name", ["evaluate --save", "tune", "train-matcher"])
def test_a_folder_with_something_else_is_not_replaced_by_an_embedder(
    name: str, place: Path, tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run holds an embedder too: its checkpoints would be lost."""
    run = save_tiny_model(tmp_path / "run")
    (run / "last.ckpt").mkdir()
    assert "last.ckpt), which would be lost" in refused(words_of(name, place, run), capsys)
    assert (run / "last.ckpt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    assert "holds no embedder" in refused(words_of(name, place, tmp_path / "other"), capsys)
    assert opened == []
