"""`diml presets` lists the authors' runs and prints one as YAML that `diml train --config` takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from diml.cli.presets import PresetsCommand
from diml.training.config import TrainConfig, read_config
from diml.training.presets import preset, preset_names


def run(*words: str) -> int:
    return tyro.cli(PresetsCommand, args=list(words), config=(tyro.conf.FlagCreatePairsOff,)).run()


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def test_the_list_fits_one_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    printed = capsys.readouterr().out
    for part in (
        "margin_b12_distance",
        "online_products (100 epochs)",
        "softtriple *",
        "diml train --preset",
    ):
        assert part in printed
    assert printed.count("triplet_semihard") == 1
    assert len(printed.splitlines()) < 50


def test_the_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["presets"]}
    assert tuple(rows) == preset_names()
    assert rows["cub200/margin_b06_distance"]["objective_options"]["beta"] == 0.6
    assert rows["cars196/multisimilarity"]["note"]
    assert rows["cub200/npair"]["note"] is None


@pytest.mark.parametrize("name", ["cub200/margin_diml", "online_products/softtriple"])
def test_one_as_yaml_is_a_training_configuration(name, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name) == 0
    path = tmp_path / "run.yaml"
    path.write_text(capsys.readouterr().out)
    assert TrainConfig.from_dict(read_config(path)) == TrainConfig.from_dict(preset(name))
    assert path.read_text().startswith("#") == (name == "online_products/softtriple")


def test_one_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cub200/arcface", "--json") == 0
    assert json.loads(capsys.readouterr().out) == preset("cub200/arcface")


def test_an_unknown_name_is_a_user_error() -> None:
    with pytest.raises(ValueError, match="did you mean 'cub200/arcface'"):
        run("cub200/arc_face")


def test_the_command_is_quick_to_import() -> None:
    code = "import sys, diml.cli.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
