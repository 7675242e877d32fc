"""The command line as a user sees it: help, tables, JSON, and errors that name the remedy."""

import json
from pathlib import Path

import pytest
from PIL import Image

from diml.cli import COMMANDS, main
from drawn_pair import drawn_pair


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder data set of two classes: the images of the drawn pair, each at three rotations."""
    for name, image in zip(("left", "right"), drawn_pair(160), strict=True):
        (tmp_path / "shop" / name).mkdir(parents=True)
        for number, angle in enumerate((0, 4, 8)):
            image.rotate(angle).save(tmp_path / "shop" / name / f"{number}.png")
    return tmp_path / "shop"


def test_help_lists_every_command_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"\ndiml {command}" in capsys.readouterr().out


def test_an_error_about_a_mistyped_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evlauate"]) == 2
    assert "did you mean 'evaluate'" in capsys.readouterr().err


def test_evaluate_folder_prints_and_writes(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    output = tmp_path / "out"
    words = ["evaluate", "folder", "--data", str(shop), "--rerank-at", "0", "3", "--output", str(output), "--no-cache"]
    assert main([*words, "--workers", "0"]) == 0
    shown = capsys.readouterr().out
    assert "mobilenetv2_100" in shown
    assert "100.00" in shown
    table = (output / "evaluation.csv").read_text().splitlines()
    assert table[0].startswith("method,rerank_at,queries,input,recall@1,recall@1_low,recall@1_high")
    assert [line.split(",")[:3] for line in table[1:]] == [["mobilenetv2_100", "0", "6"], ["mobilenetv2_100", "3", "6"]]
    document = json.loads((output / "evaluation.json").read_text())
    assert document["unit"] == "fraction"
    assert document["config"]["rerank_at"] == [0, 3]
    assert {"diml", "torch", "python"} <= set(document["versions"])
    assert document["methods"]["mobilenetv2_100"]["rows"][0]["recall@1"] == 1.0


def test_evaluate_prints_json(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "folder", "--data", str(shop), "--rerank-at", "0", "--json", "--no-cache", "--workers", "0"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["methods"]["mobilenetv2_100"]["queries"] == 6


def test_evaluate_gives_the_same_from_integer_storage(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "folder", "--data", str(shop), "--rerank-at", "3", "--json", "--no-cache", "--workers", "0"]
    found = {}
    for storage in ("float32", "int16"):
        assert main([*words, "--storage", storage]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["config"]["storage"] == storage
        found[storage] = document["methods"]["mobilenetv2_100"]["rows"]
    assert found["int16"] == found["float32"]


def test_a_bad_image_is_an_error_or_is_left_out_and_named(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shop / "left" / "torn.png").write_bytes((shop / "left" / "0.png").read_bytes()[:500])
    words = ["evaluate", "folder", "--data", str(shop), "--rerank-at", "0", "2", "--no-cache", "--workers", "0"]
    assert main(words) == 2
    assert "torn.png" in capsys.readouterr().err
    assert main([*words, "--on-bad-image", "skip"]) == 0
    assert "torn.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evaluate", "nonsense"], "nonsense"),
        (["evaluate", "cub200", "--data", "nowhere"], "CUB_200_2011"),
        (["evaluate", "folder", "--data", "nowhere"], "nowhere"),
        (["explain", "missing.jpg", "missing.jpg"], "missing.jpg"),
        (["evaluate", "orl", "--fit-on", "train"], "use --fit-on gallery"),
        (["evaluate", "orl", "--head", "identity", "--fit-on", "gallery"], "omit --fit-on"),
        (["evaluate", "orl", "--baseline", "resnet50"], "baseline: need a row of the table, mobilenetv2_100 |"),
        (["compare", "orl", "--json", "--format", "csv"], "--json, --format: give one of them"),
        (["report", "mobilenetv2_100"], "need the name of a data set"),
        (["report", "mobilenetv2_100", "orl", "--html", "report.txt"], "ending in .html"),
        (["report", "mobilenetv2_100", "orl", "--rerank-at", "0"], "--rerank-at: need at least 1"),
        (["explain", "--query", "missing.jpg", "--hits", "other.jpg"], "missing.jpg"),
        (["faithfulness", "orl", "--pairs", "0", "--no-grad-cam"], "pairs: need at least 1"),
        (["faithfulness", "orl", "--steps", "0", "--no-grad-cam"], "steps: need at least 1"),
        (["faithfulness", "cub200", "--data", "nowhere", "--no-grad-cam"], "CUB_200_2011"),
    ],
)
def test_errors_of_use_name_the_cause_and_exit_with_2(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error


def test_an_empty_folder_and_a_single_image_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["evaluate", "folder", "--data", str(tmp_path / "empty")]) == 2
    assert "empty" in capsys.readouterr().err
    (tmp_path / "one" / "class").mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "one" / "class" / "a.png")
    assert main(["evaluate", "folder", "--data", str(tmp_path / "one"), "--no-cache", "--workers", "0"]) == 2
    assert "relevant" in capsys.readouterr().err


def test_faithfulness_prints_and_writes(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    output = tmp_path / "out"
    words = ["faithfulness", "folder", "--data", str(shop), "--pairs", "2", "--steps", "2", "--warps", "flip"]
    assert main([*words, "--no-grad-cam", "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    for title in ("Additivity", "Deletion and insertion", "Correspondence", "Stability"):
        assert f"{title}, model" in shown
        assert f"{title}, random weights" in shown
    assert "Controls of the same spatial structure, credit (ledger), model" in shown
    assert "The largest part against as many other regions, parts (ledger), model" in shown
    assert "embeddings per pair" in shown
    figures = ["additivity", "deletion", "controls", "interaction", "correspondence", "stability"]
    figures += ["controls-parts", "interaction-parts", "parts", "unmatched"]
    assert {path.name for path in output.iterdir()} == {"faithfulness.json", *(f"{name}.png" for name in figures)}
    document = json.loads((output / "faithfulness.json").read_text())
    assert (document["unit"], document["config"]["grid"], document["config"]["pairs"]) == ("fraction", 4, 2)
    estimates = document["networks"]["model"]["estimates"]
    errors = [e["value"] for e in estimates if (e["measure"], e["method"]) == ("additivity", "ledger")]
    assert 0 <= errors[0] <= 1e-6
    flipped = {e["method"]: e["value"] for e in estimates if (e["case"], e["quantity"]) == ("flip", "mass")}
    assert flipped["uniform"] == pytest.approx(1 / 16)
    assert flipped["uniform"] < flipped["plan"] < flipped["exact"] <= 1
    assert flipped["random_gallery"] < flipped["exact"]


def test_faithfulness_prints_json(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["faithfulness", "folder", "--data", str(shop), "--pairs", "1", "--steps", "1", "--warps", "identity"]
    assert main([*words, "--no-grad-cam", "--no-sanity", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document["networks"]) == {"model"}
