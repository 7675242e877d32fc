"""Several server processes behind one port: they share an index, are counted together, and end together."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diml.cli import main
from diml.search import build_index
from end_to_end.test_serve import ask, serving
from served import content_of, drawn, small_embedder, write_shop

pytest.importorskip("fastapi", reason="fastapi is not installed; it is in the extra `web`")
pytest.importorskip("lancedb", reason="lancedb is not installed; it is in the extra `search`")

ROOT = Path(__file__).parents[2]
TOKEN = "an-open-secret-of-tests"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    embedder = small_embedder()
    embedder.save(folder / "model")
    images = sorted(write_shop(folder / "shop", 6).rglob("*.png"))
    rows = [f"{file.relative_to(folder)},{file.parent.name},{place}.5,{place}" for place, file in enumerate(images)]
    (folder / "shop.csv").write_text("\n".join(["path,label,price,stock", *rows]))
    build_index(folder / "shop.csv", folder / "shop.index", embedder, model=str(folder / "model"))
    (folder / "token").write_text(TOKEN)
    return folder


@pytest.fixture
def started(shop: Path) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    options = ("--index", "shop.index", "--processes", "2", "--token-file", "token", "--allow-writes", "added")
    with serving(shop, *options, "--stop-seconds", "20") as (process, address):
        yield process, address, shop


def sent(address: str, method: str = "GET", body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {TOKEN}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    request = urllib.request.Request(address, data=body or None, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def form(**fields: str | bytes) -> tuple[bytes, dict[str, str]]:
    parts = []
    for name, value in fields.items():
        is_file = isinstance(value, bytes)
        head = f'content-disposition: form-data; name="{name}"' + ('; filename="a.png"' if is_file else "")
        parts.append(f"--limit\r\n{head}\r\n\r\n".encode() + (value if is_file else value.encode()) + b"\r\n")
    return b"".join([*parts, b"--limit--\r\n"]), {"content_type": "multipart/form-data; boundary=limit"}


def children_of(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found}
    return [pid for pid, line in lines.items() if b"spawn_main" in line]


def until(true: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def is_alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def counted(text: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name} (\S+)$", text, re.MULTILINE))


def test_writes_are_seen_by_all_who_are_counted_replaced_and_stopped_together(
    started: tuple[subprocess.Popen[str], str, Path],
) -> None:
    process, address, folder = started
    children = children_of(process.pid)
    assert len(children) == 2
    body, kind = form(image=content_of(drawn(11)), path="new/11.png", metadata='{"price": 99}')
    status, told = sent(f"{address}/api/images", "POST", body, **kind)
    assert status == 201, told
    key = json.loads(told)["id"]
    query, kind = form(query=content_of(drawn(11)))
    answers = Counter(
        json.loads(sent(f"{address}/api/search?hits=1", "POST", query, **kind)[1])["pairs"][0]["hit"]["id"]
        for _ in range(12)  # of new connections, which go to any process
    )
    assert answers == {key: 12}
    text = until(
        lambda: (told := sent(f"{address}/metrics")[1].decode()) and 'route="/api/search"} 12.0' in told and told
    )
    assert counted(text, r'diml_requests_total\{code="200",route="/api/search"\}') == 12
    assert counted(text, "diml_gallery_images") == 7
    assert {int(pid) for pid in re.findall(r'process_resident_memory_bytes\{pid="(\d+)"\}', text)} == set(children)
    assert sent(f"{address}/api/images/{key}", "DELETE")[0] == 200
    assert {sent(f"{address}/api/gallery/image?id={key}")[0] for _ in range(6)} == {404}

    assert documented(address, folder) == [201, 200]

    os.kill(children[0], signal.SIGKILL)
    children = until(
        lambda: (now := children_of(process.pid)) and len(now) == 2 and children[0] not in now and sorted(now)
    )
    until(lambda: str(children[-1]) in sent(f"{address}/metrics")[1].decode())
    text = sent(f"{address}/metrics")[1].decode()
    assert {int(pid) for pid in re.findall(r'process_resident_memory_bytes\{pid="(\d+)"\}', text)} == set(children)
    assert counted(text, r'diml_requests_total\{code="200",route="/api/search"\}') == 12  # what it counted stays

    host, port = re.findall(r"//(.*):(\d+)", address)[0]
    length = f"content-length: {len(query)}\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: {kind['content_type']}"
    with socket.create_connection((host, int(port)), timeout=30) as slow:
        slow.sendall(f"POST /api/search?hits=1 HTTP/1.1\r\nhost: {host}\r\n{length}\r\n\r\n".encode() + query[:-900])
        time.sleep(0.5)  # it has arrived
        process.send_signal(signal.SIGTERM)
        until(lambda: _refused(host, int(port)))
        slow.sendall(query[-900:])  # what was in progress is finished
        assert slow.recv(4096).startswith(b"HTTP/1.1 200 OK")
    assert process.wait(60) == 0
    assert not any(map(is_alive, children))
    log = (folder / "log").read_text()
    assert "with 2 processes" in log
    assert log.endswith("Stopped.\n")
    assert "Traceback" not in log
    assert " ended (signal 9); another one starts" in log


def documented(address: str, folder: Path) -> list[int]:
    """Statuses of the requests of docs/serve.md that change an index."""
    text = (ROOT / "docs/serve.md").read_text().partition("## Putting images into an index")[2]
    lines = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0].splitlines()
    assert lines[0].startswith("diml serve --index")
    drawn(12).save(folder / "a.png")
    (folder / "token.txt").write_text(TOKEN)
    key, statuses = "", []
    for line in lines[2:]:
        line = re.sub(r"[0-9a-f]{32}$", key, line).replace("http://127.0.0.1:8765", address)
        script = f"{lines[1]}\n{line} --silent --write-out '\\n%{{http_code}}'"
        done = subprocess.run(
            ["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=True, timeout=60
        )
        told, _, status = done.stdout.rpartition("\n")
        key = json.loads(told)["id"]
        statuses.append(int(status))
    return statuses


def _refused(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--processes", "0"], "processes: need 1 to 64, got 0"),
        (["--processes", "2", "--folder", "shop"], "processes: need --index to share between 2, got --folder"),
        (["--processes", "2", "--index", "shop.db"], "Milvus Lite, which admits one process"),
        (["--processes", "2", "--index", "none.index"], "there is none at none.index"),
        (["--allow-writes", "added"], "--allow-writes: need an index"),
        (["--allow-writes", "added", "--index", "shop.index"], "--allow-writes: need a token"),
        (["--allow-origins", "*"], "--allow-origins: need origins of pages"),
        (["--stop-seconds", "0"], "--stop-seconds: need more than 0"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(
    words: list[str], told: str, shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shop)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["serve", "--port", "0", *words]) == 2
    assert told in capsys.readouterr().err


def test_without_a_gallery_several_compare_and_none_outlives_the_parent(tmp_path: Path) -> None:
    small_embedder().save(tmp_path / "model")
    with serving(tmp_path, "--model", "model", "--processes", "2") as (process, address):
        assert ask(f"{address}/api/status")["gallery"] is None
        children = children_of(process.pid)
        assert len(children) == 2
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        until(lambda: not any(map(is_alive, children)), seconds=30)
