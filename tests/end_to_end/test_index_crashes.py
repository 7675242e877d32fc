"""Indexing that is killed: all that was acknowledged is there and right, and the next run ends where it should. Copying
that is killed: the copy is whole or not there.

One helper process imports everything once; each run is a fork of it, killed by SIGKILL after a random time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diml.models import load_embedder
from diml.search import Searcher, build_index, open_store
from diml.search.copying import copy_index
from diml.search.index import content_of, create_store, verify_index
from diml.search.sources import list_source
from diml.search.store import IndexNotFoundError
from end_to_end.small_runs import start
from tiny_model import save_tiny_model

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

HELPER = """
import json, os, pathlib, sys
import numpy, pyarrow, timm, torch, torchvision

torch.set_num_threads(1)
from diml.models import load_embedder
from diml.search import build_index
from diml.search.sources import list_source

model = sys.argv[1]
embedder = load_embedder(model)
for line in sys.stdin:
    processes, photos, index, log = json.loads(line)
    children = []
    for _ in range(processes):
        child = os.fork()
        if child:
            children.append(child)
            continue
        from diml.search.backends.lance import LanceStore

        add, file = LanceStore.add, os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        def acknowledged(self, rows):
            add(self, rows)
            told = {name: entry["content"] for name, entry in zip(rows.ids, rows.metadata)}
            os.write(file, (json.dumps(told) + "\\n").encode())

        LanceStore.add = acknowledged
        listing = list_source(pathlib.Path(photos))
        print("begin", os.getpid(), flush=True)
        build_index(listing, index, embedder, model=model, batch_size=2, commit_every=2)
        os._exit(0)
    for child in children:
        print("ended", os.waitpid(child, 0)[1], flush=True)
"""

SHARED = """
import glob, json, os, signal, sys, time

import torch

torch.set_num_threads(1)
from diml.cli import main
from diml.search.backends.lance import LanceStore

log, kill_rank, after, *words = sys.argv[1:]
add, rank, turns = LanceStore.add, os.environ.get("RANK", "0"), 0

def acknowledged(self, rows):
    global turns
    add(self, rows)
    with open(log + rank, "a") as file:
        file.write(json.dumps(rows.ids) + "\\n")
    turns += 1
    if rank == kill_rank and turns == int(after):
        patience = time.monotonic() + 60
        while len(glob.glob(log + "*")) < 2 and time.monotonic() < patience:
            time.sleep(0.05)  # torchrun ends the other process too: it must have worked before
        os.kill(os.getpid(), signal.SIGKILL)

LanceStore.add = acknowledged
sys.exit(main(words))
"""


COPIER = """
import json, os, pathlib, signal, sys
import lancedb, numpy, pyarrow, pymilvus, milvus_lite.server_manager, torch

torch.set_num_threads(1)
from diml.search import copying
from diml.search.backends.lance import LanceStore
from diml.search.backends.milvus import MilvusStore

