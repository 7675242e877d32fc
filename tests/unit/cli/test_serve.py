"""`diml serve` before it serves: wrong words, folders, ports and missing packages end in one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from diml.cli import main

pytest.importorskip("fastapi", reason="fastapi is not installed; it is in the extra `web`")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--folder", "nowhere"], "folder nowhere: no such folder"),
        (["--folder", __file__], "need a folder, got a file"),
        (["--port", "70000"], "port: need 0 to 65535, got 70000"),
        (["--timeout", "0"], "timeout: need more than 0, got 0"),
        (["--max-megabytes", "-1"], "max_megabytes: need more than 0"),
        (["--max-requests", "0"], "max_requests: need more than 0"),
        (["--epsilon", "0"], "epsilon: need more than 0"),
        (["--port", "0", "--model", "no-such-model"], "no-such-model"),
        (["--index", "a.index", "--folder", "."], "at most one of the two"),
        (["--port", "0", "--index", "a.index", "--grid", "7"], "grid: an index has its own, got 7"),
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
    from diml.web import open_port

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
    assert "diml serve needs uvicorn" in (error := capsys.readouterr().err)
    assert "pip install 'diml[web]'" in error
