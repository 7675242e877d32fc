"""A vision transformer from a file of weights on the command line, ranked by attention rollout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import tyro
from PIL import Image
from safetensors.torch import save_file

from diml.cli.evaluate import EvaluateCommand
from diml.matching import Matcher
from diml.models import load_embedder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label in "abc":
        for number in range(4):
            path = tmp_path / "photos" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            blocks = np.random.default_rng(10 * ord(label) + number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(blocks.repeat(16, axis=0).repeat(16, axis=1)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model("test_vit")
        for parameter in net.parameters():
            parameter.data.add_(torch.randn(parameter.shape) * 0.2)
    save_file(net.state_dict(), tmp_path / "vit.safetensors")
    return tmp_path / "vit.safetensors"


def evaluated(capsys: pytest.CaptureFixture[str], folder: Path, *words: str | Path) -> dict:
    every = ["folder", "--data", folder, "--no-cache", "--workers", "0", "--head", "identity", "--json", *words]
    command = tyro.cli(EvaluateCommand, args=[str(word) for word in every], config=(tyro.conf.FlagCreatePairsOff,))
    assert command.run() == 0
    return json.loads(capsys.readouterr().out)


def test_evaluate_ranks_by_rollout(folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The scores behind the table are those of the API; size, file and blocks are told."""
    options = ["--model", "test_vit", "--weights-file", weights, "--size", "64", "--epsilon", "0.2"]
    told = evaluated(capsys, folder, *options, "--weights", "rollout", "--rollout-blocks", "2")
    other = evaluated(capsys, folder, *options, "--weights", "uniform")
    assert told != other
    embedder = load_embedder("test_vit", weights_file=weights, size=64, rollout_blocks=2)
    assert embedder.config.rollout_blocks == 2
    regions = embedder.embed(sorted(folder.rglob("*.png")))
    found = Matcher(weights="rollout", epsilon=0.2).match(regions[:1], regions[1:2])
    torch.testing.assert_close(found.weight_g, regions.masses[1:2], rtol=1e-6, atol=0)


def test_a_network_without_attention_is_refused_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ValueError, match=r"'rollout' needs the masses of the regions.*no plain vision transformer of timm"
    ):
        evaluated(capsys, folder, "--model", "mobilenetv2_100", "--size", "64", "--weights", "rollout")
