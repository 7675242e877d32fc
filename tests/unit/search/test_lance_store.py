"""LanceDB keeps the contract; and what only it does."""

from __future__ import annotations

import pytest

from diml.search import create_store, open_store
from unit.search.contract import CONFIG, StoreContract, make_rows


class TestLanceStore(StoreContract):
    @pytest.fixture
    def uri(self, tmp_path):
        return str(tmp_path / "index")


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        create_store(tmp_path, CONFIG)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_place_for_an_index(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        create_store(tmp_path / "file", CONFIG)


def test_a_foreign_lance_folder_is_named_as_such(tmp_path):
    lancedb = pytest.importorskip("lancedb")
    lancedb.connect(tmp_path).create_table("pictures", data=[{"id": "a"}])
    with pytest.raises(ValueError, match="diml did not make"):
        open_store(tmp_path)


def test_a_missing_extra_is_named_with_the_remedy(tmp_path, monkeypatch):
    create_store(tmp_path / "index", CONFIG).add(make_rows(1))
    monkeypatch.setitem(__import__("sys").modules, "lancedb", None)
    with pytest.raises(ValueError, match=r"pip install 'diml\[search\]'"):
        open_store(tmp_path / "index")


def test_removing_very_many_at_once(tmp_path):
    store = create_store(tmp_path / "index", CONFIG)
    rows = make_rows(10)
    store.add(rows)
    assert store.remove([*rows.ids[:9], *(f"nobody {number}" for number in range(20_000))]) == 9
    assert store.count() == 1
