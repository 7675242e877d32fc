"""Data sets whose items are dicts, as those of Hugging Face's `datasets`, and torchvision's ImageFolder."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from torch.utils.data import Dataset, Subset

from diml.data import ImageSet, Preprocess, load_image
from diml.data.loading import iterate_batches


class Image:
    """Named as the feature type of `datasets`."""


class ClassLabel:
    def __init__(self, names: list[str]) -> None:
        self.names = names


class Value:
    pass


def drawn(seed: int) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8))


class Table(Dataset):
    """As `datasets.Dataset`: rows are dicts, columns lists; counts the images that are decoded."""

    def __init__(self, features: dict, columns: dict) -> None:
        self.features, self.columns, self.decoded = features, columns, 0
        self.column_names = list(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        assert isinstance(key, int)  # the library takes no numpy integers
        self.decoded += 1
        return {name: values[key] for name, values in self.columns.items()}


def shoes(image: str = "image", label: str = "label") -> Table:
    features = {"id": Value(), image: Image(), label: ClassLabel(["shoe", "hat", "scarf"])}
    return Table(features, {"id": [7, 8, 9, 10], image: [drawn(i) for i in range(4)], label: [1, 0, 1, 0]})


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("photo", "kind")])
def test_columns_are_found_by_their_types(image: str, label: str) -> None:
    table = shoes(image, label)
    images = ImageSet.from_dataset(table)
    assert table.decoded == 0
    assert images.labels.tolist() == [1, 0, 1, 0]
    assert images.class_names == ("shoe", "hat", "scarf")
    assert images.name == "Table"
    assert np.array_equal(images.images[2], drawn(2))
    part = images.subset([3, 1])
    assert np.array_equal(part.images[0], drawn(3))
    assert np.array_equal(images.images[1:][0], drawn(1))
    assert table.decoded == 3
    assert np.array_equal(pickle.loads(pickle.dumps(images.images))[0], drawn(0))


def test_columns_can_be_named() -> None:
    table = shoes()
    table.features |= {"other": Image(), "price": Value()}
    table.columns |= {"other": [drawn(9)] * 4, "price": ["low", "high", "low", "low"]}
    images = ImageSet.from_dataset(table, image="other", label="price")
    assert images.class_names == ("high", "low")
    assert np.array_equal(images.images[0], drawn(9))
    assert np.array_equal(ImageSet.from_dataset(table).images[0], drawn(0))  # of two, the one with the usual name
    with pytest.raises(ValueError, match="image: no column 'othr'; did you mean 'other'"):
        ImageSet.from_dataset(table, image="othr")
    with pytest.raises(ValueError, match="label: no column 'prize'; did you mean 'price'"):
        ImageSet.from_dataset(table, label="prize")
    with pytest.raises(ValueError, match="are all of the type Image; name one"):
        ImageSet.from_dataset(Table({"a": Image(), "b": Image()}, {"a": [drawn(0)], "b": [drawn(1)]}))


def test_a_part_of_a_table_and_labels_from_elsewhere() -> None:
    images = ImageSet.from_dataset(Subset(shoes(), [2, 1]))
    assert images.labels.tolist() == [1, 0]
    assert images.class_names == ("shoe", "hat", "scarf")
    assert np.array_equal(images.images[0], drawn(2))
    given = ImageSet.from_dataset(shoes(), labels=["x", "y", "x", "y"])
    assert given.class_names == ("x", "y")
    unlabelled = Table({"image": Image()}, {"image": [drawn(0)]})
    with pytest.raises(ValueError, match=r"label: which column has the labels\?"):
        ImageSet.from_dataset(unlabelled)
    assert len(ImageSet.from_dataset(unlabelled, labels=[0])) == 1
    with pytest.raises(ValueError, match=r"image: which column has the images\? There are id"):
        ImageSet.from_dataset(Table({"id": Value()}, {"id": [1]}))


def test_images_that_are_not_decoded(tmp_path: Path) -> None:
    stream = io.BytesIO()
    drawn(0).save(stream, "PNG")
    drawn(1).save(tmp_path / "b.png")
    cells = [{"bytes": stream.getvalue(), "path": None}, {"bytes": None, "path": str(tmp_path / "b.png")}]
    table = Table({"image": Image(), "label": ClassLabel(["a", "b"])}, {"image": cells, "label": [0, 1]})
    images = ImageSet.from_dataset(table)
    assert all(np.array_equal(load_image(images.images[row]), drawn(row)) for row in range(2))


class Dicts(Dataset):
    """Dicts without a word on their types."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict:
        return {"img": drawn(index), "target": ["a", "b", "a"][index]}


def test_dicts_of_usual_names() -> None:
    images = ImageSet.from_dataset(Dicts())
    assert images.class_names == ("a", "b")
    assert images.labels.tolist() == [0, 1, 0]
    assert np.array_equal(images.images[1], drawn(1))
    given = ImageSet.from_dataset(Dicts(), labels=[0, 1, 2])
    assert np.array_equal(given.images[1], drawn(1))


def test_columns_of_tuples_are_an_error() -> None:
    with pytest.raises(ValueError, match="name columns of items that are dicts, got tuple"):
        ImageSet.from_dataset([(drawn(0), 0)], image="image")


def test_tables_are_embedded_like_other_images() -> None:
    images = ImageSet.from_dataset(shoes())
    batch = next(iter(iterate_batches(images.images, Preprocess(size=8, resize=8), batch_size=4, workers=0)))
    assert batch.images.shape == (4, 3, 8, 8)


def test_an_image_folder_of_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    for number, name in enumerate(["hat/a.png", "hat/b.png", "shoe/c.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        drawn(number).save(tmp_path / name)
    images = ImageSet.from_dataset(ImageFolder(str(tmp_path)))
    assert images.class_names == ("hat", "shoe")
    assert images.labels.tolist() == [0, 0, 1]
    assert np.array_equal(images.images[2], drawn(2))
    assert images.image_name(2).endswith("shoe/c.png")
    assert repr(images) == "ImageSet('ImageFolder', 3 images, 2 classes)"