copying._PART_BYTES = 1000
for line in sys.stdin:
    source, destination, method, turn, before = json.loads(line)
    child = os.fork()
    if not child:
        cls = pathlib.Path if method == "rename" else MilvusStore if destination.endswith(".db") else LanceStore
        plain, turns = getattr(cls, method), 0

        def killed(self, *args, **settings):
            global turns
            turns += 1
            if before and turns == turn:
                os.kill(os.getpid(), signal.SIGKILL)
            found = plain(self, *args, **settings)
            if turns == turn:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        setattr(cls, method, killed)
        try:
            copying.copy_index(source, destination)
        except FileExistsError:
            os._exit(3)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def draw(path: Path, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).resize((80, 80)).save(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


class Killed:
    """A folder that changes, an index that is killed while it follows, and what must be in it."""

    def __init__(self, folder: Path, model: Path, helper: subprocess.Popen[str]) -> None:
        self.photos, self.index, self.log, self.model = folder / "photos", folder / "index", folder / "log", model
        self.random, self.embedder = random.Random(0), load_embedder(model)
        self.pooled: dict[str, np.ndarray] = {}
        self.fresh = 0
        self.landed = {"killed": 0, "ended": 0}
        self.helper = helper

    def change(self) -> None:
        """Some images new, some changed, some gone."""
        there = sorted(self.photos.rglob("*.png"))
        for path in self.random.sample(there, min(3, max(0, len(there) - 20))):
            path.unlink()
        there = sorted(self.photos.rglob("*.png"))
        new = [self.photos / f"c{self.fresh % 3}" / f"{self.fresh + n}.png" for n in range(12)]
        for path in [*self.random.sample(there, min(6, len(there))), *new]:
            self.fresh += 1
            draw(path, self.fresh)
            self.pooled[content_of(path)] = self.embedder.embed([path]).pooled.numpy()[0]

    def run(self, kill_after: float | None = None, processes: int = 1) -> None:
        assert self.helper.stdin is not None
        assert self.helper.stdout is not None
        order = [processes, *map(str, (self.photos, self.index, self.log))]
        self.helper.stdin.write(json.dumps(order) + "\n")
        self.helper.stdin.flush()
        lines = [self.helper.stdout.readline().split() for _ in range(processes)]
        assert [word for word, _ in lines] == ["begin"] * processes
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(int(lines[0][1]), signal.SIGKILL)  # the helper waits for it, so the number is still its
        for _ in range(processes):
            word, status = self.helper.stdout.readline().split()
            assert word == "ended"
            assert int(status) in ((0,) if kill_after is None else (0, signal.SIGKILL))
            self.landed["killed" if int(status) else "ended"] += 1

    def check(self) -> None:
        """Every acknowledged row whose image is still there is there, and every row is right."""
        try:
            store = open_store(self.index)
        except IndexNotFoundError:
            assert not self.log.exists() or not self.log.read_text()
            return
        assert verify_index(store, images=False).faults == ()
        rows = {name: m for part in store.listing() for name, m in zip(part.ids, part.metadata, strict=True)}
        listing = list_source(self.photos)
        now = {listing.name(row): content_of(listing.file(row)) for row in range(len(listing))}
        acknowledged: dict[str, str] = {}
        for line in self.log.read_text().splitlines() if self.log.exists() else ():
            acknowledged |= json.loads(line)
        for name, content in acknowledged.items():
            if name in now:
                assert rows[name]["content"] in (content, now[name]), "an acknowledged image is gone"
        found = store.regions(list(rows))
        for row, entry in enumerate(found.metadata):
            np.testing.assert_allclose(found.pooled[row], self.pooled[entry["content"]], atol=1e-5)

    def check_end(self, folder: Path) -> None:
        """What is in the index is what a new one of the same images has."""
        build_index(self.photos, folder / "new", self.embedder, model=str(self.model))
        kept, new = open_store(self.index), open_store(folder / "new")
        states = []
        for store in (kept, new):
            listed = {name: m for part in store.listing() for name, m in zip(part.ids, part.metadata, strict=True)}
            states.append((listed, store.regions(sorted(listed))))
        assert states[0][0] == states[1][0]
        np.testing.assert_allclose(states[0][1].pooled, states[1][1].pooled, atol=1e-5)
        regions = [state.coded.view("<f2").astype(np.float32) for _, state in states]
        np.testing.assert_allclose(*regions, atol=1e-3)
        assert verify_index(kept).ok


@pytest.fixture(scope="module")
def helper(tmp_path_factory, model):
    script = tmp_path_factory.mktemp("helper") / "helper.py"
    script.write_text(HELPER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    pipe = subprocess.PIPE
    made = subprocess.Popen([sys.executable, script, model], stdin=pipe, stdout=pipe, text=True, env=environment)
    yield made
    made.communicate(timeout=30)  # the end of its orders ends it


@pytest.fixture
def killed(tmp_path, model, helper):
    return Killed(tmp_path, model, helper)


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_points_nothing_acknowledged_is_lost(tmp_path, killed, kills):
    for _ in range(kills):
        killed.change()
        killed.run(kill_after=killed.random.uniform(0.01, 0.6))
        killed.check()
    assert killed.landed["killed"] >= kills / 2, "most runs have to be killed while they work"
    killed.run()
    killed.check()
    killed.check_end(tmp_path)


def test_two_runs_at_once_on_one_folder_lose_and_double_nothing(tmp_path, killed):
    killed.change()
    killed.change()
    killed.run(processes=2)
    killed.check()
    killed.check_end(tmp_path)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, error = process.communicate(timeout=300)
    return process.returncode, out + error


def logged(place: Path) -> list[str]:
    lines = [line for file in place.parent.glob(place.name + "*") for line in file.read_text().splitlines()]
    return [name for line in lines for name in json.loads(line)]


@pytest.mark.parametrize("resumed_by", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes_share_the_images_and_one_of_them_may_be_killed(tmp_path, model, resumed_by):
    """Real processes under torchrun; rank 1 dies by SIGKILL after its third commit; the next run does the rest."""
    for seed in range(25):
        draw(tmp_path / "photos" / f"c{seed % 3}" / f"{seed}.png", seed)
    (tmp_path / "photos" / "torn.png").write_bytes(b"torn")
    words = ["index", "build", tmp_path / "photos", "--index", tmp_path / "index", "--model", model]
    words += ["--batch-size", "2", "--commit-every", "2"]
    first = start(SHARED, tmp_path / "s1", tmp_path / "log1-", "1", "3", *words, processes=2)
    assert finish(first)[0] != 0
    written = logged(tmp_path / "log1-")
    there = [name for part in open_store(tmp_path / "index").listing() for name in part.ids]
    assert set(written) <= set(there)
    assert 6 <= len(set(written)) < 25
    if resumed_by == 1:
        listing, embedder = list_source(tmp_path / "photos"), load_embedder(model)
        report = build_index(listing, tmp_path / "index", embedder, model=str(model), batch_size=2)
        assert (report.embedded, report.unchanged, len(report.bad)) == (25 - len(there), len(there), 1)
    else:
        code, shown = finish(start(SHARED, tmp_path / "s2", tmp_path / "log2-", "none", "0", *words, processes=2))
        assert code == 1  # one image cannot be read
        assert shown.count("25 images;") == 1
        again = logged(tmp_path / "log2-")
        assert len(again) == len(set(again)), "no image twice"
        assert set(again).isdisjoint(there), "nothing that was written is embedded again"
        assert len(there) + len(again) == 25
    assert {file.name[-1] for file in tmp_path.glob("log*")} == {"0", "1"}, "both have worked"
    assert verify_index(open_store(tmp_path / "index")).ok
    assert open_store(tmp_path / "index").count() == 25


def test_readers_during_writes_see_a_whole_state(tmp_path, model):
    """Batches of four images of one colour are written and taken out; a reader never sees a part of one."""
    from dataclasses import replace

    from unit.search.contract import CONFIG, make_regions, make_rows

    store = create_store(tmp_path / "index", CONFIG)
    rows = make_rows(4)
    store.add(replace(rows, metadata=({"shelf": -1},) * 4))
    stop, faults, reads = threading.Event(), [], 0

    def read() -> None:
        nonlocal reads
        searcher = Searcher(open_store(tmp_path / "index"))
        while not stop.is_set():
            listed = [m["shelf"] for part in searcher.store.listing(columns=["shelf"]) for m in part.metadata]
            if len(listed) % 4 or len(set(listed)) * 4 > max(4, len(listed)):
                faults.append(listed)
            found = searcher.search(make_regions(1, seed=9), k=8)
            if any(abs(found.ledger(0).score - found.hits[0].score) > 1e-3 for _ in found.hits[:1]):
                faults.append(found.hits)
            reads += 1

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(12):
        store.add(replace(make_rows(4, seed=turn), metadata=({"shelf": turn},) * 4))
        if turn % 3 == 1:
            store.optimize()
        if turn % 3 == 2:
            extra = make_rows(4, seed=turn, prefix=f"more {turn}")
            store.add(replace(extra, metadata=({"shelf": 100 + turn},) * 4))
            assert store.remove(extra.ids) == 4
    stop.set()
    reader.join(60)
    assert faults == []
    assert reads > 3


@pytest.fixture(scope="module")
def copier(tmp_path_factory):
    """Gives an order to a process that forks for each; returns the status with which the copy ended."""
    pytest.importorskip("milvus_lite")
    script = tmp_path_factory.mktemp("copier") / "copier.py"
    script.write_text(COPIER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    pipe = subprocess.PIPE
    made = subprocess.Popen([sys.executable, script], stdin=pipe, stdout=pipe, text=True, env=environment)

    def ended(*order):
        made.stdin.write(json.dumps([str(order[0]), str(order[1]), *order[2:]]) + "\n")
        made.stdin.flush()
        return int(made.stdout.readline())

    yield ended
    made.communicate(timeout=30)


@pytest.mark.parametrize("name", ["copy.index", "copy.db"])
def test_a_copy_that_is_killed_is_whole_or_not_there(tmp_path, copier, name):
    """Killed while rows are written, while they are checked, and before and after the copy gets its name."""
    from unit.search.contract import CONFIG, assert_equal_rows, make_rows

    original, rows = create_store(tmp_path / "original.index", CONFIG), make_rows(40)
    original.add(rows)
    original.write_text("calibration.json", "kept")
    files = {path: path.read_bytes() for path in (tmp_path / "original.index").rglob("*") if path.is_file()}
    places = (tmp_path / "original.index", tmp_path / "there" / name)
    target = places[1]
    points = [("add", 1, True), ("add", 2, False), ("optimize", 1, False), ("count", 1, True), ("rename", 1, True)]
    for point in (*points, ("rename", 1, False)):
        assert not target.exists(), point
        assert copier(*places, *point) == signal.SIGKILL, point
        assert {path: path.read_bytes() for path in files} == files, "the source is untouched"
    assert target.exists(), "killed after it had got its name"
    assert copier(*places, "add", 1, True) == 3 << 8, "what is there is refused"
    copy = open_store(target)
    assert_equal_rows(copy.regions(rows.ids), rows)
    assert (copy.count(), copy.config, copy.read_text("calibration.json")) == (40, CONFIG, "kept")
    assert verify_index(copy, images=False).faults == ()
    copy.close()
    copy_index(target, target.parent / "again.index")
    assert {path.name for path in target.parent.iterdir()} == {name, "again.index"}, "nothing is left lying about"
