"""Commands in processes of their own, stopped by signals; what is left is found by a mark in the environment."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from PIL import Image

_MARK = "DIML_TEST_MARK"


class MarkedCommand:
    """`diml WORDS` in a process whose descendants all carry its mark."""

    def __init__(self, *words: object, code: str | None = None, under: tuple[str, ...] = (), **environment: str):
        self.mark = uuid.uuid4().hex
        program = [sys.executable, *(("-m", "diml") if code is None else ("-c", code))]
        self.process = subprocess.Popen(
            [*under, *program, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_heed_signals,
            env=os.environ | {_MARK: self.mark, "OMP_NUM_THREADS": "1", "COLUMNS": "120"} | environment,
        )

    def __enter__(self) -> MarkedCommand:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.living():
            os.kill(pid, 9)
        self.process.communicate()

    def living(self) -> list[int]:
        """Its process and all descendants that have not ended; zombies have."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                marked = f"{_MARK}={self.mark}".encode() in (place / "environ").read_bytes().split(b"\0")
                if marked and "\nState:\tZ" not in (place / "status").read_text():
                    found.append(int(place.name))
            except OSError:  # it ended meanwhile, or belongs to another user
                continue
        return found

    def wait_for_workers(self, number: int, seconds: float = 300) -> None:
        """Wait until so many worker processes have begun to work: then each has its two threads that watch the end."""
        deadline = time.monotonic() + seconds
        while sum(_threads(pid) >= 3 for pid in self.living() if pid != self.process.pid) < number:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, "its workers did not start"
            time.sleep(0.05)

    def wait_for_file(self, path: Path, seconds: float = 300) -> None:
        """Wait until a file exists."""
        deadline = time.monotonic() + seconds
        while not path.exists():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, f"{path} was not written"
            time.sleep(0.02)

    def end(self, seconds: float = 300) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        out, error = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, error

    def wait_until_all_are_gone(self, seconds: float = 60) -> None:
        """Wait until no process with the mark lives."""
        deadline = time.monotonic() + seconds
        while self.living():
            assert time.monotonic() < deadline, f"still there: {self.living()}"
            time.sleep(0.05)


def _heed_signals() -> None:
    """Undo what `nohup` and the background jobs of a shell do: their children ignore SIGHUP and SIGINT."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _threads(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/status").read_text().partition("\nThreads:\t")[2].split("\n")[0])
    except OSError:
        return 0


def make_slow_images(folder: Path, *, classes: int = 8, each: int = 6, side: int = 3000) -> Path:
    """Images that take about a tenth of a second each to decode, in folders of classes; returns a CSV of them."""
    lines, content = ["path,label,split"], io.BytesIO()
    Image.new("RGB", (side, side), (200, 90, 9)).save(content, format="png", compress_level=1)
    for number in range(classes):
        for shot in range(each):
            path = folder / f"class{number}" / f"{shot}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.getvalue() + bytes([number, shot]))  # what follows the end of a PNG is ignored
            lines.append(f"{path.relative_to(folder)},class{number},{'train' if number < classes // 2 else 'test'}")
    (folder / "images.csv").write_text("\n".join(lines) + "\n")
    return folder / "images.csv"
