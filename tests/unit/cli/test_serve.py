"""`diml serve` before it serves: wrong options, folders, ports and missing packages end in one line; the matcher."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diml.cli import main
from diml.cli.options import MatcherOptions, ModelOptions
from diml.cli.serve import ServeCommand
from diml.matching import Matcher
from served import content_of, drawn, small_embedder, write_shop

pytest.importorskip("fastapi", reason="fastapi is not installed; it is in the extra `web`")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--folder", "nowhere"], "folder nowhere: no such folder"),
        (["--folder", __file__], "need a folder, got a file"),
        (["--port", "70000"], "port: need 0 to 65535, got 70000"),
        (["--timeout", "0"], "timeout: need more than 0, got 0"),
        (["--max-megabytes", "-1"], "--max-megabytes: need more than 0"),
        (["--max-requests", "0"], "--max-requests: need more than 0"),
        (["--epsilon", "-1"], "epsilon: need a finite number of at least 0"),
        (["--port", "0", "--model", "no-such-model"], "no-such-model"),
        (["--index", "a.index", "--folder", "."], "at most one of the two"),
        (["--port", "0", "--index", "a.index", "--grid", "7"], "grid: an index has its own, got 7"),
        (["--port", "0", "--index", "a.index", "--reducing-gap", "2"], "omit --reducing-gap"),
        (["--port", "0", "--index", "nowhere.index"], "nowhere.index"),
    ],
)
def test_errors_of_use_are_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_an_empty_folder_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", "--folder", str(tmp_path)]) == 2
    assert "need at least one image in it, got none" in capsys.readouterr().err


def test_a_port_in_use_is_told_with_another(capsys: pytest.CaptureFixture[str]) -> None:
    from diml.web.server import open_port

    with open_port(0) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert f"port: {port} of 127.0.0.1 is in use" in capsys.readouterr().err


def test_a_missing_extra_is_told_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "uvicorn" else real(name, *more)
    )
    assert main(["serve"]) == 2
    assert "the server: uvicorn not installed" in (error := capsys.readouterr().err)
    assert "pip install 'diml[web]'" in error


TRAINED = Matcher(epsilon=0.02)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an embedder that compares with epsilon 0.02."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    small_embedder().with_settings(matcher=TRAINED).save(folder)
    return folder


@pytest.fixture(params=["model", "folder", "lance", "milvus"])
def command(request: pytest.FixtureRequest, trained: Path, tmp_path: Path) -> dict[str, Any]:
    """Arguments of `diml serve` with a model, a folder, or an index of either database."""
    if request.param == "model":
        return {"model": ModelOptions(model=str(trained))}
    shop = write_shop(tmp_path / "shop", 4)
    if request.param == "folder":
        return {"folder": shop, "model": ModelOptions(model=str(trained)), "cache": False}
    pytest.importorskip("lancedb" if request.param == "lance" else "milvus_lite")
    index = str(tmp_path / ("shop.index" if request.param == "lance" else "shop.db"))
    assert main(["index", "build", str(shop), "--index", index, "--model", str(trained)]) == 0
    return {"index": index}


@pytest.fixture
def served(command: dict[str, Any]) -> Iterator[Any]:
    """`served(**options)`: a client of the application of the command."""
    from fastapi.testclient import TestClient

    from diml.web import create_app

    engines = []

    def make(**options: Any) -> TestClient:
        engine, _, lines = ServeCommand(**command, **options)._engine()
        print(*lines, sep="\n")
        engines.append(engine)
        if command.keys() & {"folder"}:
            engine.gallery.wait(60)
        return TestClient(create_app(engine), base_url="http://127.0.0.1:8765")

    yield make
    for engine in engines:
        if engine.gallery is not None:
            engine.gallery.stop()


@pytest.mark.parametrize(
    ("options", "matcher"),
    [
        ({}, TRAINED),
        ({"matcher": MatcherOptions(structural_weight=2.0)}, Matcher(epsilon=0.02, structural_weight=2.0)),
        ({"matcher": MatcherOptions(epsilon=0.3, weights="uniform")}, Matcher(epsilon=0.3, weights="uniform")),
    ],
)
def test_the_matcher_is_that_of_the_model_or_index_unless_told_otherwise(
    served: Any, command: dict[str, Any], options: Any, matcher: Matcher, capsys: pytest.CaptureFixture[str]
) -> None:
    client = served(**options)
    assert ("given on the command line" in capsys.readouterr().out) == bool(options)
    assert client.get("/api/status").json()["matcher"] == matcher.to_dict()
    a, b = content_of(drawn(0)), content_of(drawn(1))
    told = client.post("/api/match", files={"query": ("a.png", a), "gallery": ("b.png", b)}).json()
    assert told["settings"].items() >= matcher.to_dict().items()
    embedder = small_embedder()
    expected = matcher.match(embedder.embed([a]), embedder.embed([b]))
    assert told["pairs"][0]["ranked_by"] == pytest.approx(float(expected.score), abs=1e-5)
    if "index" not in command and "folder" not in command:
        return
    hits = client.post("/api/search?hits=4", files={"query": ("a.png", a)}).json()
    assert hits["settings"].items() >= (matcher.to_dict() | {"rerank_at": 100}).items()
    scores = [pair["score"] for pair in hits["pairs"]]
    assert scores == sorted(scores, reverse=True)
    best = drawn(next(number for number in range(4) if f"{number:02}" in hits["pairs"][0]["names"]["gallery"]))
    assert scores[0] == pytest.approx(float(matcher.match(embedder.embed([a]), embedder.embed([best])).score), abs=1e-2)
