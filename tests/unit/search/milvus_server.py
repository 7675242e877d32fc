"""A Milvus server from the `milvus` wheel for the tests of `make test-milvus`: data in a temporary folder, free ports.

The wheel lives in an environment of its own (`.milvus/`, or where `DIML_MILVUS_PYTHON` points).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PYTHON = Path(os.environ.get("DIML_MILVUS_PYTHON", Path(__file__).resolve().parents[3] / ".milvus" / "bin" / "python"))
# It ends the server when its standard input does, so also when the tests are killed. The address is the one that the
# parts of the server tell each other; it listens on all, which is why `make test-milvus` gives it a network of its own.
_START = """
import json, sys
from milvus import MilvusServer, MilvusServerConfig
server = MilvusServer(MilvusServerConfig(), wait_for_started=False, data_dir=sys.argv[1])
for part in ("rootCoord", "proxy", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode"):
    server.config.set(part + ".ip", "127.0.0.1")
server.config.set("log.level", "error")
server.start()
try:
    server.wait_started(timeout=180_000)
    print(json.dumps({"pid": server.server_proc.pid, "port": server.listen_port}), flush=True)
    sys.stdin.read()
finally:
    server.stop()
"""


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[str]:
    """Start a server, give its address, stop it by its process number."""
    if not PYTHON.exists():
        pytest.fail(f"no server to start: {PYTHON} does not exist; run: make test-milvus")
    command = [str(PYTHON), "-c", _START, str(folder)]
    with (folder / "started.log").open("w") as log:
        starter = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        assert starter.stdin is not None
        assert starter.stdout is not None
        try:
            line = starter.stdout.readline()
            assert line, f"the server did not start:\n{(folder / 'started.log').read_text()}"
            told = json.loads(line)
            yield f"http://127.0.0.1:{told['port']}"
            starter.stdin.close()
            starter.wait(60)
            _end(told["pid"])
        finally:
            starter.stdin.close()
            starter.stdout.close()
            starter.wait(60)


def _end(pid: int) -> None:
    """Whether or not the starter did it, the server is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        for _ in range(100):
            os.kill(pid, 0)
            time.sleep(0.1)
        raise AssertionError(f"the server {pid} is still there")
