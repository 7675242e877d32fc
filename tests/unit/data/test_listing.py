"""One way to list images, the same for every command: links, loops, one identity a file, names, formats."""

from __future__ import annotations

import itertools
import os
import socket
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diml.data import listing as listing_module
from diml.data import load_dataset
from diml.data.datasets import check_dataset
from diml.data.image_files import IMAGE_ENDINGS
from diml.data.listing import BROKEN, LOOPS, SECOND_NAMES, SPECIAL, FileListing, LeftOutWarning, find_images, named_file
from diml.matching import Matcher
from diml.search.sources import list_source
from diml.web.folder import FolderGallery

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), len(str(path)) % 255).save(path)
    return path


@pytest.fixture
def shop(tmp_path):
    """Four classes of four images."""
    for number in range(16):
        image(tmp_path / "shop" / f"class {number % 4}" / f"{number}.png")
    return tmp_path / "shop"


def evaluated(folder: Path) -> list[str]:
    """Images as `evaluate`, `train`, `report`, `audit`, `calibrate`, `faithfulness`, `compare` and `tune` list them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftOutWarning)
        paths = load_dataset("folder", folder).test.paths
        assert check_dataset("folder", folder).images == len(paths)
    return [path.relative_to(folder).as_posix() for path in paths]


def indexed(folder: Path) -> list[str]:
    """Images as `index build` lists them."""
    return list(list_source(folder).paths)


def served(folder: Path) -> list[str]:
    """Images as `serve --folder` lists them."""
    gallery = FolderGallery(folder, None, matcher=Matcher())  # type: ignore[arg-type]
    return [item.name for item in gallery.items(0, 1000)]


COMMANDS = [evaluated, indexed, served]


def linked_class(shop: Path) -> None:
    (shop / "class 1").rename(shop.parent / "away")
    (shop / "class 1").symlink_to(shop.parent / "away")


def link_inside_a_class(shop: Path) -> None:
    (shop / "class 1" / "1.png").unlink()
    image(shop.parent / "away" / "1.png")
    (shop / "class 1" / "more").symlink_to(shop.parent / "away")


def loop(shop: Path) -> None:
    (shop / "loop").symlink_to(".")
    (shop / "class 0" / "up").symlink_to("..")
    (shop / "root").symlink_to("/")


def two_links_in_a_circle(shop: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (shop.parent / name).mkdir()
        (shop.parent / name / "to").symlink_to(shop.parent / other)
    (shop / "class 0" / "circle").symlink_to(shop.parent / "a")


def second_names(shop: Path) -> None:
    (shop / "class 0" / "link.png").symlink_to(shop / "class 1" / "1.png")
    os.link(shop / "class 2" / "2.png", shop / "class 2" / "hard.png")
    (shop / "class 9").symlink_to(shop / "class 3")
    (shop / "class 0" / "itself").symlink_to("itself")
    (shop / "class 0" / "gone.png").symlink_to("nowhere.png")


def hub_cache(shop: Path) -> None:
    """Every image a link to a file named by its content."""
    for number, file in enumerate(sorted(shop.rglob("*.png"))):
        blob = shop.parent / "blobs" / f"{number:08x}"
        blob.parent.mkdir(exist_ok=True)
        file.rename(blob)
        file.symlink_to(blob)


def special_files(shop: Path) -> None:
    os.mkfifo(shop / "class 0" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(shop / "class 0" / "s.png")) if len(str(shop)) < 80 else None
    (shop / "class 0" / "zero.png").symlink_to("/dev/zero")
    (shop / "class 0" / "folder.png").mkdir()


def other_files(shop: Path) -> None:
    (shop / "class 0" / "notes.txt").write_text("")
    (shop / "class 0" / "README").write_text("")
    (shop / "class 0" / ".hidden.png").write_text("")
    (shop / "class 0" / ".git").mkdir()
    (shop / "class 0" / ".git" / "x.png").write_text("")
    (shop / "empty").mkdir()


CASES: dict[str, tuple[Callable[[Path], None], dict[str, str | None]]] = {
    "as it is": (lambda shop: None, {}),
    "a linked class": (linked_class, {}),
    "a link inside a class": (link_inside_a_class, {"class 1/1.png": "class 1/more/1.png"}),
    "loops": (loop, {}),
    "a circle of links": (two_links_in_a_circle, {}),
    "second names": (second_names, {}),
    "a cache of a hub": (hub_cache, {}),
    "special files": (special_files, {}),
    "other files": (other_files, {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("listed", COMMANDS)
def test_every_command_lists_the_same_images(shop, listed, case):
    change, renamed = CASES[case]
    expected = {f"class {number % 4}/{number}.png" for number in range(16)}
    change(shop)
    found = listed(shop)
    assert len(found) == len(set(found)) == 16
    assert set(found) == {renamed.get(name, name) for name in expected}
    assert found == sorted(found, key=lambda name: name.split("/"))


@pytest.mark.parametrize("listed", COMMANDS)
def test_every_format_that_is_read_is_listed(shop, listed):
    for ending in IMAGE_ENDINGS:
        (shop / "class 0" / f"one{ending.upper()}").write_bytes(b"")
    assert len(listed(shop)) == 16 + len(IMAGE_ENDINGS)


def test_what_is_left_out_is_counted_in_one_line(shop):
    for change in (other_files, second_names, special_files, loop):
        change(shop)
    found = find_images(shop)
    counts = {".txt": 1, "without ending": 1, BROKEN: 2, LOOPS: 3, SECOND_NAMES: 3}
    assert {what: found.left_out[what] for what in counts} == counts
    assert found.left_out[SPECIAL] >= 2
    assert "\n" not in found.notice()
    for what, count in counts.items():
        assert f"{count} {what}" in found.notice()
    assert find_images(shop / "class 1").notice() is None
    image(shop / "loose.png")
    with pytest.warns(LeftOutWarning, match=r"1 image outside of class folders.*sub-folders without an image.*empty"):
        load_dataset("folder", shop)
    assert "left out" in list_source(shop).notice()


def test_a_folder_without_classes_says_what_is_there(tmp_path):
    image(tmp_path / "loose.png")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.cr2").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"1 image outside of class folders.*raw"):
        load_dataset("folder", tmp_path)


def test_a_folder_that_cannot_be_opened_is_named(shop, monkeypatch):
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("class 1"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    found = find_images(shop)
    assert (len(found), found.closed) == (12, (str(shop / "class 1"),))
    assert "1 folders that cannot be opened" in found.notice()
    monkeypatch.setattr(os, "scandir", lambda path: refused("class 1"))
    with pytest.raises(PermissionError):
        find_images(shop)


def test_links_to_links_do_not_multiply(tmp_path):
    """Twenty levels of two links each would be a million folders."""
    folders = [tmp_path / "levels" / str(number) for number in range(20)]
    for folder in folders:
        folder.mkdir(parents=True)
    for folder, deeper in itertools.pairwise(folders):
        for name in "ab":
            (folder / name).symlink_to(deeper)
    image(folders[-1] / "x.png")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "class").symlink_to(folders[0])
    assert len(find_images(tmp_path / "shop")) == 1


def test_classes_are_named_in_one_form_of_accents(tmp_path):
    image(tmp_path / NFD / "a.png")
    image(tmp_path / NFC / "b.png")
    assert load_dataset("folder", tmp_path).test.class_names == (NFC,)
    listing = list_source(tmp_path)
    assert {listing.metadata(row, listing.columns)["label"] for row in range(2)} == {NFC}


def csv_evaluated(file: Path, paths: list[str]) -> list[Path]:
    file.write_text("path,label,split\n" + "".join(f'"{path}",x,test\n' for path in paths), encoding="utf-8")
    return list(load_dataset("csv", file).test.paths)


def csv_indexed(file: Path, paths: list[str]) -> list[Path]:
    file.write_text("path,label\n" + "".join(f'"{path}",x\n' for path in paths), encoding="utf-8")
    listing = list_source(file)
    return [listing.file(row) for row in range(len(listing))]


LISTS = [csv_evaluated, csv_indexed]


@pytest.mark.parametrize("read", LISTS)
@pytest.mark.parametrize(
    "second",
    ["{shop}/class 0/0.png", "class 1/../class 0/0.png", "./class 0/0.png", "CLASS 0/0.PNG", "hard.png", "soft.png"],
)
def test_an_image_is_one_image_whatever_its_path(shop, read, second):
    os.link(shop / "class 0" / "0.png", shop / "hard.png")
    (shop / "soft.png").symlink_to(shop / "class 0" / "0.png")
    with pytest.raises(ValueError, match=r"line 3: .* is already in line 2"):
        read(shop / "list.csv", ["class 0/0.png", second.format(shop=shop)])


@pytest.mark.parametrize("read", LISTS)
def test_names_are_found_in_any_form_and_letter_case(shop, read):
    image(shop / NFD / f"{NFD}.png")
    image(shop / "Upper" / "A.JPG")
    found = read(shop / "list.csv", [f"{NFC}/{NFC}.png", "upper/a.jpg", "class 0/../class 0/0.png"])
    assert [file.resolve() for file in found] == [
        shop / NFD / f"{NFD}.png",
        shop / "Upper" / "A.JPG",
        shop / "class 0" / "0.png",
    ]


@pytest.mark.parametrize("read", LISTS)
def test_a_list_that_is_a_link_looks_beside_the_link_first(shop, read, tmp_path):
    (tmp_path / "blobs").mkdir()
    file = tmp_path / "blobs" / "abc.csv"
    (shop / "list.csv").symlink_to(file)
    assert read(shop / "list.csv", ["class 0/0.png"]) == [shop / "class 0" / "0.png"]
    (tmp_path / "user").mkdir()
    (shop / "list.csv").unlink()
    (tmp_path / "user" / "list.csv").symlink_to(shop / "own.csv")
    found = read(tmp_path / "user" / "list.csv", ["class 1/1.png"])
    assert [one.resolve() for one in found] == [shop / "class 1" / "1.png"]


def test_a_folder_named_like_a_list_is_a_folder(shop):
    from diml.search.sources import image_file

    folder = shop.parent / "x.csv"
    shop.rename(folder)
    for listed in COMMANDS:
        assert len(listed(folder)) == 16
    listing = list_source(folder)
    entry = {"source": listing.source, "path": listing.paths[0]}
    assert image_file(entry) == listing.file(0)
    with pytest.raises(FileNotFoundError, match="that is a folder"):
        load_dataset("csv", folder)


def test_a_name_that_several_files_fit_is_not_guessed(tmp_path):
    for name in ("a.png", "A.png", "b.png"):
        image(tmp_path / name)
    listing = FileListing()
    assert listing.find(tmp_path / "a.png") == tmp_path / "a.png"
    assert listing.find(tmp_path / "A.PNG") is None
    assert listing.why_not(tmp_path / "A.PNG") == " (which of A.png, a.png?)"
    assert listing.find(tmp_path / "B.PNG") == tmp_path / "b.png"
    assert listing.find(tmp_path) is None
    assert listing.find(tmp_path / "b.png" / "c.png") is None
    assert listing.find(str(tmp_path / "a\0.png")) is None


@pytest.mark.parametrize("kind", ["folder", "pipe", "broken"])
def test_what_is_no_regular_file_is_not_found_and_said_why(tmp_path, kind):
    place = tmp_path / "a.png"
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("nowhere")
    (tmp_path / "list.csv").write_text("path,label,split\na.png,x,test\n")
    with pytest.raises(ValueError, match=r"no such image.*\((that is a folder|that is no regular file|a broken link)"):
        load_dataset("csv", tmp_path / "list.csv")


def test_relative_places_work(shop, monkeypatch):
    monkeypatch.chdir(shop)
    assert len(find_images(".")) == len(find_images(Path())) == 16
    assert find_images(".").names[0] == "class 0/0.png"
    assert FileListing().find("class 0/0.png") == Path("class 0/0.png")
    assert FileListing().identity("class 0/0.png") == str(shop / "class 0" / "0.png")


def test_an_image_named_by_the_user_is_found_by_the_same_rules(shop, monkeypatch):
    image(shop / NFD / "A.JPG")
    monkeypatch.chdir(shop)
    assert named_file(f"{NFC}/a.jpg") == Path(NFD, "A.JPG")
    assert named_file(shop / "class 0" / "0.png") == shop / "class 0" / "0.png"
    assert named_file("nowhere.png") == Path("nowhere.png")


def test_a_long_list_reads_each_folder_once(tmp_path, monkeypatch):
    """What is asked of the file system grows with the folders, not with the files; look_up is find and identity."""
    files = [tmp_path / f"class{number}" / f"{shot}.png" for number in range(3) for shot in range(50)]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    (tmp_path / "class0" / "link.png").symlink_to(files[0])
    (tmp_path / "class0" / "hard.png").hardlink_to(files[1])
    asked: Counter[str] = Counter()

    def counted(call):
        def counting(*arguments, **options):
            asked[call.__name__] += 1
            return call(*arguments, **options)

        return counting

    for module, name in ((os, "scandir"), (os, "stat"), (os, "lstat"), (os.path, "realpath"), (os.path, "samefile")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    listing, again = FileListing(), FileListing()
    found = [listing.look_up(str(file)) for file in files]
    assert asked["scandir"] == 3
    assert sum(asked.values()) <= 3 * 20
    monkeypatch.undo()
    wanted = [*map(str, files), str(tmp_path / "class0" / "link.png"), str(tmp_path / "class0" / "hard.png")]
    wanted += [str(tmp_path / "class1" / "0.PNG"), str(tmp_path / "class1" / ".." / "class2" / "0.png")]
    for path in [*wanted, str(tmp_path / "class1"), str(tmp_path / "nowhere.png"), ""]:
        one, other = again.look_up(path), again.find(path)
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (Path(one.path), one.identity) == (other, again.identity(other))
    assert [one.path for one in found if one is not None] == list(map(str, files))


@given(st.text("ab/.", max_size=12), st.text("ab/.", max_size=6))
def test_paths_are_split_and_joined_as_by_the_standard_library(path, name):
    assert listing_module._split(path) == os.path.split(path)
    assert listing_module.joined(f"{path}/", name) == os.path.join(f"{path}/", name)  # noqa: PTH118
