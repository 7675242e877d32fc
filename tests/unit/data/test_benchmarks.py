"""In-Shop, re-identification, iNaturalist and landmarks, on small trees with the published layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diml.data import DataSet, ImageSet, load_dataset
from diml.data.datasets import check_dataset, locate_dataset
from diml.data.inventory import IncompleteDataSetWarning
from diml.data.reid import VEHICLE_DRAWS, with_drawn_galleries


def touch(*parts: str | Path) -> Path:
    path = Path(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def load_small(*arguments, **options) -> DataSet:
    """Load a small tree, which warns as it does not have the known size."""
    with pytest.warns(IncompleteDataSetWarning, match="not comparable"):
        return load_dataset(*arguments, **options)


def sides(images: ImageSet) -> tuple[list[str], list[str]]:
    names = [path.name for path in images.paths]
    return [names[row] for row in images.queries], [names[row] for row in images.gallery]


def make_inshop(lists: Path, images: Path) -> None:
    rows = [
        ("img/WOMEN/Dresses/id_00000001/01_1_front.jpg", "id_00000001", "train"),
        ("img/WOMEN/Dresses/id_00000001/02_1_front.jpg", "id_00000001", "train"),
        ("img/MEN/Denim/id_00000080/01_1_front.jpg", "id_00000080", "query"),
        ("img/MEN/Denim/id_00000080/01_2_side.jpg", "id_00000080", "gallery"),
        ("img/MEN/Denim/id_00000081/01_1_front.jpg", "id_00000081", "gallery"),
    ]
    lists.mkdir(parents=True)
    # The list of the archive is aligned with several spaces.
    lines = [f"{path:70} {item}     {status}" for path, item, status in rows]
    (lists / "list_eval_partition.txt").write_text(
        "\n".join([str(len(rows)), "image_name item_id evaluation_status", *lines]) + "\n"
    )
    for path, _, _ in rows:
        touch(images, path)


@pytest.mark.parametrize("layout", ["flat", "archive"])
def test_inshop(tmp_path: Path, layout: str) -> None:
    if layout == "flat":
        home = tmp_path / "inshop"
        make_inshop(home, home)
    else:
        home = tmp_path / "In-shop Clothes Retrieval Benchmark"
        make_inshop(home / "Eval", home / "Img")
    loaded = load_small("inshop", tmp_path)
    assert len(loaded.train) == 2
    assert loaded.train.class_names == ("id_00000001",)
    assert sides(loaded.test) == (["01_1_front.jpg"], ["01_2_side.jpg", "01_1_front.jpg"])
    assert loaded.test.labels.tolist() == [0, 0, 1]
    assert loaded.test.cameras is None


def test_a_bad_status_of_inshop_is_named(tmp_path: Path) -> None:
    make_inshop(tmp_path / "inshop", tmp_path / "inshop")
    path = tmp_path / "inshop" / "list_eval_partition.txt"
    path.write_text(path.read_text() + "img/MEN/Denim/id_00000081/02_1_front.jpg id_00000081 probe\n")
    with pytest.raises(ValueError, match=r"line 8: expected `img/MEN.*train\|query\|gallery`"):
        load_dataset("inshop", tmp_path)


MARKET = {
    "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0002_c2s1_000001_01.jpg", "0007_c3s3_000001_01.jpg"],
    "query": ["0001_c1s1_001051_00.jpg"],
    "bounding_box_test": [
        "-1_c1s1_000401_03.jpg",
        "0000_c1s1_000151_01.jpg",
        "0001_c1s1_002301_02.jpg",
        "0001_c2s1_000301_00.jpg",
        "Thumbs.db",
    ],
}


@pytest.mark.parametrize("name", ["Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15", "."])
def test_market1501(tmp_path: Path, name: str) -> None:
    for folder, files in MARKET.items():
        for file in files:
            touch(tmp_path, name, folder, file)
    loaded = load_small("market1501", tmp_path)
    test = loaded.test
    assert sides(test) == (MARKET["query"], MARKET["bounding_box_test"][1:4])  # without junk, with the distractor
    assert test.class_names == ("0000", "0001")
    cameras = dict(zip((path.name for path in test.paths), test.cameras, strict=True))
    assert (
        cameras["0001_c1s1_001051_00.jpg"] == cameras["0001_c1s1_002301_02.jpg"] == cameras["0000_c1s1_000151_01.jpg"]
    )
    assert cameras["0001_c2s1_000301_00.jpg"] != cameras["0001_c1s1_001051_00.jpg"]
    assert loaded.train.class_names == ("0002", "0007")
    assert "32,217" in check_dataset("market1501", tmp_path).differences[0]


def test_a_folder_that_is_missing_and_a_foreign_name_are_reported(tmp_path: Path) -> None:
    touch(tmp_path, "VeRi", "image_query", "0001_c001_00016450_0.jpg")
    touch(tmp_path, "VeRi", "image_test", "0001_c002_00016450_0.jpg")
    with pytest.raises(FileNotFoundError, match="image_train has no image"):
        load_dataset("veri776", tmp_path)
    touch(tmp_path, "VeRi", "image_train", "IMG_1.jpg")
    with pytest.raises(ValueError, match=r"expected names such as .* got 'IMG_1\.jpg'"):
        load_dataset("veri776", tmp_path)


def test_veri776(tmp_path: Path) -> None:
    for folder, file in (
        ("image_train", "0001_c001_00016450_0.jpg"),
        ("image_query", "0002_c002_00030600_0.jpg"),
        ("image_test", "0002_c002_00030600_0.jpg"),  # queries stand in the gallery too; their own camera is ignored
        ("image_test", "0002_c019_00030600_0.jpg"),
    ):
        touch(tmp_path, "VeRi", folder, file)
    test = load_small("veri776", tmp_path).test
    assert (len(test), len(test.queries), len(test.gallery)) == (3, 1, 2)
    assert test.cameras.tolist() == [1, 1, 0]  # numbered by name: camera 19, camera 2


@pytest.mark.parametrize(
    ("release", "train", "test"), [("MSMT17_V1", "train", "test"), ("MSMT17_V2", "mask_train_v2", "mask_test_v2")]
)
def test_msmt17_of_both_releases(tmp_path: Path, release: str, train: str, test: str) -> None:
    lists = {
        "list_train.txt": ["0000/0000_000_01_0303morning_0015_0.jpg 0"],
        "list_val.txt": ["0000/0000_001_02_0303morning_0016_0.jpg 0"],
        "list_query.txt": ["0000/0000_000_14_0303morning_0020_0.jpg 0"],
        "list_gallery.txt": ["0000/0000_001_05_0303noon_0021_0.jpg 0", "0001/0001_000_14_0303noon_0001_1.jpg 1"],
    }
    home = tmp_path / release
    for name, lines in lists.items():
        for line in lines:
            touch(home, train if name in ("list_train.txt", "list_val.txt") else test, line.split()[0])
        (home / name).write_text("\n".join(lines) + "\n")
    loaded = load_small("msmt17", tmp_path)
    assert len(loaded.train) == 2
    assert loaded.train.class_names == ("train 0000",)  # not the person 0 of the test lists
    assert loaded.test.class_names == ("test 0000", "test 0001")
    assert loaded.test.cameras.tolist() == [0, 1, 0]  # cameras 14, 05, 14
    assert len(loaded.test.queries) == 1
    assert len(loaded.test.gallery) == 2


def make_vehicles(root: Path) -> Path:
    home = root / "VehicleID_V1.0"
    lists = {
        "train_list.txt": [("0000001", 1), ("0000002", 1)],
        "test_list_800.txt": [(f"000010{i}", 10 + i // 3) for i in range(6)],
        "test_list_1600.txt": [(f"000010{i}", 10 + i // 3) for i in range(9)],
        "test_list_2400.txt": [(f"000010{i}", 10 + i // 3) for i in range(9)],
    }
    for name, rows in lists.items():
        touch(home, "train_test_split", name).write_text("".join(f"{image} {vehicle}\n" for image, vehicle in rows))
        for image, _ in rows:
            touch(home, "image", f"{image}.jpg")
    return root


@pytest.mark.parametrize(("protocol", "vehicles"), [("small", 2), ("medium", 3), ("large", 3)])
def test_vehicleid_has_ten_drawn_galleries(tmp_path: Path, protocol: str, vehicles: int) -> None:
    make_vehicles(tmp_path)
    loaded = load_small("vehicleid", tmp_path, protocol=protocol)
    test = loaded.test
    assert len(test) == 3 * vehicles
    assert len(test.draws) == VEHICLE_DRAWS == 10
    for queries, gallery in test.draws:
        assert sorted(test.labels[gallery]) == list(range(vehicles))
        assert sorted([*queries, *gallery]) == list(range(len(test)))
    assert len({tuple(gallery) for _, gallery in test.draws}) > 1
    again = load_small("vehicleid", tmp_path, protocol=protocol).test
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(test.draws, again.draws, strict=True))
    assert np.array_equal(test.queries, test.draws[0][0])
    assert "10 draws" in repr(test)
    assert test.first_draw().draws == ()
    assert np.array_equal(test.first_draw().gallery, test.draws[0][1])


def test_a_subset_keeps_the_draws() -> None:
    images = with_drawn_galleries(ImageSet([f"{i}.jpg" for i in range(12)], np.arange(12) % 3), 4)
    kept = np.array([11, 0, 3, 4, 5, 7, 8, 9])
    part = images.subset(kept)
    assert len(part.draws) == 4
    for (queries, gallery), (old_queries, old_gallery) in zip(part.draws, images.draws, strict=True):
        assert set(kept[queries]) == set(old_queries) & set(kept)
        assert set(kept[gallery]) == set(old_gallery) & set(kept)
    with pytest.raises(ValueError, match="no draw has both"):
        images.subset([0])
    with pytest.raises(ValueError, match="instead of queries"):
        ImageSet(["a", "b"], [0, 0], queries=[0], gallery=[1], draws=[([0], [1])])


def test_a_short_list_of_vehicles_is_missing_data(tmp_path: Path) -> None:
    make_vehicles(tmp_path)
    (tmp_path / "VehicleID_V1.0" / "image" / "0000104.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 11 listed images are missing .*0000104\.jpg"):
        load_dataset("vehicleid", tmp_path)
    assert locate_dataset("vehicleid", tmp_path) == tmp_path / "VehicleID_V1.0"


@pytest.mark.parametrize("lists", [".", "Inat_dataset_splits"])
def test_inaturalist2018(tmp_path: Path, lists: str) -> None:
    home = tmp_path / "inaturalist2018"
    rows = {
        "Inaturalist_train_set1.txt": ["train_val2018/Plantae/7477/a.jpg", "train_val2018/Aves/7477/b.jpg"],
        "Inaturalist_test_set1.txt": ["train_val2018/Aves/12/c.jpg", "train_val2018/Aves/12/d.jpg"],
    }
    for name, paths in rows.items():
        touch(home, lists, name).write_text("\n".join(paths) + "\n")
        for path in paths:
            touch(home, path)
    loaded = load_small("inaturalist2018", tmp_path)
    assert loaded.train.class_names == ("Aves/7477", "Plantae/7477")
    assert loaded.test.class_names == ("Aves/12",)
    assert loaded.test.queries is None


@pytest.mark.parametrize(
    "name",
    ["inshop", "market1501", "msmt17", "veri776", "vehicleid", "inaturalist2018", "roxford5k", "rparis6k", "gldv2"],
)
def test_what_is_missing_is_told_with_the_way_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{name} is not in .*Expected: ROOT/.*To get it: "):
        load_dataset(name, tmp_path)
    assert locate_dataset(name, tmp_path) is None


def test_boxes_are_cut_from_the_images(tmp_path: Path) -> None:
    from diml.data import BadImageError
    from diml.data.boxes import BoxedImages
    from diml.data.image_sets import DatasetImages

    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    boxes = [(2.4, 3.0, 12.6, 9.0), None, (-5.0, 10.0, 99.0, 99.0), (40.0, 0.0, 50.0, 5.0)]
    images = DatasetImages(BoxedImages([tmp_path / "a.png"] * 4, boxes))
    assert np.array_equal(images[0], pixels[3:9, 2:13])
    assert images[1] == tmp_path / "a.png"
    assert np.array_equal(images[2], pixels[10:])
    with pytest.raises(BadImageError, match="has no pixel of the image of 30 x 20"):
        images[3]
    assert images.image_name(0) == str(tmp_path / "a.png")
