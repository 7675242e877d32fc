"""The named data sets, on small trees with the same layout, and on the real ones where available."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diml.data import DataSet, ImageSet, dataset_names, load_dataset, load_image
from diml.data.datasets import check_dataset, locate_dataset, place_or_fetch
from diml.data.inventory import IncompleteDataSetWarning
from diml.data.listing import LeftOutWarning
from diml.data.registry import dataset_info

GROCERY = Path(__file__).resolve().parents[4] / "shared" / "datasets" / "grocery"
needs_grocery = pytest.mark.skipif(not GROCERY.is_dir(), reason=f"the grocery photos are not in {GROCERY}")


def touch(*parts: str | Path) -> Path:
    path = Path(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def load_small(*arguments, **options) -> DataSet:
    """Load a small tree, which warns as it does not have the known size."""
    with pytest.warns(IncompleteDataSetWarning, match="not comparable"):
        return load_dataset(*arguments, **options)


def named(images: ImageSet) -> list[tuple[str, str]]:
    return [(path.name, images.class_names[label]) for path, label in zip(images.paths, images.labels, strict=True)]


def make_birds(root: Path) -> Path:
    for number, name in enumerate(["Albatross", "Auk", "Jay", "Wren", "Yellowthroat"], start=1):
        for shot in (2, 1):
            touch(root, "cub200", "images", f"{number:03}.{name}", f"{name}_{shot}.jpg")
    touch(root, "cub200", "images", "._001.Albatross")
    touch(root, "cub200", "images", "001.Albatross", "._Albatross_1.jpg")
    touch(root, "cub200", "images", "001.Albatross", "notes.txt")
    return root


@pytest.mark.parametrize("below", [".", "cub200"])
def test_cub200_first_half_trains_second_half_tests(tmp_path: Path, below: str) -> None:
    loaded = load_small("cub200", make_birds(tmp_path) / below)
    assert (loaded.name, loaded.protocol) == ("cub200", "class_disjoint")
    assert "Caltech" in loaded.credit
    assert named(loaded.train) == [
        ("Albatross_1.jpg", "001.Albatross"),
        ("Albatross_2.jpg", "001.Albatross"),
        ("Auk_1.jpg", "002.Auk"),
        ("Auk_2.jpg", "002.Auk"),
    ]
    assert loaded.test.class_names == ("003.Jay", "004.Wren", "005.Yellowthroat")
    assert loaded.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert loaded.test.queries is None
    assert loaded.test.gallery is None


def test_cars196(tmp_path: Path) -> None:
    for name in ("Volvo 240 Sedan 1993", "Acura RL Sedan 2012", "BMW M3 Coupe 2012", "Audi V8 Sedan 1994"):
        touch(tmp_path, "cars196", "images", name, "000001.jpg")
    loaded = load_small("cars196", str(tmp_path))
    assert loaded.train.class_names == ("Acura RL Sedan 2012", "Audi V8 Sedan 1994")
    assert loaded.test.class_names == ("BMW M3 Coupe 2012", "Volvo 240 Sedan 1993")


def test_empty_class_folders_are_counted_and_named(tmp_path: Path) -> None:
    make_birds(tmp_path)
    for name in ("006.Finch", "007.Gull"):
        (tmp_path / "cub200" / "images" / name).mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"2 of 7 class folders have no image \(006\.Finch, 007\.Gull\).*To get it"
    ):
        load_dataset("cub200", tmp_path)
    check = check_dataset("cub200", tmp_path)
    assert (check.images, check.classes, check.ok) == (10, 5, False)
    assert check.differences[:2] == ("10 images, expected 11,788", "5 classes, expected 200")


PRODUCTS = {
    "Ebay_train.txt": [("1", "bicycle_final/11_0.JPG"), ("1", "bicycle_final/11_1.JPG"), ("2", "chair_final/22_0.JPG")],
    "Ebay_test.txt": [("11319", "bicycle_final/33_0.JPG"), ("11320", "chair_final/44_0.JPG")],
}


def make_products(lists: Path, images: Path) -> None:
    lists.mkdir(parents=True)
    number = 0
    for name, entries in PRODUCTS.items():
        lines = ["image_id class_id super_class_id path"]
        for label, path in entries:
            number += 1
            lines.append(f"{number} {label} 1 {path}")
            touch(images, path)
        (lists / name).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("layout", ["authors", "archive"])
def test_online_products(tmp_path: Path, layout: str) -> None:
    if layout == "authors":
        make_products(tmp_path / "online_products" / "Info_Files", tmp_path / "online_products" / "images")
    else:
        make_products(tmp_path / "Stanford_Online_Products", tmp_path / "Stanford_Online_Products")
    loaded = load_small("online_products", tmp_path)
    assert named(loaded.train) == [("11_0.JPG", "bicycle 1"), ("11_1.JPG", "bicycle 1"), ("22_0.JPG", "chair 2")]
    assert named(loaded.test) == [("33_0.JPG", "bicycle 11319"), ("44_0.JPG", "chair 11320")]
    assert all(path.is_file() for path in loaded.train.paths + loaded.test.paths)


def test_online_products_half_downloaded(tmp_path: Path) -> None:
    home = tmp_path / "online_products"
    make_products(home / "Info_Files", home / "images")
    (home / "images" / "bicycle_final" / "11_1.JPG").unlink()
    (home / "images" / "chair_final" / "44_0.JPG").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 5 listed images are missing .*11_1\.JPG, chair_final/44_0\.JPG"):
        load_dataset("online_products", tmp_path)
    (home / "Info_Files" / "Ebay_test.txt").unlink()
    check = check_dataset("online_products", tmp_path)
    assert check.images == 2
    assert any("Ebay_test.txt is missing" in difference for difference in check.differences)


def test_a_suffix_in_another_case_is_found(tmp_path: Path) -> None:
    home = tmp_path / "online_products"
    make_products(home / "Info_Files", home / "images")
    old = home / "images" / "chair_final" / "22_0.JPG"
    old.rename(old.with_suffix(".jpg"))
    assert load_small("online_products", tmp_path).train.paths[2].is_file()


def test_a_bad_line_of_a_list_is_named(tmp_path: Path) -> None:
    home = tmp_path / "online_products"
    make_products(home / "Info_Files", home / "images")
    with (home / "Info_Files" / "Ebay_test.txt").open("a") as file:
        file.write("6 x 1 lamp_final/1.JPG\n")
    with pytest.raises(
        ValueError, match=r"Ebay_test\.txt, line 4: expected `image_id class_id super_class_id path`, got '6 x"
    ):
        load_dataset("online_products", tmp_path)


def make_groceries(folder: Path, names: bool = True) -> None:
    folder.mkdir(parents=True)
    lists = {
        "train": [(3, "Kiwi"), (45, "Milk")],
        "val": [(45, "Milk")],
        "test": [(3, "Kiwi"), (45, "Milk"), (80, "Leek")],
    }
    for part, entries in lists.items():
        lines = []
        for place, (label, name) in enumerate(entries):
            touch(folder, part, name, f"{name}_{place}.jpg")
            lines.append(f"{part}/{name}/{name}_{place}.jpg, {label}, 0\n")
        (folder / f"{part}.txt").write_text("".join(lines))
    if names:
        header = "Class Name (str),Class ID (int),Coarse Class Name (str)\n"
        (folder / "classes.csv").write_text(header + "Kiwi,3,Fruit\nMilk,45,Dairy\nLeek,80,Vegetables\n")


@pytest.mark.parametrize("layout", ["grocery", "grocery/dataset", ".", "dataset"])
def test_grocery_by_queries_and_gallery(tmp_path: Path, layout: str) -> None:
    make_groceries(tmp_path / "x" / layout)
    loaded = load_small("grocery", tmp_path / "x")
    assert loaded.protocol == "query_gallery"
    assert named(loaded.train) == [("Kiwi_0.jpg", "Kiwi"), ("Milk_1.jpg", "Milk"), ("Milk_0.jpg", "Milk")]
    assert loaded.test.paths[:3] == loaded.train.paths
    assert loaded.test.class_names == ("Kiwi", "Milk", "Leek")
    assert loaded.test.gallery.tolist() == [0, 1, 2]
    assert loaded.test.queries.tolist() == [3, 4, 5]


def test_grocery_class_disjoint_by_class_number(tmp_path: Path) -> None:
    make_groceries(tmp_path / "grocery", names=False)
    loaded = load_small("grocery", tmp_path, protocol="class_disjoint")
    assert loaded.train.class_names == ("3",)
    assert loaded.test.class_names == ("45", "80")
    assert (len(loaded.train), len(loaded.test)) == (2, 4)
    assert loaded.test.queries is None


@needs_grocery
def test_the_real_grocery_set() -> None:
    assert check_dataset("grocery", GROCERY).ok
    loaded = load_dataset("grocery", GROCERY.parent)
    assert (len(loaded.test), len(loaded.test.queries), len(loaded.test.gallery)) == (5421, 2485, 2936)
    assert (len(loaded.train), loaded.train.num_classes) == (2936, 81)
    assert loaded.test.class_names[0] == "Golden-Delicious"
    parts = np.array([path.relative_to(GROCERY).parts[0] for path in loaded.test.paths])
    assert set(parts[loaded.test.queries]) == {"test"}
    assert set(parts[loaded.test.gallery]) == {"train", "val"}
    # The folder of a photo names its class, independently of the lists.
    for path, label in zip(loaded.test.paths[::97], loaded.test.labels[::97], strict=True):
        assert loaded.test.class_names[label] in path.parts

    disjoint = load_dataset("grocery", GROCERY, protocol="class_disjoint")
    assert (len(disjoint.train), disjoint.train.num_classes) == (2979, 40)
    assert (len(disjoint.test), disjoint.test.num_classes) == (2442, 41)


def test_the_real_orl_faces() -> None:
    loaded = load_dataset("orl")
    assert (loaded.protocol, loaded.train, len(loaded.test)) == ("all", None, 400)
    assert loaded.test.class_names == tuple(f"s{number}" for number in range(1, 41))
    assert [path.name for path in loaded.test.paths[10:20]] == [f"{number}.pgm" for number in range(1, 11)]
    assert load_image(loaded.test.paths[399]).size == (92, 112)
    halves = load_dataset("orl", protocol="class_disjoint")
    assert halves.train.class_names == tuple(f"s{number}" for number in range(1, 21))
    assert halves.test.class_names == tuple(f"s{number}" for number in range(21, 41))
    assert check_dataset("orl").ok


def test_orl_from_a_folder(tmp_path: Path) -> None:
    for person in (1, 2, 10):
        touch(tmp_path, "orl", f"s{person}", "1.pgm")
    touch(tmp_path, "orl", "README")
    assert load_small("orl", tmp_path).test.class_names == ("s1", "s2", "s10")


def make_emoji(root: Path) -> Path:
    for artist, ending in (("noto", "png"), ("twemoji", "png"), ("emojione", "png"), ("fluent", "webp")):
        for name in ("1f34f", "1f34e", "2708-fe0f", "1f1e9-1f1ea", "1f44b-1f3fb"):
            touch(root, "emoji", artist, f"{name}.{ending}")
    touch(root, "emoji", "noto", "1f9ff.png")  # which the others lack
    touch(root, "emoji", "fluent", "2708.webp")
    touch(root, "emoji", "fluent", "README.md")
    return root


@pytest.mark.parametrize("below", [".", "emoji"])
def test_emoji_are_classes_of_one_drawing_by_each_artist(tmp_path: Path, below: str) -> None:
    loaded = load_small("emoji", make_emoji(tmp_path) / below)
    assert (loaded.protocol, loaded.train, loaded.test.queries) == ("all", None, None)
    assert loaded.test.class_names == ("airplane", "red apple", "green apple")
    assert loaded.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    names = [f"{path.parent.name}/{path.name}" for path in loaded.test.paths[:5]]
    assert names == [
        "noto/2708-fe0f.png",
        "twemoji/2708-fe0f.png",
        "emojione/2708-fe0f.png",
        "fluent/2708.webp",
        "noto/1f34e.png",
    ]
    assert "CC BY 4.0" in loaded.credit
    halves = load_small("emoji", tmp_path, protocol="class_disjoint")
    assert (halves.train.class_names, halves.test.class_names) == (("airplane",), ("red apple", "green apple"))


def test_emoji_of_a_missing_artist_or_with_nothing_in_common_are_missing(tmp_path: Path) -> None:
    root = make_emoji(tmp_path)
    for path in (root / "emoji" / "fluent").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"emoji is not in .*npm pack"):
        load_dataset("emoji", root)
    (root / "emoji" / "fluent").rmdir()
    assert locate_dataset("emoji", root) is None
    with pytest.raises(FileNotFoundError, match="emoji is not in"):
        load_dataset("emoji", root)


@pytest.mark.slow  # 245 MB, the first time
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm fetches the emoji, and is not installed")
def test_the_real_emoji() -> None:
    loaded = load_dataset("emoji")
    assert (len(loaded.test), loaded.test.num_classes) == (4_320, 1_080)
    assert check_dataset("emoji").ok
    apple = loaded.test.class_names.index("red apple")
    sizes = [load_image(loaded.test.paths[index]).size for index in np.flatnonzero(loaded.test.labels == apple)]
    assert sizes == [(64, 64), (64, 64), (128, 128), (256, 256)]


@pytest.mark.parametrize("name", ["orl", "emoji"])
def test_what_is_fetched_is_so_only_where_no_copy_is_there(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "orl", "s1", "1.pgm")
    make_emoji(tmp_path)
    assert place_or_fetch(name, tmp_path) == tmp_path
    assert place_or_fetch(name, tmp_path / "nowhere") is None
    assert place_or_fetch("cub200", tmp_path / "nowhere") == tmp_path / "nowhere"


def test_folder(tmp_path: Path) -> None:
    touch(tmp_path, "dog", "b.JPEG")
    touch(tmp_path, "dog", "deep", "a.png")
    touch(tmp_path, "dog", ".hidden.png")
    touch(tmp_path, "dog", ".thumbs", "c.png")
    touch(tmp_path, "cat", "x.webp")
    touch(tmp_path, "cat", "x.xmp")
    touch(tmp_path, "notes", "readme.txt")
    touch(tmp_path, ".git", "z.png")
    with pytest.warns(LeftOutWarning, match=r"2 files: 1 \.txt, 1 \.xmp; 1 sub-folders without an image \(notes\)"):
        loaded = load_dataset("folder", tmp_path)
    assert loaded.train is None
    assert loaded.test.name == tmp_path.name
    assert named(loaded.test) == [("x.webp", "cat"), ("b.JPEG", "dog"), ("a.png", "dog")]
    with pytest.raises(FileNotFoundError, match="one sub-folder per class"):
        load_dataset("folder", tmp_path / "cat")
    with pytest.warns(LeftOutWarning):
        assert check_dataset("folder", tmp_path).ok
    with pytest.warns(LeftOutWarning):
        halves = load_dataset("folder", tmp_path, protocol="class_disjoint")
    assert halves.train is not None
    assert named(halves.train) == [("x.webp", "cat")]
    assert named(halves.test) == [("b.JPEG", "dog"), ("a.png", "dog")]


@pytest.mark.parametrize("name", ["cub200", "cars196", "online_products", "grocery", "orl", "folder"])
def test_a_missing_set_says_what_was_expected_where_and_how_to_get_it(tmp_path: Path, name: str) -> None:
    info = dataset_info(name)
    touch(tmp_path, "something.txt")
    for root, found in (
        (tmp_path, "something.txt"),
        (tmp_path / "no", "no such folder"),
        (tmp_path / "something.txt", "file"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            load_dataset(name, root)
        message = str(caught.value)
        assert all(part in message for part in (name, str(root), found, info.layout, info.how_to_get))
        with pytest.raises(FileNotFoundError):
            check_dataset(name, root)
    if name != "orl":
        with pytest.raises(FileNotFoundError, match=f"{name} .*None"):
            load_dataset(name)


def test_unknown_names_and_protocols_get_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'cub200'"):
        load_dataset("CUB-200", "data")
    with pytest.raises(ValueError, match="did you mean 'class_disjoint'"):
        load_dataset("grocery", "data", protocol="class-disjoint")


def test_locate_looks_and_fetches_nothing(tmp_path: Path) -> None:
    assert all(locate_dataset(name, tmp_path) is None for name in dataset_names())
    assert locate_dataset("cub200", make_birds(tmp_path)) == tmp_path / "cub200"


def test_images_of_a_named_set_are_decoded_only_when_asked(tmp_path: Path) -> None:
    """The trees above consist of empty files; this one has a real image."""
    path = touch(tmp_path, "a", "1.png")
    Image.new("RGB", (3, 2), "red").save(path)
    assert load_image(load_dataset("folder", tmp_path).test.paths[0]).size == (3, 2)
