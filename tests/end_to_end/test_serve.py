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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from calibrated import made_up_calibrator
from diml.calibration.calibrator import FILE
from diml.cli import main
from diml.search import build_index, open_store
from served import drawn, small_embedder, write_shop

pytest.importorskip("fastapi", reason="fastapi is not installed; it is in the extra `web`")
ROOT = Path(__file__).parents[2]


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`diml serve` with these options, started in a folder: the process and its address."""
    words = [sys.executable, "-m", "diml", "serve", "--port", "0", *options]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, text=True, cwd=folder, env=environment)
    try:
        yield process, _address(process, folder / "log")
    finally:
        process.kill()
        process.wait(30)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """The process, its address, and the folder that it runs in."""
    folder = tmp_path_factory.mktemp("serve")
    write_shop(folder / "shop", 3)
    (folder / "shop" / "torn.png").write_bytes(b"torn")
    for name, number in (("a", 0), ("b", 1)):
        drawn(number).save(folder / f"{name}.png")
    with serving(folder, "--folder", "shop", "--no-cache") as (process, address):
        yield process, address, folder


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
    assert "left out torn.png: is not an image of a known format" in log
    assert log.endswith("Stopped.\n")
    assert "Traceback" not in log
    with pytest.raises(urllib.error.URLError):
        ask(f"{address}/api/status")
    assert {path.name for path in folder.iterdir()} == {"shop", "a.png", "b.png", "log"}  # nothing was written


@pytest.mark.parametrize("index", ["shop.index", "shop.db"])
def test_an_index_is_served_with_its_number_of_images_its_model_and_its_calibration(tmp_path: Path, index: str) -> None:
    pytest.importorskip("milvus_lite" if index.endswith(".db") else "lancedb")
    embedder = small_embedder()
    embedder.save(tmp_path / "model")
    write_shop(tmp_path / "shop", 5)
    build_index(tmp_path / "shop", tmp_path / index, embedder, model=str(tmp_path / "model"))
    store = open_store(tmp_path / index)
    store.write_text(FILE, made_up_calibrator(embedder, kind="product").to_json())
    store.close()
    with serving(tmp_path, "--index", index, "--false-accept-rate", "0.02") as (process, address):
        status = ask(f"{address}/api/status")
        assert (status["gallery"]["count"], status["gallery"]["total"], status["gallery"]["name"]) == (5, 5, index)
        assert status["model"] == str(tmp_path / "model")
        assert (status["calibration"]["place"], status["calibration"]["kind"]) == ("the index", "product")
        (item,) = ask(f"{address}/api/gallery?count=1")["items"]
        request = urllib.request.Request(f"{address}/api/search?id={item['id']}&hits=3", method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            told = json.load(answer)
        assert all(pair["summary"]["whole"] for pair in told["pairs"])
        assert all(pair["hit"]["probability"] is not None for pair in told["pairs"])
        assert (told["in_gallery"]["gallery_images"], told["in_gallery"]["false_accept_rate"]) == (4, 0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    log = (tmp_path / "log").read_text()
    assert "Calibrated on made up (50 classes), in the index." in log
    assert f"Searching 5 images of {index}." in log


def test_a_calibration_that_does_not_fit_is_an_error_only_where_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embedder = small_embedder()
    embedder.save(tmp_path / "model")
    made_up_calibrator(embedder, fingerprint="0" * 64).save(tmp_path / "other")
    words = ["serve", "--port", "0", "--model", str(tmp_path / "model")]
    assert main([*words, "--calibration", str(tmp_path / "other")]) == 2
    assert "belongs to tiny with fingerprint 0000" in capsys.readouterr().err
    assert main([*words, "--false-accept-rate", "5"]) == 2
    assert "--false-accept-rate: need a fraction" in capsys.readouterr().err
    made_up_calibrator(embedder, fingerprint="0" * 64).save(tmp_path / "model")
    with serving(tmp_path, "--model", "model") as (_, address):
        status = ask(f"{address}/api/status")
    assert status["calibration"] is None
    assert status["calibration_notice"].startswith("The calibration of model is not used")
    assert "The calibration of model is not used" in (tmp_path / "log").read_text()
