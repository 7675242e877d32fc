"""Places of Milvus: how they are parsed, and what happens where no server, or something else, is."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap

import pytest

from diml.extras import MissingExtraError
from diml.search import open_store
from diml.search.backends import milvus
from diml.search.backends.milvus import read_place
from diml.search.index import create_store
from diml.search.store import IndexNotFoundError
from unit.search.contract import CONFIG, assert_equal_rows, make_rows, some

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")


def test_a_place_has_defaults():
    place = read_place("http://localhost")
    assert (place.address, place.collection, place.token) == ("http://localhost:19530", "images", "")
    assert (place.consistency, place.index, place.shards, place.folder) == ("Strong", "FLAT", 1, None)


def test_all_parts_of_a_place():
    place = read_place("https://me:s%3Ecret@host.example/shelves?consistency=Bounded&index=IVF_FLAT&shards=4")
    assert (place.address, place.collection) == ("https://host.example:443", "shelves")
    assert (place.consistency, place.index, place.shards) == ("Bounded", "IVF_FLAT", 4)
    assert place.token == "me:s>cret"
    assert place.shown == "https://host.example:443/shelves"
    assert read_place("http://[::1]:1234").address == "http://[::1]:1234"


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://", "no host"),
        ("http://host:port", "an invalid port"),
        ("http://host:99999", "an invalid port"),
        ("http://host/two/parts", "a collection named by"),
        ("http://host/1st", "a collection named by"),
        (
            "http://host?consistency=strong",
            "consistency needs one of Strong, Bounded, Session, Eventually, got 'strong'",
        ),
        ("http://host?index=HNSW", "index needs one of FLAT, IVF_FLAT, got 'HNSW'"),
        ("http://host?shards=0", "shards needs 1 to 16, got 0"),
        ("http://host?shards=many", "shards needs 1 to 16"),
        ("http://host?shard=2", "got shard"),
    ],
)
def test_what_cannot_be_a_place_is_named(uri, told):
    with pytest.raises(ValueError, match=told):
        read_place(uri)
    with pytest.raises(ValueError, match=told):
        create_store(uri, CONFIG)


def test_a_missing_server_is_named_without_the_password(monkeypatch):
    monkeypatch.setattr(milvus, "CONNECT_SECONDS", 0.3)
    with socket.socket() as taken:  # bound, and not listening: nobody else can be there
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ConnectionError, match=f"no Milvus answers at http://127.0.0.1:{port}/images") as caught:
            open_store(f"http://me:secret@127.0.0.1:{port}")
    assert "is the server running" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_looking_for_an_index_makes_nothing(tmp_path):
    with pytest.raises(IndexNotFoundError):
        open_store(tmp_path / "index.db")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_folder_of_milvus_lite_is_left_alone(tmp_path):
    (tmp_path / "file.db").write_text("years of work")
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "folder.db" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is a file"):
        create_store(tmp_path / "file.db", CONFIG)
    with pytest.raises(FileExistsError, match="contains something else"):
        create_store(tmp_path / "folder.db", CONFIG)
    assert [entry.name for entry in (tmp_path / "folder.db").iterdir()] == ["thesis.tex"]
    assert (tmp_path / "file.db").read_text() == "years of work"


@pytest.mark.parametrize("module", ["pymilvus", "milvus_lite"])
def test_a_missing_extra_is_named_with_the_remedy(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'diml\[milvus\]'"):
        create_store(tmp_path / "index.db", CONFIG)


def run(script: str, folder: object) -> subprocess.CompletedProcess[str]:
    before = """
    import sys
    from diml.search.index import create_store, open_store
    from unit.search.contract import CONFIG, make_rows
    place = sys.argv[1]
    """
    code = textwrap.dedent(before) + textwrap.dedent(script)
    command = [sys.executable, "-W", "error", "-c", code, str(folder)]
    paths = ":".join(path for path in sys.path if path)
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={"PYTHONPATH": paths, "PATH": ""}
    )


def test_a_process_that_is_killed_loses_nothing_written(tmp_path):
    killed = run(
        """
        import os, signal
        store = create_store(place, CONFIG)
        store.add(make_rows(7))
        store.remove(make_rows(7).ids[:2])
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path / "index.db",
    )
    assert killed.returncode == -9, killed.stderr
    store = open_store(tmp_path / "index.db")
    assert_equal_rows(store.regions(make_rows(7).ids), some(make_rows(7), [2, 3, 4, 5, 6]))
    store.close()


def test_a_second_process_is_turned_away_and_one_that_closes_nothing_ends(tmp_path):
    """Milvus Lite's threads do not hold up the end of a process, and print nothing."""
    store, again = create_store(tmp_path / "index.db", CONFIG), open_store(tmp_path / "index.db")
    store.add(make_rows(3))
    store.close()
    store.close()
    second = run(
        """
        store = create_store(place + ".other.db", CONFIG)
        store.add(make_rows(4))
        print(store.count(), "rows")
        try:
            open_store(place)
        except OSError as error:
            print(error)
        """,
        tmp_path / "index.db",
    )
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout.startswith("4 rows")
    assert "another process has it open" in second.stdout
    assert again.count() == 3
    again.close()
    free = open_store(f"{tmp_path / 'index.db'}.other.db")
    assert free.count() == 4
    free.close()
