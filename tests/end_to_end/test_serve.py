"""`diml serve` as a command: it starts, answers, lists what it left out, and ends with Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from served import drawn, write_shop

pytest.importorskip("fastapi", reason="fastapi is not installed; it is in the extra `web`")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """The process, its address, and the folder that it runs in."""
    folder = tmp_path_factory.mktemp("serve")
    write_shop(folder / "shop", 3)
    (folder / "shop" / "torn.png").write_bytes(b"torn")
    for name, number in (("a", 0), ("b", 1)):
        drawn(number).save(folder / f"{name}.png")
    words = [sys.executable, "-m", "diml", "serve", "--folder", "shop", "--port", "0", "--no-cache"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, text=True, cwd=folder, env=environment)
    try:
        yield process, _address(process, folder / "log"), folder
    finally:
        process.kill()
        process.wait(30)


def _address(process: subprocess.Popen[str], log: Path) -> str:
    for _ in range(1200):
        found = re.search(r"Serving (http://127\.0\.0\.1:\d+)", log.read_text())
        if found:
            return found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def ask(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return json.load(answer)


def wait_until_ready(address: str) -> dict[str, Any]:
    for _ in range(1200):
        gallery: dict[str, Any] = ask(f"{address}/api/status")["gallery"]
        if gallery["phase"] != "embedding":
            return gallery
        time.sleep(0.1)
    raise AssertionError(gallery)


def test_a_process_answers_runs_the_document_and_ends_by_ctrl_c(
    started: tuple[subprocess.Popen[str], str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    process, address, folder = started
    gallery = wait_until_ready(address)
    assert [gallery[name] for name in ("phase", "done", "total", "count")] == ["ready", 4, 4, 3]
    assert gallery["bad"] == [{"path": "torn.png", "reason": "is not an image of a known format"}]
    monkeypatch.chdir(folder)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/serve.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        assert "http://127.0.0.1:8765" in block
        code = block.replace("http://127.0.0.1:8765", address)
        exec(compile(code, f"docs/serve.md, Python block {number + 1}", "exec"), {"__name__": "document"})
    shown = capsys.readouterr().out
    assert len(re.findall(r"^\d+ \S+ .* \d\.\d{3}$", shown, re.MULTILINE)) == 3, shown
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    log = (folder / "log").read_text()
    assert "Ready to search 3 images" in log
    assert "left out: torn.png: is not an image of a known format" in log
    assert log.endswith("Stopped.\n")
    assert "Traceback" not in log
    with pytest.raises(urllib.error.URLError):
        ask(f"{address}/api/status")
    assert {path.name for path in folder.iterdir()} == {"shop", "a.png", "b.png", "log"}  # nothing was written
