"""`diml index` and `diml search` as a user meets them."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diml.cli import main
from diml.matching import Matcher
from diml.models import load_embedder
from tiny_model import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def draw(path: Path, seed: int, noise: int = 0) -> None:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 200, (6, 6, 3)) + np.random.default_rng(noise).integers(0, 2, (6, 6, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).resize((80, 80)).save(path)


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Nine images in three classes; one of them lies almost the same in another class."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for seed in range(9):
        draw(tmp_path / "shop" / f"class{seed % 3}" / f"{seed}.png", seed)
    draw(tmp_path / "shop" / "class1" / "copy.png", seed=0, noise=5)
    return tmp_path / "shop"


@pytest.fixture
def index(shop, model, capsys):
    assert main(["index", "build", "shop", "--index", "shop.index", "--model", str(model)]) == 0
    assert capsys.readouterr().out == (
        "shop.index: 10 images; 10 embedded, 0 copied, 0 moved, 0 unchanged, 0 removed, 0 left out\n"
    )
    return "shop.index"


def test_build_again_as_json_with_a_bad_image(index, shop, model, capsys):
    (shop / "torn.jpg").write_bytes(b"torn")
    words = ["index", "build", "shop", "--index", index, "--model", str(model)]
    assert main(words) == 1
    shown = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"left out .*shop/torn\.jpg: .+", shown[0])
    assert shown[1].endswith("0 embedded, 0 copied, 0 moved, 10 unchanged, 0 removed, 1 left out")
    assert main([*words, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["total"], told["unchanged"], len(told["bad"])) == (10, 10, 1)


def test_a_build_that_shrinks_the_index_stops_until_it_is_allowed(index, shop, model, capsys, tmp_path):
    words = ["index", "build", "shop", "--index", index, "--model", str(model)]
    (shop / "class2").rename(tmp_path / "away")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "would remove 3 of 10 images: 3 whose folder is missing; all images of" in error
    assert "--allow-removals" in error
    (shop / "notes.txt").write_text("")
    assert main([*words, "--allow-removals"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].endswith("shop: left out 1 file: 1 .txt")
    assert shown[1] == "shop.index: 7 images; 0 embedded, 0 copied, 0 moved, 7 unchanged, 3 removed, 0 left out"
    assert main(["index", "info", index, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sources"] == {str(shop): {"images": 7, "exists": True}}
    (shop / "class0").rename(shop / "class zero")
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["moved"], told["removed"], told["left_out"], told["notices"]) == (3, 0, {".txt": 1}, [])


def test_labels_of_nested_folders_change_without_embedding(shop, model, capsys):
    draw(shop / "class0" / "front" / "10.png", 10)
    words = ["index", "build", "shop", "--index", "shop.index", "--model", str(model), "--json"]
    assert main(words) == 0
    assert main([*words, "--label-from", "parent"]) == 0
    lines = capsys.readouterr().out
    told = json.loads(lines[lines.rindex("\n{") :])
    assert (told["embedded"], told["copied"], told["unchanged"]) == (0, 1, 10)
    search = ["search", "shop.index", "shop/class0/0.png", "--where", "label = 'front'", "--json"]
    assert main(search) == 0
    assert len(json.loads(capsys.readouterr().out)["hits"]) == 1
    draw(shop / "class1" / "front" / "11.png", 11)
    assert main(words) == 0  # as before, though it is not said again
    told = json.loads(capsys.readouterr().out)
    assert (told["embedded"], told["copied"], told["unchanged"]) == (1, 0, 11)
    assert main(search) == 0
    assert len(json.loads(capsys.readouterr().out)["hits"]) == 2
    moved = shop.rename(shop.with_name("moved"))
    words[2] = "moved"
    assert main(words) == 2
    assert f"{shop} is now {moved}, and its labels were from parent" in capsys.readouterr().err
    assert main([*words, "--label-from", "parent"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["embedded"], told["moved"], told["total"]) == (0, 12, 12)
    kept = Path("shop.index", "labels.json")
    kept.write_text(kept.read_text().replace("parent", "top"))
    assert main(words) == 2
    assert "labels.json: damaged or changed" in capsys.readouterr().err
    assert main(["index", "verify", "shop.index"]) == 1
    assert "labels.json: damaged or changed" in capsys.readouterr().out
    assert main([*words, "--label-from", "parent"]) == 0
    assert main(["index", "verify", "shop.index"]) == 0


def test_types_are_named_and_conditions_follow(shop, model, capsys):
    rows = [f"shop/class{seed % 3}/{seed}.png,{seed}.50,00{seed}" for seed in range(9)]
    Path("shop.csv").write_text("path,price,code\n" + "\n".join(rows) + "\n")
    words = ["index", "build", "shop.csv", "--index", "list.index", "--model", str(model)]
    assert main([*words, "--types", "price=float"]) == 0
    assert "code: text, as '000'" in capsys.readouterr().out
    search = ["search", "list.index", "shop/class0/0.png", "--explain", "none", "--json", "--where"]
    assert main([*search, "price < 2 and code != '000'"]) == 0
    assert [hit["metadata"]["price"] for hit in json.loads(capsys.readouterr().out)["hits"]] == [1.5]
    for condition, told in (
        ("price < 99999999999999999999999", ""),
        ("price < 1e999", "1.8e308"),
        ("code = 1", "text"),
    ):
        assert main([*search, condition]) == (2 if told else 0)
        assert told in capsys.readouterr().err
    Path("shop.csv").write_text("path,price,code\n" + "\n".join(rows).replace("8.50", "dear") + "\n")
    assert main(words) == 2
    assert "shop.csv, line 10 (shop/class2/8.png): price needs number, got 'dear'" in capsys.readouterr().err


def test_a_malformed_list_changes_nothing(shop, model, capsys):
    rows = [f'shop/class{seed % 3}/{seed}.png,"note {seed}"' for seed in range(9)]
    file = Path("shop.csv")
    file.write_text("path,note\n" + "\n".join(rows) + "\n")
    words = ["index", "build", "shop.csv", "--index", "list.index", "--model", str(model)]
    assert main(words) == 0
    file.write_text(file.read_text().replace('note 2"', "note 2"))
    assert main([*words, "--allow-removals"]) == 2
    assert "line 4" in capsys.readouterr().err
    assert main(["index", "info", "list.index", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 9


def test_images_are_removed_by_any_name(index, shop, capsys):
    (shop.parent / "link.png").symlink_to(shop / "class0" / "0.png")
    names = ["link.png", "shop/class1/../class1/1.png", "SHOP/Class2/2.PNG"]
    assert main(["index", "remove", index, *names]) == 0
    assert capsys.readouterr().out == "shop.index: 3 removed, 7 left\n"
    assert main(["index", "remove", index, "shop/class0/0.png"]) == 2


def test_info_tells_what_it_is_of(index, model, capsys):
    assert main(["index", "info", index, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["regions"], told["storage"], told["kind"]) == (10, 16, "int8", "LanceDB")
    assert told["model"] == str(model)
    assert told["embedder"] == load_embedder(model).fingerprint()
    assert told["calibration"] is None
    assert main(["index", "info", index]) == 0
    assert "int8" in capsys.readouterr().out


def test_search_prints_hits_with_their_parts(index, shop, capsys):
    assert main(["search", index, "shop/class0/0.png", "-k", "3", "--explain", "full"]) == 0
    shown = capsys.readouterr().out
    first, second = shown.index("class0/0.png"), shown.index("class1/copy.png")
    assert first < second
    assert re.search(r"[A-D][1-4] -> [A-D][1-4] 0\.\d{3}, ", shown)


def test_search_as_json_has_every_ledger(index, shop, capsys):
    words = ["search", index, "shop/class0/0.png", "--k", "4", "--where", "label = 'class1'", "--json"]
    assert main([*words, "--explain", "full"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [hit["rank"] for hit in told["hits"]] == [1, 2, 3, 4]
    assert {hit["metadata"]["label"] for hit in told["hits"]} == {"class1"}
    assert told["hits"][0]["file"] == str(shop / "class1" / "copy.png")
    for hit in told["hits"]:
        parts = np.multiply(hit["ledger"]["plan"], hit["ledger"]["cosine"])
        assert parts.sum() == pytest.approx(hit["structural"], abs=1e-4)
        assert hit["score"] == pytest.approx(hit["pooled"] + hit["structural"], abs=1e-5)


def test_each_hit_has_a_short_explanation_unless_told_otherwise(index, shop, capsys):
    words = ["search", index, "shop/class0/0.png", "-k", "2"]
    assert main(words) == 0
    short = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert re.search(r"parts? carr", short)
    assert " -> " not in short
    assert "probability" not in short
    assert main([*words, "--explain", "none"]) == 0
    assert not re.search(r"parts? carr", capsys.readouterr().out)
    sizes = {}
    for explain in ("none", "short", "full"):
        assert main([*words, "--json", "--explain", explain]) == 0
        text = capsys.readouterr().out
        sizes[explain], hit = len(text), json.loads(text)["hits"][0]
        assert (hit["summary"] is None) == (explain == "none")
        assert ("ledger" in hit) == (explain == "full")
    assert hit["summary"]["whole"] is True
    assert sum(part["value"] for part in hit["summary"]["parts"]) + hit["summary"]["between"]["value"] == pytest.approx(
        hit["summary"]["score"], abs=1e-4
    )
    assert sizes["none"] < sizes["short"] < sizes["full"]


@pytest.fixture(params=["calibrated.index", "calibrated.db"])
def calibrated(request, tmp_path, model, monkeypatch, capsys):
    """An index that was calibrated on its own images and labels: 12 classes of 5."""
    if request.param.endswith(".db"):
        pytest.importorskip("milvus_lite")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    for number in range(60):
        draw(tmp_path / "many" / f"class{number // 5}" / f"{number}.png", seed=number // 5, noise=number)
    assert main(["index", "build", "many", "--index", request.param, "--model", str(model)]) == 0
    words = ["calibrate", request.param, "--kind", "product", "--fit-on", "all", "--output", request.param]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert f"{request.param}, leave-one-out, {model}" in shown
    assert "Written: " in shown
    assert "calibration.json" in shown
    assert main(["index", "info", request.param, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calibration"].startswith(f"Calibrator(test_resnet on {request.param}")
    return request.param


def test_a_calibrated_index_tells_how_sure_it_is(calibrated, capsys):
    words = ["search", calibrated, "many/class3/15.png", "-k", "6", "--false-accept-rate", "0.2"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Probably in the gallery: the first hit reaches ")
    assert "how likely each is of the query's product" in shown
    assert len(re.findall(r"\d+ % ", shown)) >= 6
    assert main([*words, "--json", "--html", "hits.html"]) == 0
    told = json.loads(capsys.readouterr().out)
    chances = [hit["probability"] for hit in told["hits"]]
    assert chances == sorted(chances, reverse=True)
    assert all(hit["summary"]["probability"] == hit["probability"] for hit in told["hits"])
    assert "likely the same product" in told["hits"][0]["summary"]["headline"]
    assert told["in_gallery"]["likely"] is True
    assert told["calibration"]["kind"] == "product"
    page = Path("hits.html").read_text()
    assert "likely the same product" in page
    assert "Probably in the gallery" in page
    assert main([*words, "--epsilon", "0.2"]) == 0
    shown = capsys.readouterr().out
    assert "The calibration of the index is not used" in shown
    assert "probability" not in shown.replace("probabilities", "")
    assert main([*words, "--calibration", "nowhere"]) == 2
    assert "diml calibrate" in capsys.readouterr().err
    assert main(["calibrate", calibrated, "--label", "colour"]) == 2
    assert "need a column of the index, got 'colour'" in capsys.readouterr().err
    assert main(["calibrate", calibrated, "--grid", "2"]) == 2
    assert "an index has its own" in capsys.readouterr().err


def test_many_queries_of_a_calibrated_index_have_probabilities(calibrated, capsys):
    shared = ["-k", "6", "--exclude-self", "--explain", "none"]
    assert main(["search", calibrated, "--queries", "many", *shared, "--csv", "hits.csv"]) == 0
    assert capsys.readouterr().out.splitlines() == ["Queries: 60 searched, 0 left out", "Written: hits.csv"]
    with Path("hits.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 360
    assert all(row["query"] != row["hit"] for row in rows)
    name = str(Path("many/class3/15.png").resolve())
    assert main(["search", calibrated, name, *shared, "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)["hits"]
    own = [row for row in rows if row["query"] == name]
    assert [row["hit"] for row in own] == [hit["file"] for hit in alone]
    assert [float(row["probability"]) for row in own] == pytest.approx([hit["probability"] for hit in alone], abs=1e-4)
    assert main(["search", calibrated, "--queries", "many/class3", *shared]) == 0
    assert "probability" in capsys.readouterr().out


def test_search_writes_a_page(index, shop, capsys):
    assert main(["search", index, "shop/class0/0.png", "-k", "2", "--html", "hits.html"]) == 0
    assert "Written: hits.html" in capsys.readouterr().out
    page = Path("hits.html").read_text()
    assert "copy.png" in page
    assert page.count("data:image/jpeg") == 3


def test_the_matcher_is_that_of_the_index_unless_told_otherwise(shop, model, capsys):
    words = ["index", "build", "shop", "--index", "sharp.index", "--model", str(model), "--epsilon", "0.02"]
    assert main(words) == 0
    assert "epsilon 0.02 (the model's own: 0.05)" in capsys.readouterr().out
    assert main(["index", "info", "sharp.index"]) == 0
    assert "epsilon 0.02" in capsys.readouterr().out
    query = ["search", "sharp.index", "shop/class0/0.png", "-k", "10"]
    scores = {}
    for options in ([], ["--epsilon", "0.5"]):
        assert main([*query, *options]) == 0
        assert ("given on the command line" in capsys.readouterr().out) == bool(options)
        assert main([*query, *options, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        epsilon = float(options[-1]) if options else 0.02
        assert told["matcher"] == Matcher(epsilon=epsilon).to_dict()
        scores[epsilon] = {hit["file"]: hit["score"] for hit in told["hits"]}
        assert main(["search", "sharp.index", "--all-pairs", "--threshold", "-2", "--json", *options]) == 0
        pairs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        itself = str(shop / "class0" / "0.png")
        for pair in pairs:
            a, b = pair["a"]["file"], pair["b"]["file"]
            if itself in (a, b):
                assert pair["score"] == pytest.approx(scores[epsilon][b if a == itself else a], abs=2e-3)
    assert scores[0.02] != scores[0.5]
    assert main([*words[:-1], "0.05"]) == 2
    assert "has Matcher" in capsys.readouterr().err
    assert main(words) == 0


def test_many_queries_have_the_hits_of_each_of_them(index, shop, tmp_path, capsys):
    queries = tmp_path / "queries"
    for seed in (0, 4, 7):
        draw(queries / "new" / f"{seed}.png", seed, noise=3)
    (queries / "torn.jpg").write_bytes(b"torn")
    words = ["-k", "4", "--where", "label != 'class2'", "--rerank-at", "5", "--json"]
    assert main(["search", index, "--queries", "queries", "--batch-size", "2", *words, "--csv", "hits.csv"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [image["path"] for image in told["bad"]] == [str(queries / "torn.jpg")]
    assert [Path(one["query"]).name for one in told["queries"]] == ["0.png", "4.png", "7.png"]
    for one in told["queries"]:
        assert main(["search", index, one["query"], *words]) == 0
        alone = json.loads(capsys.readouterr().out)
        assert [hit["file"] for hit in one["hits"]] == [hit["file"] for hit in alone["hits"]]
        assert [hit["score"] for hit in one["hits"]] == pytest.approx([hit["score"] for hit in alone["hits"]], abs=1e-5)
        sentences = [[hit["summary"]["sentence"] for hit in found["hits"]] for found in (one, alone)]
        assert sentences[0] == sentences[1]
    with Path("hits.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["query", "rank", "hit", "score", "label"]
    hits = [(one["query"], hit) for one in told["queries"] for hit in one["hits"]]
    assert [(row["query"], int(row["rank"]), row["hit"], float(row["score"]), row["label"]) for row in rows] == [
        (query, hit["rank"], hit["file"], hit["score"], hit["metadata"]["label"]) for query, hit in hits
    ]


def test_many_queries_of_a_list_as_a_table(index, shop, tmp_path, capsys):
    (tmp_path / "list.csv").write_text("path,source\nshop/class0/0.png,a\nshop/gone.png,b\n")
    words = ["search", index, "--queries", "list.csv", "--explain"]
    shown = {}
    for explain in ("none", "short", "full"):
        assert main([*words, explain]) == 1
        text = capsys.readouterr().out
        shown[explain] = " ".join(text.replace("\u2502", " ").split())
        assert re.search(r"left out \S*shop/gone.png: ", text)
        assert "Queries: 1 searched, 1 left out" in text
    assert [bool(re.search(r"parts? carr", shown[explain])) for explain in shown] == [False, True, True]
    assert [" -> " in shown[explain] for explain in shown] == [False, False, True]
    assert main(["search", index, "--queries", "list.csv", "--rerank-at", "0", "--where", "label = 'no'"]) == 1
    assert "no hits" in capsys.readouterr().out


def test_the_own_image_of_a_query_is_left_out_by_its_content(index, shop, tmp_path, capsys):
    (tmp_path / "same.png").write_bytes((shop / "class0" / "0.png").read_bytes())
    (tmp_path / "list.csv").write_text("path\nsame.png\nshop/class1/1.png\n")
    assert main(["search", index, "same.png", "-k", "10", "--exclude-self", "--json"]) == 0
    alone = [hit["file"] for hit in json.loads(capsys.readouterr().out)["hits"]]
    assert len(alone) == 9
    assert alone[0] == str(shop / "class1" / "copy.png")
    assert main(["search", index, "--queries", "list.csv", "-k", "10", "--exclude-self", "--json"]) == 0
    files = [[hit["file"] for hit in one["hits"]] for one in json.loads(capsys.readouterr().out)["queries"]]
    assert files[0] == alone
    assert (len(files[1]), str(shop / "class1" / "1.png") in files[1]) == (9, False)


def test_a_box_searches_for_a_part_of_the_query(index, shop, tmp_path, capsys):
    sheet = Image.new("RGB", (160, 160), "grey")
    with Image.open(shop / "class1" / "4.png") as part:
        sheet.paste(part, (80, 0))
    sheet.save(tmp_path / "sheet.png")
    found = []
    for box in ("0.5,0,1,0.5", "80,0,160,80"):
        assert main(["search", index, "sheet.png", "--box", box, "-k", "1", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["box"] == [float(edge) for edge in box.split(",")]
        found.append((told["hits"][0]["file"], told["hits"][0]["score"]))
    assert found[0] == found[1] == (str(shop / "class1" / "4.png"), pytest.approx(2.0, abs=0.05))


def test_all_pairs_finds_the_copy_and_that_it_is_labelled_otherwise(index, shop, capsys):
    words = ["search", index, "--all-pairs", "--json", "--differ", "label"]
    assert main([*words, "--threshold", "1"]) == 0
    pairs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(pair["a"]["metadata"]["label"] != pair["b"]["metadata"]["label"] for pair in pairs)
    pairs.sort(key=lambda pair: -pair["score"])
    files = {pairs[0][side]["file"] for side in "ab"}
    assert files == {str(shop / "class0" / "0.png"), str(shop / "class1" / "copy.png")}
    between = str((pairs[0]["score"] + pairs[1]["score"]) / 2)
    assert main([*words, "--threshold", between]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["search", index, "--all-pairs", "--threshold", between]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split("\t")[1:] in (sorted(files), sorted(files, reverse=True))
    assert shown[-1].startswith("1 pairs of score")


def test_duplicates_as_text_json_csv_and_page(index, shop, model, capsys):
    (shop / "class2" / "again.png").write_bytes((shop / "class2" / "2.png").read_bytes())
    assert main(["index", "build", "shop", "--index", index, "--model", str(model)]) == 0
    capsys.readouterr()
    words = ["duplicates", index, "--sample", "3", "--precision", "0.5"]
    assert main([*words, "--csv", "copies.csv", "--html", "copies.html"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith("Group 1: keep   ")
    assert lines[1].endswith("(exact copy)")
    assert "11 images: 2 groups with 2 images to remove, 1 of them exact copies." in lines
    assert any(line.startswith("Recall: ") for line in lines)
    assert all(word in shown.err for word in ("calibrating", "neighbours", "reading", "comparing"))
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [[image["relation"] for image in group["images"]] for group in told["groups"]] == [
        ["kept", "exact"],
        ["kept", "copy"],
    ]
    assert {Path(image["file"]).name for image in told["groups"][1]["images"]} == {"0.png", "copy.png"}
    assert told["threshold"]["source"] == "default"  # too few similar pairs to tell the precision of another
    rows = list(csv.DictReader(Path("copies.csv").read_text().splitlines()))
    assert [row["path"] for row in rows] == [image["file"] for group in told["groups"] for image in group["images"]]
    assert "copy.png" in Path("copies.html").read_text()
    (shop / "class0" / "0.png").unlink()
    assert main([*words, "--sample", "0"]) == 1  # an image that cannot be read
    assert "left out" in capsys.readouterr().err


def test_verify_remove_and_optimize(index, shop, capsys):
    assert main(["index", "verify", index]) == 0
    assert "10 rows, 0 faults; all images up to date" in capsys.readouterr().out
    draw(shop / "class2" / "2.png", seed=77)
    assert main(["index", "verify", index]) == 1
    assert "class2/2.png: changed since it was indexed" in capsys.readouterr().out
    assert main(["index", "verify", index, "--no-images"]) == 0
    assert main(["index", "remove", index, "shop/class2/2.png"]) == 0
    assert main(["index", "remove", index, "--where", "label = 'class1'"]) == 0
    assert "4 removed, 5 left" in capsys.readouterr().out
    assert main(["index", "optimize", index]) == 0
    assert "5 images" in capsys.readouterr().out
    assert (shop / "class2" / "2.png").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["index", "build", "nowhere", "--index", "x"], "does not exist"),
        (["index", "build", "shop", "--index", "shop"], "and no index; choose a new folder"),
        (["index", "info", "nowhere"], "diml index build"),
        (["index", "remove", "shop.index"], "need at least one, or --where"),
        (["index", "remove", "shop.index", "shop/class0/0.png", "other.png"], "other.png is not in shop.index"),
        (["index", "tidy"], "need one of build, info, verify, remove, copy, tune, optimize"),
        (["search", "shop.index"], "need an IMAGE, or --all-pairs"),
        (["search", "shop.index", "nowhere.png"], "does not exist"),
        (["search", "shop.index", "a.png", "--queries", "shop"], "need an IMAGE, or --all-pairs or --queries"),
        (["search", "shop.index", "--queries", "nowhere"], "queries: "),
        (["search", "shop.index", "--queries", "shop", "--html", "hits.html"], "a page shows the hits of one query"),
        (["search", "shop.index", "a.png", "--csv", "hits.csv"], "has the hits of --queries"),
        (["search", "shop.index", "--queries", "list.csv", "--csv", "list.csv"], "is the list of queries"),
        (["search", "shop.index", "--queries", "shop", "--box", "0,0,1,1"], "a box is on one query image"),
        (["search", "shop.index", "shop/class0/0.png", "--box", "1,2"], "need x0,y0,x1,y1"),
        (["search", "shop.index", "shop/class0/0.png", "--box", "0,0,0.1,0.1"], "need 16 x 16 pixels or more"),
        (["index", "build", "shop", "--index", "x", "--label-from", "brand"], "--label-from: need parent or top"),
        (["search", "nowhere", "shop/class0/0.png"], "there is none at nowhere"),
        (["search", "shop.index", "shop/class0/0.png", "--where", "colour = 'red'"], "no column 'colour'"),
        (["search", "shop.index", "shop/class0/0.png", "--html", "hits.png"], "ending in .html"),
        (["search", "shop.index", "--all-pairs", "--html", "hits.html"], "a page shows the hits of one query"),
        (["search", "shop.index", "--all-pairs"], "threshold: --all-pairs needs a minimum score"),
        (["duplicates", "nowhere"], "there is none at nowhere"),
        (["duplicates", "shop.index", "--html", "copies.txt"], "ending in .html"),
        (["duplicates", "shop.index", "--precision", "95"], "0.95 is 95 %"),
        (["duplicates", "shop.index", "--page-groups", "0"], "--page-groups: need at least 1"),
        (["duplicates", "shop.index", "--differ", "colour"], "no column 'colour'"),
        (["search", "shop.index", "shop/class0/0.png", "--model", "mobilenetv2_100"], "another embedder"),
    ],
)
def test_errors_are_one_line_with_the_remedy_and_change_nothing(index, words, told, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert main(["index", "info", index, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 10


@pytest.mark.parametrize("action", ["build", "info", "verify", "remove", "optimize"])
def test_every_action_has_help_with_examples(action, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["index", action, "--help"])
    assert stopped.value.code == 0
    assert f"\ndiml index {action}" in capsys.readouterr().out


def test_the_commands_start_without_the_database():
    import subprocess
    import sys

    code = (
        "import sys; from diml.cli import main; main(['--help']); print(any('lance' in name for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False"
