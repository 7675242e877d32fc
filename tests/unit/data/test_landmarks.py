"""Landmark retrieval: judgements by lists, cropped queries, and pickle files that are not trusted."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diml.data import ImageSet, load_dataset
from diml.data.datasets import check_dataset
from diml.data.inventory import IncompleteDataSetWarning
from diml.data.judgements import Judgements
from diml.data.plain_pickle import UnsafePickleError, load_plain_pickle

QUERIES = ["all_souls_000013", "bodleian_000107"]
DATABASE = [f"all_souls_{i:06}" for i in range(4)] + [f"oxford_{i:06}" for i in range(4)]


def truth(arrays: bool = True) -> dict:
    kind = np.array if arrays else list
    lists = [
        {"bbx": [1.0, 2.0, 9.0, 7.0], "easy": kind([0, 1]), "hard": kind([2]), "junk": kind([3, 7])},
        {"bbx": kind([0.0, 0.0, 5.0, 5.0]), "easy": kind([4]), "hard": kind([5, 6]), "junk": []},
    ]
    return {"imlist": DATABASE, "qimlist": QUERIES, "gnd": lists}


def make_oxford(root: Path, protocol: int = 2, content: dict | None = None) -> None:
    folder = root / "roxford5k" / "jpg"
    folder.mkdir(parents=True)
    for number, name in enumerate(QUERIES + DATABASE):
        pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.jpg")
    (root / "roxford5k" / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content or truth(), protocol))


def load_oxford(root: Path, protocol: str) -> ImageSet:
    with pytest.warns(IncompleteDataSetWarning, match="10 images, expected 5,063"):
        return load_dataset("roxford5k", root, protocol=protocol).test


@pytest.mark.parametrize(
    ("protocol", "relevant", "ignored"),
    [
        ("easy", [[0, 1], [4]], [[2, 3, 7], [5, 6]]),
        ("medium", [[0, 1, 2], [4, 5, 6]], [[3, 7], []]),
        ("hard", [[2], [5, 6]], [[0, 1, 3, 7], [4]]),
    ],
)
def test_the_protocols_of_the_revisited_sets(tmp_path: Path, protocol: str, relevant: list, ignored: list) -> None:
    make_oxford(tmp_path)
    images = load_oxford(tmp_path, protocol)
    assert [(rows - 2).tolist() for rows in images.judgements.relevant] == relevant
    assert [(rows - 2).tolist() for rows in images.judgements.ignored] == ignored
    assert images.queries.tolist() == [0, 1]
    assert images.gallery.tolist() == list(range(2, 10))
    assert [Path(images.image_name(row)).stem for row in range(10)] == QUERIES + DATABASE
    assert images.images[0].size == (8, 5)  # cropped when read
    assert images.images[1].size == (5, 5)
    assert images.images[2] == tmp_path / "roxford5k" / "jpg" / "all_souls_000000.jpg"
    assert "judged image by image" in repr(images)


def test_what_needs_classes_refuses_judged_images(tmp_path: Path) -> None:
    make_oxford(tmp_path)
    with pytest.warns(IncompleteDataSetWarning):
        loaded = load_dataset("roxford5k", tmp_path)
    assert loaded.protocol == "medium"
    with pytest.raises(ValueError, match="need classes, and roxford5k lists the relevant images"):
        loaded.require_classes()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("arrays", [True, False])
def test_files_of_all_versions_of_pickle_are_read(tmp_path: Path, protocol: int, arrays: bool) -> None:
    make_oxford(tmp_path, protocol, truth(arrays))
    assert check_dataset("roxford5k", tmp_path).images == 10


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_numbers_come_back(tmp_path: Path, protocol: int) -> None:
    rng = np.random.default_rng(0)
    content = {
        "i8": rng.integers(0, 100, 5),
        "f4": rng.random((2, 3)).astype(np.float32),
        "big": np.arange(4, dtype=">i4"),
        "fortran": np.asfortranarray(rng.random((3, 2))),
        "bool": np.array([True, False]),
        "empty": np.array([], dtype=np.int64),
        "objects": np.array([1, 2, 3], dtype=object),
        "scalar": np.float64(2.5),
        "set": {1, 2},
        "tuple": ("a", None, b"bytes", b"", True),
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    found = load_plain_pickle(tmp_path / "a.pkl")
    assert list(found) == list(content)
    for name in ("i8", "f4", "big", "fortran", "bool", "empty", "objects"):
        assert np.array_equal(found[name], content[name]), name
    assert (found["scalar"], found["set"]) == (2.5, {1, 2})
    assert found["tuple"] == content["tuple"]


class Hostile:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Anything:
    pass


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "make",
    [
        lambda mark: Hostile(os.system, f"touch {mark}"),
        lambda mark: Hostile(eval, f"open({str(mark)!r}, 'w')"),
        lambda mark: Hostile(getattr, "a", "upper"),
        lambda mark: Hostile(np.save, str(mark), 1),
        lambda mark: Anything(),
        lambda mark: np.array([Hostile(os.system, f"touch {mark}")], dtype=object),
        lambda mark: np.zeros(2, dtype=[("a", "i4"), ("b", "f8")]),
        lambda mark: np.dtype("i4"),
        lambda mark: os.system,
    ],
    ids=["system", "eval", "getattr", "save", "instance", "in an array", "structure", "dtype", "function"],
)
def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path: Path, make, protocol: int) -> None:
    mark = tmp_path / "run"
    content = truth() | {"gnd": [make(mark)]}
    make_oxford(tmp_path, 2)
    path = tmp_path / "roxford5k" / "gnd_roxford5k.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(UnsafePickleError, match=r"gnd_roxford5k\.pkl: .*(refused|only)"):
        load_dataset("roxford5k", tmp_path)
    assert not list(tmp_path.glob("run*"))


def test_a_file_that_changes_what_reads_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    # GLOBAL _codecs.encode, then BUILD with new default arguments.
    path.write_bytes(b"c_codecs\nencode\n(N}X\x0c\x00\x00\x00__defaults__(I1\ntstb.")
    with pytest.raises(UnsafePickleError, match="change a function"):
        load_plain_pickle(path)
    path.write_bytes(b"not a pickle")
    with pytest.raises(ValueError, match="cannot be read as a pickle file"):
        load_plain_pickle(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"imlist": []}, "KeyError"),
        (truth() | {"qimlist": ["one"]}, "1 queries with 2 judgements"),
        (truth() | {"imlist": DATABASE[:3]}, "rows up to 7 of 3 images"),
        ([1, 2], "TypeError"),
    ],
)
def test_judgements_that_do_not_fit_are_named(tmp_path: Path, content, message: str) -> None:
    make_oxford(tmp_path, 2)
    (tmp_path / "roxford5k" / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_dataset("roxford5k", tmp_path)


def make_google(root: Path, layout: str = "split") -> None:
    home = root / "gldv2"
    index, test = ["abc0", "abd1", "0123"], ["fff0", "fff1", "fff2"]
    for part, names in (("index", index), ("test", test[:2])):  # the ignored image is not needed
        for name in names:
            path = home / part / name[0] / name[1] / name[2] / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    lists = {part: home / part if layout == "split" else home for part in ("index", "test")}
    (lists["index"] / "index.csv").write_text("id\n" + "".join(f"{name}\n" for name in index))
    (lists["test"] / "retrieval_solution_v2.1.csv").write_text(
        "id,images,Usage\nfff0,abc0 0123,Private\nfff1,abd1,Public\nfff2,None,Ignored\n"
    )


@pytest.mark.parametrize("layout", ["split", "flat"])
@pytest.mark.parametrize(
    ("protocol", "relevant"),
    [("private", [["abc0", "0123"]]), ("public", [["abd1"]]), ("all", [["abc0", "0123"], ["abd1"]])],
)
def test_google_landmarks(tmp_path: Path, layout: str, protocol: str, relevant: list) -> None:
    make_google(tmp_path, layout)
    with pytest.warns(IncompleteDataSetWarning, match="5 images, expected 762,886"):
        test = load_dataset("gldv2", tmp_path, protocol=protocol).test
    names = [path.stem for path in test.paths]
    found = [{names[row] for row in rows} for rows in test.judgements.relevant]
    assert found == [set(names) for names in relevant]
    assert sorted(names[row] for row in test.gallery) == ["0123", "abc0", "abd1"]
    assert len(test.queries) == len(relevant)
    assert len(test) == 3 + len(relevant)


def test_a_part_of_google_landmarks_is_refused_with_the_count(tmp_path: Path) -> None:
    make_google(tmp_path)
    (tmp_path / "gldv2" / "index" / "a" / "b" / "c" / "abc0.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 5 listed images are missing .*abc0\.jpg.*all of the index is"):
        load_dataset("gldv2", tmp_path)
    (tmp_path / "gldv2" / "index" / "index.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"index\.csv is neither in"):
        load_dataset("gldv2", tmp_path)


def test_a_subset_keeps_the_judgements_of_the_queries_that_are_left() -> None:
    images = ImageSet(
        [f"{i}.jpg" for i in range(8)],
        [0] * 8,
        queries=[0, 1, 2],
        gallery=[3, 4, 5, 6, 7],
        judgements=Judgements([[3, 4], [5], [6, 7]], [[5], [], [3]]),
    )
    part = images.subset([7, 3, 2, 0, 5])
    assert part.queries.tolist() == [3, 2]  # images 0 and 2
    assert [rows.tolist() for rows in part.judgements.relevant] == [[1], [0]]
    assert [rows.tolist() for rows in part.judgements.ignored] == [[4], [1]]


@pytest.mark.parametrize(
    ("relevant", "ignored", "message"),
    [
        ([[1]], [[1]], "both relevant to and ignored"),
        ([[1]], [[], []], "need 1 lists of ignored images"),
        ([[-1]], None, "0 or more"),
        ([[0.5]], None, "float64"),
    ],
)
def test_judgements_are_checked(relevant, ignored, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Judgements(relevant, ignored)


def test_judgements_have_to_fit_the_set() -> None:
    with pytest.raises(ValueError, match="need queries and gallery"):
        ImageSet(["a", "b"], [0, 0], judgements=Judgements([[1]]))
    with pytest.raises(ValueError, match="expected 1, one per query, got 2"):
        ImageSet(["a", "b"], [0, 0], queries=[0], gallery=[1], judgements=Judgements([[1], [1]]))
    with pytest.raises(ValueError, match="rows 0 to 1, got 9"):
        ImageSet(["a", "b"], [0, 0], queries=[0], gallery=[1], judgements=Judgements([[9]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert repr(Judgements([[1, 2], []])) == "Judgements(2 queries, 2 relevant, 0 ignored)"
