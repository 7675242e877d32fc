"""`diml audit` as a user meets it: masks, alpha and boxes; tables, page, CSV and JSON; a run; errors of use."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diml.cli import main
from diml.training import train
from end_to_end.small_runs import make_images, small_config
from tiny_model import save_tiny_model

CLASSES = ("milk", "juice", "tea <&>")
KINDS = ("object_object", "object_background", "background_object", "background_background")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Three classes of striped objects, four images each, pasted at random places of two shared backgrounds.

    `images` and `masks` mirror each other; `cut` has the objects alone with an alpha channel; `boxes.csv` lists all.
    """
    folder = tmp_path_factory.mktemp("shop")
    random = np.random.default_rng(0)
    backgrounds = [random.integers(0, 256, (90, 110, 3), dtype=np.uint8) for _ in range(2)]
    rows = []
    for number, name in enumerate(CLASSES):
        for shot in range(4):
            pixels = backgrounds[shot % 2].copy()
            top, left = int(random.integers(8, 40)), int(random.integers(12, 50))
            stripes = (np.arange(40)[:, None] // (2 + 3 * number) % 2 * 200 + 30).repeat(40, axis=1)
            pixels[top : top + 40, left : left + 40] = stripes[..., None].astype(np.uint8)
            inside = np.zeros((90, 110), dtype=np.uint8)
            inside[top : top + 40, left : left + 40] = 1
            cut = np.dstack([pixels, inside * 255])
            for kind, what in (("images", pixels), ("masks", inside), ("cut", cut)):
                path = folder / kind / name / f"{shot}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(what).save(path)
            rows.append([f"images/{name}/{shot}.png", name, "test", left, top, left + 40, top + 40])
    with (folder / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split", "x0", "y0", "x1", "y1"], *rows])
    return folder


@pytest.fixture
def words(shop, model):
    return ["audit", "folder", "--data", str(shop / "images"), "--model", str(model), "--workers", "0"]


def test_tables_page_csv_and_json(words, shop, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    output = tmp_path / "audit"
    assert main([*words, "--masks", str(shop / "masks"), "--output", str(output), "--hits", "2"]) == 0
    shown = capsys.readouterr().out
    for expected in ("only by B", "tea <&>", "right only", "Written: "):
        assert expected in shown
    rows = list(csv.DictReader((output / "audit.csv").read_text().splitlines()))
    assert len(rows) == 12 * 2
    for row in rows:
        parts = [float(row[f"whole_{kind}"]) for kind in KINDS]
        assert sum(parts) == pytest.approx(float(row["score"]), abs=1e-6)
    document = json.loads((output / "audit.json").read_text())
    assert document["total"]["queries"] == 12
    assert document["evidence"] == "whole"
    assert document["config"]["dataset"] == "folder"
    only = {row["query"] for row in rows if row["background_only"] == "True"}
    assert document["total"]["background_only"] == len(only)
    flagged = [row["background_only"] == "True" for row in rows]
    assert flagged == sorted(flagged, reverse=True)
    page = (output / "audit.html").read_text()
    assert page.count('<section class="query">') == 12
    assert "tea &lt;&amp;&gt;" in page
    assert "tea <&>" not in page


def test_boxes_are_the_masks_of_rectangles(words, shop, model, capsys):
    found = []
    for more in (["--masks", str(shop / "masks")], ["--boxes", str(shop / "boxes.csv")]):
        assert main([*words, *more, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    csv_words = ["audit", "csv", "--data", str(shop / "boxes.csv"), "--model", str(model), "--workers", "0"]
    assert main([*csv_words, "--boxes", str(shop / "boxes.csv"), "--json"]) == 0
    found.append(json.loads(capsys.readouterr().out))
    for other in found[1:]:
        for name in ("shares", "by_area"):
            assert other["total"][name] == pytest.approx(found[0]["total"][name], abs=1e-5)
        assert other["total"]["background_only"] == found[0]["total"]["background_only"]


def test_alpha_channels(shop, model, tmp_path, capsys):
    words = ["audit", "folder", "--data", str(shop / "cut"), "--model", str(model), "--alpha", "--workers", "0"]
    assert main([*words, "--json", "--output", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"]["queries"] == 12
    assert sum(found["total"]["shares"].values()) == pytest.approx(1)
    assert (tmp_path / "audit.html").is_file()
    assert main([*words[:2], "--data", str(shop / "images"), *words[4:]]) == 2
    assert "has no alpha channel" in capsys.readouterr().err


def test_images_without_a_mask_are_named_and_left_out(words, shop, tmp_path, capsys):
    masks = tmp_path / "masks"
    for path in sorted((shop / "masks").rglob("*.png")):
        target = masks / path.relative_to(shop / "masks")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (masks / "milk" / "1.png").unlink()
    (masks / "juice" / "2.png").write_bytes(b"broken")
    assert main([*words, "--masks", str(masks)]) == 0
    shown = capsys.readouterr().out
    assert "2 images left out of queries and gallery" in shown
    assert "milk/1.png: has no mask milk/1.*" in shown
    assert "juice/2.png cannot be read" in shown
    Image.new("L", (110, 91)).save(masks / "juice" / "2.png")
    assert main([*words, "--masks", str(masks)]) == 2
    shown = capsys.readouterr().err
    assert str(masks / "juice" / "2.png") in shown
    assert f"{shop / 'images' / 'juice' / '2.png'}, 110 x 90 pixels, got 110 x 91" in shown


def test_a_run_is_audited_on_its_test_images(tmp_path, capsys):
    images = make_images(tmp_path / "images")
    masks = tmp_path / "masks"
    for path in images.parent.rglob("*.png"):
        target = masks / path.relative_to(images.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.arange(72)[:, None] < 36).repeat(80, axis=1)).save(target)
    short = {"epochs": 1, "sampler_options": ("batches_per_epoch=2",), "per_class": 2, "batch_size": 4}
    train(small_config(images, tmp_path / "run", **short))
    assert main(["audit", str(tmp_path / "run"), "--masks", str(masks), "--json", "--workers", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"]["queries"] == 16
    # the crop is half a pixel off the centre, as in torchvision
    assert found["total"]["by_area"] == pytest.approx(dict.fromkeys(KINDS, 0.25), abs=0.01)
    assert main(["audit", str(tmp_path / "run"), "--alpha", "--model", "resnet18"]) == 2
    assert "omit --model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "need one of --masks FOLDER, --alpha and --boxes FILE, got 0"),
        (["--alpha", "--masks", "x"], "got 2"),
        (["--masks", "nowhere"], "need a folder, got nowhere"),
        (["--boxes", "nowhere.csv"], "no such file: nowhere.csv"),
        (["--boxes", str(Path("nowhere") / "bounding_boxes.txt")], "CUB needs bounding_boxes.txt and images.txt"),
        (["--alpha", "--queries", "0"], "queries: need at least 1"),
        (["--alpha", "--hits", "0"], "hits: need 1"),
        (["--alpha", "--rerank-at", "0"], "--rerank-at: need at least 1"),
    ],
)
def test_errors_of_use_are_one_line(words, shop, more, message, capsys):
    words = [*words[:3], str(shop / "cut"), *words[4:]]
    assert main([*words, *more]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
