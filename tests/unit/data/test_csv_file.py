"""A list of images in a CSV file is read completely, or every invalid line is named."""

from pathlib import Path

import pytest

from diml.data import DataSet, load_dataset
from diml.data.csv_file import UnusedColumnsWarning
from diml.data.datasets import check_dataset


def load(folder: Path, text: str, **options) -> DataSet:
    for name in "abcdef":
        (folder / "images").mkdir(exist_ok=True)
        (folder / "images" / f"{name}.jpg").touch()
    file = folder / "shop.csv"
    file.write_text(text, encoding="utf-8-sig")
    return load_dataset("csv", file, **options)


def test_leave_one_out_without_flags(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "path,label,split\nimages/a.jpg,shoe,train\nimages/b.jpg,hat,test\nimages/c.jpg,shoe,test\n",
    )
    assert (loaded.name, loaded.protocol) == ("csv", "test")
    assert loaded.train.class_names == ("shoe",)
    assert loaded.train.paths == (tmp_path / "images" / "a.jpg",)
    assert loaded.test.class_names == ("hat", "shoe")
    assert loaded.test.labels.tolist() == [0, 1]
    assert loaded.test.queries is None
    assert check_dataset("csv", tmp_path / "shop.csv").images == 3


def test_flags_make_queries_and_gallery(tmp_path: Path) -> None:
    with pytest.warns(UnusedColumnsWarning, match="not used: colour; read are path, label, split"):
        loaded = load(
            tmp_path,
            "label,path,is_gallery,split,is_query,colour\n"
            "1,images/a.jpg,0,test,1,red\n"
            "1,images/b.jpg,True,Test,false,red\n"
            "1,images/c.jpg,yes,test,yes,red\n"
            "2,images/d.jpg,,test,,red\n"
            "2,images/e.jpg,nan,train,nan,red\n",
        )
    assert loaded.test.queries.tolist() == [0, 2, 3]
    assert loaded.test.gallery.tolist() == [1, 2, 3]
    assert loaded.train.queries is None


def test_cameras_are_read_and_junk_is_left_out(tmp_path: Path) -> None:
    lines = ["images/a.jpg,x,test,c1", "images/b.jpg,x,test,c2", "images/c.jpg,-1,test,c1", "images/d.jpg,y,test,c1"]
    for column in ("camera", "sequence"):
        loaded = load(tmp_path, "\n".join([f"path,label,split,{column}", *lines]))
        assert loaded.test.cameras.tolist() == [0, 1, 0]
        assert loaded.test.class_names == ("x", "y")
        assert loaded.test.subset([1, 2]).cameras.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,split,camera,sequence\nimages/a.jpg,x,test,1,2", "got both; they mean the same"),
        ("path,label,split,camera\nimages/a.jpg,x,test,", "the camera is empty"),
        ("path,label,split\nimages/a.jpg,-1,train", "label -1 means junk"),
        ("path,label,split\nimages/a.jpg,-1,test", "every image is junk"),
    ],
)
def test_what_is_wrong_with_cameras_and_junk_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text)


def test_validation_images_are_kept_for_training(tmp_path: Path) -> None:
    head = "path,label,split\n"
    loaded = load(tmp_path, head + "images/a.jpg,x,train\nimages/b.jpg,y,val\nimages/c.jpg,z,test\n")
    assert loaded.validation.paths[0].name == "b.jpg"
    assert loaded.test.paths[0].name == "c.jpg"
    assert "validation=" in repr(loaded)


def test_validation_images_are_tested_on_when_there_are_no_others_or_when_asked(tmp_path: Path) -> None:
    head = "path,label,split\n"
    only = load(tmp_path, head + "images/a.jpg,x,train\nimages/b.jpg,x,val\n")
    assert only.test.paths[0].name == "b.jpg"
    both = head + "images/a.jpg,x,validation\nimages/b.jpg,x,test\n"
    assert load(tmp_path, both).test.paths[0].name == "b.jpg"
    asked = load(tmp_path, both, protocol="validation")
    assert [path.name for path in asked.test.paths] == ["a.jpg"]
    assert asked.train is None
    with pytest.raises(ValueError, match="nothing to test on; splits: train"):
        load(tmp_path, head + "images/a.jpg,x,train\n")


def test_every_bad_line_is_named_with_its_number(tmp_path: Path) -> None:
    text = (
        "path,label,split,is_query,is_gallery\n"
        "images/a.jpg,x,test,1,1\n"
        "images/nowhere.jpg,x,test,1,1\n"
        "images/b.jpg,x,tset,1,1\n"
        "images/b.jpg,,test,1,1\n"
        ",x,test,1,1\n"
        "images/c.jpg,x,test,maybe,1\n"
        "images/d.jpg,x,test,0,0\n"
        "images/e.jpg,x,train,1,0\n"
        "images/f.jpg,x\n"
        "images/f.jpg,x,test,1,1,1\n"
        "images/a.jpg,y,train,,\n"
    )
    with pytest.raises(ValueError, match="10 of 11 lines are invalid") as caught:
        load(tmp_path, text)
    message = str(caught.value)
    for part in [
        "line 3: no such image",
        "line 4: split 'tset': did you mean 'test'",
        "line 5: label is empty",
        "line 6: path is empty",
        "line 7: is_query 'maybe'",
        "line 8: is neither query nor gallery",
        "line 9: a training image",
        "line 10: has 2 cells, and the first line has 5 columns",
        "line 11: has 6 cells, and the first line has 5 columns",
        "line 12: the image",
        "is already in line 2",
    ]:
        assert part in message


def test_many_bad_lines_are_counted(tmp_path: Path) -> None:
    text = "path,label,split\n" + "nowhere.jpg,x,test\n" * 50
    with pytest.raises(ValueError, match=r"50 of 50 lines are invalid(.|\n)*and 30 more"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns path, label, split are missing"),
        ("path;label;split\n", "separated by commas"),
        ("path,label\n", "columns split are missing"),
        ("path,label,split,is_qeury\n", "did you mean 'is_query'"),
        ("path,label,split\n", "expected one line per image"),
        ("path,label,split,is_query,is_gallery\nimages/a.jpg,x,test,1,0\n", "no image has is_gallery"),
        ("path,label,split,is_query,is_gallery\nimages/a.jpg,x,test,0,1\n", "no image has is_query"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text)


def test_a_missing_file_or_one_that_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_dataset("csv", tmp_path / "shop.csv")
    with pytest.raises(FileNotFoundError, match="that is a folder"):
        load_dataset("csv", tmp_path)
    with pytest.raises(FileNotFoundError, match="got None"):
        load_dataset("csv")
    (tmp_path / "shop.csv").write_bytes(b"path,label,split\n\xff\xfe,x,test\n")
    with pytest.raises(ValueError, match=r"need a CSV text file in UTF-8 \(line 2"):
        load_dataset("csv", tmp_path / "shop.csv")
