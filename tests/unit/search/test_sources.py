"""Folders and CSV files as lists of images with metadata."""

from __future__ import annotations

import os

import pytest

from diml.search.sources import image_file, list_source


def test_a_folder_with_all_below_it(photos):
    (photos / "class 0" / "deep").mkdir()
    (photos / "class 0" / "0.png").rename(photos / "class 0" / "deep" / "0.png")
    (photos / "class 1" / "1.png").rename(photos / "lone.png")
    (photos / ".hidden.png").write_bytes(b"")
    (photos / "notes.txt").write_text("no image")
    listing = list_source(photos)
    assert len(listing) == 12
    assert listing.columns == {"label": "text"}
    labels = {path: listing.metadata(row, listing.columns)["label"] for row, path in enumerate(listing.paths)}
    assert labels["class 0/deep/0.png"] == "class 0"
    assert labels["lone.png"] is None
    assert len({listing.name(row) for row in range(12)}) == 12
    assert all(listing.file(row).is_file() for row in range(12))


def test_a_csv_file_with_columns_of_their_own_types(photos):
    lines = ["path,label,price,stock,fresh,note", "class 0/0.png,7,1.5,3,true,", "class 1/1.png,'07,2,,false,x"]
    (photos / "shop.csv").write_text("\n".join(lines) + "\n")
    listing = list_source(photos / "shop.csv")
    kinds = {"label": "text", "price": "number", "stock": "integer", "fresh": "boolean", "note": "text"}
    assert listing.columns == kinds
    first = {"label": "7", "price": 1.5, "stock": 3, "fresh": True, "note": None}
    second = {"label": "'07", "price": 2.0, "stock": None, "fresh": False, "note": "x"}
    assert [listing.metadata(row, kinds) for row in range(2)] == [first, second]
    assert listing.file(1) == photos / "class 1" / "1.png"


def test_types_are_those_that_are_named_and_label_is_always_text(photos):
    (photos / "shop.csv").write_text("path,label,code,price,note\nclass 0/0.png,12,007,1.50,\n")
    kinds = list_source(photos / "shop.csv").columns
    assert kinds == {"label": "text", "code": "text", "price": "text"}
    listing = list_source(photos / "shop.csv", {"price": "number", "note": "integer"})
    assert listing.columns == kinds | {"price": "number", "note": "integer"}
    assert listing.metadata(0, listing.columns) == {"label": "12", "code": "007", "price": 1.5, "note": None}
    for types, told in (({"prize": "number"}, "did you mean 'price'"), ({"path": "text"}, "to be typed")):
        with pytest.raises(ValueError, match=told):
            list_source(photos / "shop.csv", types)
    with pytest.raises(ValueError, match="types: need a CSV file"):
        list_source(photos, {"price": "number"})


