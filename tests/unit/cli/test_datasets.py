"""`diml datasets` lists the known data sets and checks local copies."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from diml.assets import AssetError
from diml.cli.datasets import DatasetsCommand


def run(*words: str) -> int:
    return tyro.cli(DatasetsCommand, args=list(words), config=(tyro.conf.FlagCreatePairsOff,)).run()


@pytest.fixture
def half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a small `cub200`, and an empty cache."""
    monkeypatch.setenv("DIML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("001.Auk", "002.Jay"):
        folder = tmp_path / "data" / "cub200" / "images" / name
        folder.mkdir(parents=True)
        (folder / "1.jpg").touch()
    return tmp_path / "data"


def test_the_list_shows_known_totals_and_what_is_found(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--data", str(half)) == 0
    printed = capsys.readouterr().out
    for part in ("cub200", "11,788", "120,053", "22,634", "query_gallery", "not found", "fetched on first use"):
        assert part in printed
    assert "2 images, expected" in printed


def test_the_list_as_json(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--data", str(half), "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["datasets"]}
    assert rows["cub200"]["images"] == 2
    assert rows["cub200"]["expected_images"] == 11_788
    assert rows["cars196"]["found"] == "not found"
    assert rows["cars196"]["how_to_get"]
    assert rows["folder"]["expected_classes"] is None


def test_one_is_shown_with_the_way_to_get_it(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "market1501", "--data", str(half)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for part in ("bounding_box_train", "download Market-1501-v15.09.15.zip", "32,217", "map_trapezoid", "not found"):
        assert part in printed
    assert run("show", "roxford5k", "--data", str(half), "--json") == 0
    assert json.loads(capsys.readouterr().out)["protocols"] == ["medium", "hard", "easy"]
    with pytest.raises(ValueError, match="`show` needs a data set"):
        run("show")


def test_every_data_set_is_listed(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--data", str(half)) == 0
    printed = capsys.readouterr().out
    for name in ("inshop", "msmt17", "veri776", "vehicleid", "inaturalist2018", "rparis6k", "gldv2"):
        assert name in printed


def test_check_counts_and_its_exit_status_reports_differences(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "cub200", "--data", str(half)) == 1
    printed = capsys.readouterr().out
    assert "2 images, expected 11,788" in printed
    assert "2 classes, expected 200" in printed
    assert run("check", "folder", "--data", str(half / "cub200" / "images"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_check_orl_fetches_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "orl") == 0
    assert "complete" in capsys.readouterr().out


def test_check_orl_without_network_says_so(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(AssetError, match="pip could not fetch"):
        run("check", "orl", "--data", str(half))


def test_wrong_calls_are_user_errors(half: Path) -> None:
    with pytest.raises(ValueError, match="`check` needs a data set"):
        run("check")
    with pytest.raises(ValueError, match="diml datasets check orl"):
        run("list", "orl")
    with pytest.raises(ValueError, match="did you mean 'cars196'"):
        run("check", "cars", "--data", str(half))
    with pytest.raises(FileNotFoundError, match="cars196"):
        run("check", "cars196", "--data", str(half))


def test_the_command_is_quick_to_import() -> None:
    code = "import sys, diml.cli.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
