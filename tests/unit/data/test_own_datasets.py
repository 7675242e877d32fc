"""A user's own torch data set becomes an `ImageSet`, and is embedded and evaluated like files."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from diml.data import BadImageError, ImageSet, Preprocess, load_image
from diml.data.augment import Augment
from diml.data.image_sets import DatasetImages
from diml.data.loading import TrainingLoader, iterate_batches

PREPROCESS = Preprocess(size=8, resize=8)


def drawn(seed: int, side: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


class Shop(Dataset):
    """PIL images with labels; counts how often an item is read."""

    def __init__(self, labels: list, paths: list | None = None) -> None:
        self.labels, self.paths, self.read = labels, paths, 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        if index >= len(self):
            raise IndexError
        self.read += 1
        return (drawn(index) if self.paths is None else self.paths[index]), self.labels[index]


class WithTargets(Shop):
    classes = ("shoe", "hat", "scarf")

    def __init__(self, labels: list, targets: list, target_transform=None) -> None:
        super().__init__(labels)
        self.targets, self.target_transform = targets, target_transform


class Folder(Dataset):
    """As torchvision's ImageFolder, without torchvision."""

    def __init__(self, samples: list) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        path, label = self.samples[index]
        return Image.open(path).convert("RGB"), label


@pytest.mark.parametrize("labels", [["b", "a", "b"], [5, 3, 5], [torch.tensor(5), torch.tensor(3), torch.tensor(5)]])
def test_labels_come_from_the_items(labels) -> None:
    images = ImageSet.from_dataset(Shop(labels))
    assert images.labels.tolist() == [1, 0, 1]
    assert images.class_names in [("a", "b"), ("3", "5")]
    assert images.name == "Shop"
    assert np.array_equal(images.images[1], drawn(1))
    assert images[1][1] == 0


def test_given_labels_read_no_item() -> None:
    shop = Shop([0, 1, 2])
    images = ImageSet.from_dataset(shop, labels=["x", "y", "x"], queries=[0], gallery=[1, 2], name="mine")
    assert shop.read == 0
    assert repr(images) == "ImageSet('mine', 3 images, 2 classes, 1 queries, gallery of 2)"
    part = images.subset([2, 0])
    assert shop.read == 0
    assert np.array_equal(part.images[0], drawn(2))
    assert part.queries.tolist() == [1]


def test_targets_and_classes_of_torchvision_are_used() -> None:
    shop = WithTargets([1, 0, 1, 1, 0], targets=[1, 0, 1, 1, 0])
    images = ImageSet.from_dataset(shop)
    assert shop.read == 2  # the first and the last, to compare
    assert images.class_names == ("shoe", "hat", "scarf")
    assert images.labels.tolist() == [1, 0, 1, 1, 0]
    half = ImageSet.from_dataset(Subset(Subset(shop, [4, 3, 0]), [0, 2]))
    assert half.labels.tolist() == [0, 1]
    assert half.class_names == ("shoe", "hat", "scarf")
    assert half.name == "WithTargets"


@pytest.mark.parametrize("transform", [None, lambda label: label])
def test_targets_that_differ_from_the_items_are_not_used(transform) -> None:
    shop = WithTargets([2, 0, 1], targets=[1, 0, 1], target_transform=transform)
    assert ImageSet.from_dataset(shop).labels.tolist() == [2, 0, 1]


def test_tensors_and_paths_as_images(tmp_path: Path) -> None:
    values = torch.rand(4, 3, 9, 9)
    images = ImageSet.from_dataset(TensorDataset(values, torch.tensor([0, 0, 1, 1])))
    assert torch.equal(images.images[2], values[2])
    drawn(0).save(tmp_path / "a.png")
    paths = ImageSet.from_dataset(Shop(["x"], [str(tmp_path / "a.png")]))
    assert load_image(paths.images[0]).size == (12, 12)


def test_data_sets_that_cannot_be_used_say_why() -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            yield drawn(0), 0

    with pytest.raises(TypeError, match=r"need a map-style data set.*got Stream"):
        ImageSet.from_dataset(Stream())
    with pytest.raises(TypeError, match=r"need items \(image, label\), got Image.*pass labels="):
        ImageSet.from_dataset([drawn(0)])
    with pytest.raises(TypeError, match=r"need items .* got dict in item 0"):
        _ = ImageSet.from_dataset(Shop(["x"], [{}]), labels=["x"]).images[0]
    with pytest.raises(ValueError, match="labels of Shop: expected 2, one per image, got 1"):
        ImageSet.from_dataset(Shop([0, 1]), labels=[0])
    with pytest.raises(ValueError, match="at least one image"):
        ImageSet.from_dataset(Shop([]))


