"""ImageLike sets keep their parts together whatever is taken from them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from diml.data import ImageSet


def make(labels, queries=None, gallery=None) -> ImageSet:
    count = max(labels) + 1 if len(labels) else 1
    return ImageSet(
        name="made",
        paths=tuple(Path(f"{number}.png") for number in range(len(labels))),
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
def test_a_split_with_an_empty_side_is_refused(fraction, labels, message) -> None:
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
    with pytest.raises(ValueError, match="expected 2, one a path, got 1"):
        ImageSet("x", (Path("a"), Path("b")), np.array([0]), ("c",))
    with pytest.raises(ValueError, match="expected 0 to 0 for 1 class names, got 0 to 1"):
        ImageSet("x", (Path("a"), Path("b")), np.array([0, 1]), ("c",))
    with pytest.raises(ValueError, match="whole numbers"):
        ImageSet("x", (Path("a"),), np.array([0.5]), ("c",))


def test_the_arrays_are_copies_that_cannot_be_written() -> None:
    mine = np.array([0, 1])
    images = make([0, 1], queries=mine, gallery=[0])
    mine[0] = 1
    assert images.queries.tolist() == [0, 1]
    with pytest.raises(ValueError, match="read-only"):
        images.labels[0] = 1
