"""Image sets keep images, labels, queries and gallery together, and take the user's own data of any kind."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from diml.data import DataSet, ImageSet


def make(labels, queries=None, gallery=None) -> ImageSet:
    count = max(labels) + 1 if len(labels) else 1
    return ImageSet(
        name="made",
        images=tuple(Path(f"{number}.png") for number in range(len(labels))),
        labels=np.array(labels, dtype=np.int64),
        class_names=tuple(f"class {number}" for number in range(count)),
        queries=None if queries is None else np.array(queries),
        gallery=None if gallery is None else np.array(gallery),
    )


def named(images: ImageSet) -> list[tuple[str, str]]:
    return [(str(path), images.class_names[label]) for path, label in zip(images.paths, images.labels, strict=True)]


label_lists = st.lists(st.integers(0, 8), min_size=1, max_size=40)


@given(labels=label_lists, data=st.data())
def test_a_subset_keeps_each_image_with_its_class(labels, data) -> None:
    whole = make(labels)
    kept = data.draw(st.lists(st.integers(0, len(labels) - 1), min_size=1, unique=True))
    part = whole.subset(kept)
    assert named(part) == [named(whole)[index] for index in kept]
    assert sorted(set(part.labels.tolist())) == list(range(part.num_classes))


@given(labels=label_lists, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32 - 1))
def test_split_classes_is_disjoint_covering_and_repeatable(labels, fraction, seed) -> None:
    whole = make(labels)
    present = len(set(labels))
    assume(0 < round(fraction * present) < present)
    train, validation = whole.split_classes(fraction, seed)
    assert not set(train.class_names) & set(validation.class_names)
    assert sorted(named(train) + named(validation)) == sorted(named(whole))
    assert validation.num_classes == round(fraction * present)
    again = whole.split_classes(fraction, seed)
    assert [named(part) for part in again] == [named(train), named(validation)]


def test_other_seeds_divide_otherwise() -> None:
    whole = make(list(range(20)) * 2)
    assert len({whole.split_classes(0.5, seed)[1].class_names for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("fraction", "labels", "message"),
    [
        (0.0, [0, 1], "in \\(0, 1\\)"),
        (1.0, [0, 1], "in \\(0, 1\\)"),
        (0.1, [0, 1], "leaves validation without a class; at least 0.5"),
        (0.9, [0, 1], "leaves training without a class"),
        (0.5, [0, 0], "two classes are needed"),
    ],
)
def test_a_split_with_an_empty_side_is_rejected(fraction, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        make(labels).split_classes(fraction, 0)


def test_queries_and_gallery_follow_their_images() -> None:
    whole = make([0, 1, 2, 0, 1, 2], queries=[0, 1, 2], gallery=[2, 3, 4, 5])
    part = whole.subset([5, 2, 0, 3])
    assert named(part) == [("5.png", "class 2"), ("2.png", "class 2"), ("0.png", "class 0"), ("3.png", "class 0")]
    assert part.queries.tolist() == [2, 1]
    assert part.gallery.tolist() == [1, 3, 0]
    with pytest.raises(ValueError, match="is in queries"):
        whole.subset([3, 4])
    with pytest.raises(ValueError, match="is in gallery"):
        whole.subset([0, 1])


def test_classes_takes_all_their_images() -> None:
    part = make([2, 0, 1, 2]).classes([2, 1])
    assert named(part) == [("0.png", "class 2"), ("2.png", "class 1"), ("3.png", "class 2")]
    with pytest.raises(ValueError, match="classes of made: expected 0 to 2"):
        make([2, 0, 1]).classes([3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": []}, "at least one image"),
        ({"labels": [0, 1], "queries": [0]}, "give both, or neither"),
        ({"labels": [0, 1], "queries": [0], "gallery": [2]}, "gallery of made: expected 0 to 1"),
        ({"labels": [0, 1], "queries": [0, 0], "gallery": [1]}, "queries of made: 1 indices are repeated"),
        ({"labels": [0, 1], "queries": [], "gallery": [1]}, "queries of made: expected at least one"),
        ({"labels": [0, 1], "queries": [True, False], "gallery": [1]}, "whole numbers"),
    ],
)
def test_parts_that_do_not_fit_are_named(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_labels_must_fit_the_paths_and_the_class_names() -> None:
    with pytest.raises(ValueError, match="labels of x: expected 2, one per image, got 1"):
        ImageSet((Path("a"), Path("b")), np.array([0]), class_names=("c",), name="x")
    with pytest.raises(ValueError, match="expected 0 to 0 for 1 class names, got 0 to 1"):
        ImageSet((Path("a"), Path("b")), np.array([0, 1]), class_names=("c",), name="x")
    with pytest.raises(ValueError, match="whole numbers"):
        ImageSet((Path("a"),), np.array([0.5]), class_names=("c",), name="x")


def test_the_arrays_are_copies_that_cannot_be_written() -> None:
    mine = np.array([0, 1])
    images = make([0, 1], queries=mine, gallery=[0])
    mine[0] = 1
    assert images.queries.tolist() == [0, 1]
    with pytest.raises(ValueError, match="read-only"):
        images.labels[0] = 1


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_string_labels_become_class_names(kind) -> None:
    images = ImageSet(["a.jpg", "b.jpg", "c.jpg"], kind(["shoe", "hat", "shoe"]))
    assert images.class_names == ("hat", "shoe")
    assert images.labels.tolist() == [1, 0, 1]
    assert images.labels.dtype == np.int64
    assert [type(name) for name in images.class_names] == [str, str]
    assert images.images == (Path("a.jpg"), Path("b.jpg"), Path("c.jpg"))


def test_string_labels_with_class_names_keep_their_order_and_unused_names() -> None:
    images = ImageSet(["a.jpg", "b.jpg"], ["shoe", "hat"], class_names=["shoe", "scarf", "hat"])
    assert images.labels.tolist() == [0, 2]
    assert images.num_classes == 3
    with pytest.raises(ValueError, match="'shoo' is not in class_names; did you mean 'shoe'"):
        ImageSet(["a.jpg"], ["shoo"], class_names=["shoe", "hat"])


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_numbers_without_class_names_are_named_by_themselves(kind) -> None:
    images = ImageSet(["a.jpg", "b.jpg", "c.jpg"], kind([7, -1, 7]))
    assert images.class_names == ("-1", "7")
    assert images.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("labels", [[0.5, 1.0], [True, False], ["a", 1], [None, None], [[0], [1]]])
def test_labels_of_other_types_are_named(labels) -> None:
    with pytest.raises(ValueError, match="labels of images: expected whole numbers or strings"):
        ImageSet(["a.jpg", "b.jpg"], labels)


def test_images_may_be_in_memory() -> None:
    batch = torch.zeros(3, 3, 4, 5, dtype=torch.uint8)
    for images in (batch, batch.permute(0, 2, 3, 1).numpy(), np.zeros((3, 4, 5)), list(batch)):
        made = ImageSet(images, [0, 1, 1])
        assert len(made.images) == 3
        assert made.image_name(2) == "<image 2>"
        assert made[2][0] is made.images[2]
        with pytest.raises(ValueError, match="not all its images are files"):
            _ = made.paths
    mixed = ImageSet(["a.jpg", Image.new("RGB", (2, 2))], ["x", "y"])
    assert [mixed.image_name(index) for index in range(2)] == ["a.jpg", "<image 1>"]
    with pytest.raises(ValueError, match="batch of 4 axes"):
        ImageSet(batch[0], [0, 1, 1])
    with pytest.raises(TypeError, match="put it in a list"):
        ImageSet("a.jpg", [0])


def test_an_image_set_is_a_map_style_data_set() -> None:
    images = ImageSet(["a.jpg", "b.jpg"], ["x", "y"])
    assert isinstance(images, torch.utils.data.Dataset)
    assert images[1] == (Path("b.jpg"), 1)
    assert type(images[1][1]) is int
    assert list(images) == [images[0], images[1]]


def test_replace_and_pickle_keep_everything() -> None:
    images = make([0, 1, 0], queries=[0], gallery=[1, 2])
    moved = dataclasses.replace(images, images=["x.png", "y.png", "z.png"])
    assert moved.paths == (Path("x.png"), Path("y.png"), Path("z.png"))
    assert moved.gallery.tolist() == [1, 2]
    again = pickle.loads(pickle.dumps(images))
    assert named(again) == named(images)
    assert again.queries.tolist() == [0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        images.name = "other"


def test_reprs_are_short() -> None:
    images = ImageSet([f"{n}.jpg" for n in range(4000)], [n % 40 for n in range(4000)], name="big")
    assert repr(images) == "ImageSet('big', 4,000 images, 40 classes)"
    split = make([0, 1, 0], queries=[0], gallery=[1, 2])
    assert repr(split) == "ImageSet('made', 3 images, 2 classes, 1 queries, gallery of 2)"
    data = DataSet("shop", "test", None, images, None)
    assert repr(data) == f"DataSet('shop', 'test', train=None, test={images!r})"


def test_the_table_of_a_notebook_has_facts_and_thumbnails_where_files_can_be_read(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), "red").save(tmp_path / "a.png")
    Image.new("RGB", (300, 200)).save(tmp_path / "b.png")
    images = ImageSet([tmp_path / "a.png", tmp_path / "b.png"], ["<x>", "y"], name="one & two")
    shown = images._repr_html_()
    assert shown.count("<img") == 2
    assert "<caption>one &amp; two</caption>" in shown
    assert "&lt;x&gt;" in shown
    assert "leave-one-out" in shown
    assert len(shown) < 10_000
    (tmp_path / "b.png").unlink()
    assert "<img" not in images._repr_html_()
    assert "<th>queries</th><td>1</td>" in make([0, 1, 0], queries=[0], gallery=[1, 2])._repr_html_()