def test_the_view_is_a_lazy_sequence() -> None:
    shop = Shop(list(range(6)))
    view = DatasetImages(shop)
    assert isinstance(view[1:5:2], DatasetImages)
    assert view[1:5:2].rows.tolist() == [1, 3]
    assert shop.read == 0
    assert repr(view) == "DatasetImages(Shop, 6 images)"
    assert np.array_equal(view[-1], drawn(5))
    assert len(list(view[:2])) == 2
    assert np.array_equal(pickle.loads(pickle.dumps(view))[3], drawn(3))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    samples = []
    for number in range(5):
        path = tmp_path / f"{number}.png"
        drawn(number).save(path)
        samples.append((str(path), number % 2))
    Path(samples[1][0]).write_bytes(b"no image")
    Path(samples[3][0]).unlink()
    return Folder(samples)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_items_are_named_by_their_path(folder: Folder, workers: int) -> None:
    images = ImageSet.from_dataset(folder, labels=[label for _, label in folder.samples]).images
    (batch,) = iterate_batches(images, PREPROCESS, workers=workers, on_bad_image="skip")
    assert batch.indices.tolist() == [0, 2, 4]
    assert [bad.path for bad in batch.bad] == [folder.samples[1][0], folder.samples[3][0]]
    assert "cannot be read from the data set" in batch.bad[0].reason
    assert batch.bad[1].reason == "no such file"
    assert torch.equal(batch.images[1], PREPROCESS(drawn(2)))
    with pytest.raises(BadImageError, match=r"1\.png"):
        list(iterate_batches(images, PREPROCESS, workers=workers))


def test_a_subset_names_the_rows_of_the_data_set() -> None:
    images = ImageSet.from_dataset(Shop(["x", "y", "z"])).subset([2, 0])
    assert images.image_name(0) == "<image 2>"


def test_the_training_loader_reads_data_sets(folder: Folder) -> None:
    augment = Augment(preprocess=PREPROCESS)
    with TrainingLoader(DatasetImages(folder), augment, workers=1, on_bad_image="skip") as loader:
        one, two = loader.epoch([[4, 1], [0, 2]])
    assert one.indices.tolist() == [4]
    assert two.indices.tolist() == [0, 2]
    with TrainingLoader(DatasetImages(folder), augment, on_bad_image="skip") as alone:
        assert all(
            torch.equal(a.images, b.images) for a, b in zip([one, two], alone.epoch([[4, 1], [0, 2]]), strict=True)
        )


def test_a_data_set_that_cannot_be_pickled_is_read_in_this_process_with_a_warning() -> None:
    shop = Shop([0, 1])
    shop.transform = lambda image: image
    with pytest.warns(UserWarning, match="Shop cannot be sent to worker processes.*module-level") as said:
        (batch,) = iterate_batches(DatasetImages(shop), PREPROCESS, workers=2)
    assert len(said) == 1
    assert said[0].filename == __file__
    assert len(batch.images) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(iterate_batches(DatasetImages(shop), PREPROCESS))


def test_embedding_and_evaluation_equal_those_of_the_files(tmp_path: Path) -> None:
    from diml.evaluation import evaluate_dataset
    from diml.models import load_embedder

    with torch.random.fork_rng():
        torch.manual_seed(0)
        embedder = load_embedder("test_resnet", pretrained=False, preprocess=Preprocess(size=64, resize=72))
    samples = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        drawn(number // 2, side=80).save(path)
        samples.append((str(path), number // 2))
    paths, labels = zip(*samples, strict=True)
    files = ImageSet(list(paths), [f"class {label}" for label in labels])
    lazy = ImageSet.from_dataset(Folder(samples))
    for one, two in zip(files.split_classes(0.5, 0), lazy.split_classes(0.5, 0), strict=True):
        assert one.labels.tolist() == two.labels.tolist()
        assert torch.equal(embedder.embed(one).dense, embedder.embed(two).dense)
    assert torch.equal(embedder.embed(lazy).dense, embedder.embed(Folder(samples)).dense)
    wanted = evaluate_dataset(embedder, files, rerank_at=(0, 3), resamples=10)
    found = evaluate_dataset(embedder, lazy, rerank_at=(0, 3), resamples=10)
    assert found.report.to_dict() == wanted.report.to_dict()
    assert found.images is lazy
