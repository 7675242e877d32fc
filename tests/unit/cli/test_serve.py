"""`diml serve`: what is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from diml.cli.serve import Serve

pytest.importorskip("fastapi", reason="fastapi is not installed; it is in the extra `web`")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"index": "a.index", "folder": Path()}, ValueError, "at most one of the two"),
        ({"index": "a.index", "grid": 7}, ValueError, "grid: an index has its own, got 7"),
        ({"index": "nowhere.index"}, FileNotFoundError, "nowhere.index"),
        ({"folder": Path("nowhere")}, FileNotFoundError, "no such folder"),
        ({"timeout": 0.0}, ValueError, "timeout: need more than 0"),
    ],
)
def test_wrong_options_are_told(options, error, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "index" in options:
        pytest.importorskip("lancedb", reason="lancedb is not installed; it is in the extra `search`")
    with pytest.raises(error, match=match):
        Serve(port=0, **options).run()