def test_names_that_are_not_utf8_are_left_out_and_named(photos):
    (photos / "class 0" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    listing = list_source(photos)
    assert len(listing) == 12
    assert [(bad.path, "not UTF-8" in bad.reason) for bad in listing.bad] == [(f"{photos}/class 0/caf\\xe9.png", True)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file,label\na.png,x\n", "the column path"),
        ("path,content\na.png,x\n", "got 'content'; rename it"),
        ("path,a\xa0b\na.png,x\n".encode().decode("latin-1"), r"got 'a\\xa0b'; rename it"),
        ("path,u\u0308,\xfc\na.png,x,y\n".encode().decode("latin-1"), "twice, in two forms of Unicode; rename it"),
        ("path,a,a\na.png,x,y\n", "distinct columns"),
        ("path\n", "one line per image"),
        ("path,label\na.png\n", "line 2: has 1 cells"),
        ("path,label\na.png,x,y\n", "line 2: has 3 cells"),
        ("path,\na.png,1\n", "got ''; rename it"),
        ("path,checksum\na.png,1\n", "got 'checksum'; rename it"),
        ("path,label\n ,x\n", "line 2: path is empty"),
        ("path,label\na.png,x\nb.png,x\na.png,y\n", r"line 4: a\.png is already in line 2"),
        ("path\n\xff", "UTF-8"),
    ],
)
def test_a_bad_csv_file_is_told_by_line(tmp_path, text, told):
    (tmp_path / "bad.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=told):
        list_source(tmp_path / "bad.csv")


def test_places_without_images_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list_source(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="contain none; name a folder that has image files"):
        list_source(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"folder or a \.csv file"):
        list_source(tmp_path / "a.txt")


def test_where_a_stored_image_lies():
    assert str(image_file({"source": "/data/shop.csv", "path": "a/b.png"})) == "/data/a/b.png"
    assert str(image_file({"source": "/data/shop", "path": "a/b.png"})) == "/data/shop/a/b.png"
    assert str(image_file({"source": "/data/shop.csv/", "path": "a/b.png"})) == "/data/shop.csv/a/b.png"
    assert str(image_file({"source": "/data/shop.csv", "path": "/other/b.png"})) == "/other/b.png"


def test_columns_of_a_csv_file_have_any_name(photos):
    file = photos / "shop.csv"
    file.write_text('path,unit price,"in ""stock"", now?",gro\u0308\u00dfe,a=b\nclass 0/0.png,1.5,true,7,x\n')
    listing = list_source(file, {"gr\u00f6\u00dfe": "text", "a=b": "text"})
    assert listing.columns == {
        "unit price": "number",
        'in "stock", now?': "boolean",
        "gr\u00f6\u00dfe": "text",
        "a=b": "text",
    }
    values = {"unit price": 1.5, 'in "stock", now?': True, "gr\u00f6\u00dfe": "7", "a=b": "x"}
    assert listing.metadata(0, listing.columns) == values
    assert labels_of(file, "unit price") == {"class 0/0.png": "1.5"}


def labels_of(place, label_from):
    listing = list_source(place, label_from=label_from)
    assert listing.columns["label"] == "text"
    rows = range(len(listing))
    return {listing.paths[row]: listing.metadata(row, listing.columns)["label"] for row in rows}


def test_labels_are_the_folder_that_is_chosen(photos):
    (photos / "class 0" / "deep" / "er").mkdir(parents=True)
    (photos / "class 0" / "0.png").rename(photos / "class 0" / "deep" / "er" / "0.png")
    (photos / "class 1" / "1.png").rename(photos / "lone.png")
    top, parent = labels_of(photos, "top"), labels_of(photos, "parent")
    assert labels_of(photos, None) == top
    assert {path for path in top if top[path] != parent[path]} == {"class 0/deep/er/0.png"}
    assert (top["class 0/deep/er/0.png"], parent["class 0/deep/er/0.png"]) == ("class 0", "er")
    assert (top["lone.png"], parent["lone.png"]) == (None, None)
    with pytest.raises(ValueError, match="need parent or top"):
        list_source(photos, label_from="brand")


def test_labels_of_a_csv_file_are_a_column_or_a_folder(photos):
    file = photos / "shop.csv"
    file.write_text("path,brand,top\nclass 0/0.png,7,x\nclass 1/1.png,8,y\n")
    assert "label" not in list_source(file).columns
    assert list(labels_of(file, "brand").values()) == ["7", "8"]
    assert list_source(file, label_from="brand").columns["brand"] == "integer"
    assert list(labels_of(file, "parent").values()) == ["class 0", "class 1"]
    assert list(labels_of(file, "top").values()) == ["x", "y"]
    with pytest.raises(ValueError, match=r"no column 'brnd'.*brand"):
        list_source(file, label_from="brnd")
    file.write_text("path,label,brand\nclass 0/0.png,7,x\n")
    assert list(labels_of(file, "label").values()) == ["7"]
    with pytest.raises(ValueError, match="has a column label"):
        list_source(file, label_from="brand")


def test_a_list_elsewhere_has_no_top_folders(photos, tmp_path):
    (tmp_path / "lists").mkdir()
    file = tmp_path / "lists" / "shop.csv"
    file.write_text(f"path\n{photos / 'class 0' / '0.png'}\n")
    assert list(labels_of(file, "parent").values()) == ["class 0"]
    with pytest.raises(ValueError, match="is not below"):
        list_source(file, label_from="top")
