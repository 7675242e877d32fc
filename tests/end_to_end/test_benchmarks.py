"""Every benchmark is a command that runs at tiny sizes and writes what it measured; how fast it is, is not asserted."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiny_model import save_tiny_model

FOLDER = Path(__file__).parents[2] / "benchmarks"

TINY = ["--images", "60", "--classes", "6", "--regions", "4", "--dim", "8"]
RUNS = ["--runs", "2", "--threads", "1"]
COMMANDS = {
    "regimes": [*TINY, "--queries", "2", "--rerank", "5"],
    "rerank": [*TINY, *RUNS, "--queries", "3", "--rerank", "5", "--pairs", "4"],
    "evaluate": [*TINY, *RUNS, "--rerank", "5", "--plain-queries", "20"],
    "memory": [*TINY, "--queries", "5", "--rerank", "0", "5", "--limit-gb", "0"],
    "peers": [*TINY, *RUNS, "--pairs", "20", "--rerank", "5", "--peers", "pot_batch", "torch_batch"],
    "iterations": [*TINY, "--embeddings", "hard", "--queries", "2", "--rerank", "10"],
    "startup": ["--runs", "1", "--warmup", "0"],
    "limit": [*RUNS, "--size", "64"],
    "storage": [*TINY, "--embeddings", "hard", "--rerank", "5"],
    "search": [
        *TINY,
        *RUNS,
        "--embeddings",
        "hard",
        "--images",
        "400",
        "--queries",
        "3",
        "--always-index",
        "--wait",
        "0",
    ],
    "loss": [*RUNS, "--batch", "8", "--regions", "4", "--dim", "8", "--embeddings", "easy"],
    "scaling": [*TINY, *RUNS, "--queries", "2", "--plain-queries", "1", "--rerank", "5"],
}
GRIDS = {"images": (50, 60), "rerank": (2, 5), "regions": (4, 9), "dim": (4, 8)}
COMMANDS["scaling"] += [word for flag, grid in GRIDS.items() for word in (f"--{flag}-grid", *map(str, grid))]


def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / f"{name}.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def numbers(value: object) -> list[float]:
    """All numbers anywhere in a JSON value."""
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """Run a benchmark and read its JSON."""

    def measured(name: str, *more: str) -> dict:
        file = tmp_path_factory.mktemp(name) / "deep" / "found.json"
        done = run(name, *COMMANDS[name], *more, "--json", str(file))
        assert done.returncode == 0, done.stderr
        assert "kernel:" in done.stdout
        return json.loads(file.read_text())

    return measured


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "loss" else n for n in COMMANDS])
def test_a_benchmark_writes_what_it_measured(name, document):
    found = document(name)
    assert found["benchmark"] == name
    assert {"options", "seed", "machine", "versions", "kernel", "results"} <= set(found)
    assert {"processor", "cores", "threads"} <= set(found["machine"])
    assert {"python", "torch", "diml"} <= set(found["versions"])
    assert found["results"]
    assert all(math.isfinite(number) for number in numbers(found["results"]))


def test_a_scaled_time_says_so(document):
    for result in document("evaluate", "--embeddings", "easy")["results"]:
        assert result["plain_scaled"]
        assert result["plain_queries"] == 20
        plain = [row for row in result["metrics"] if row["rerank"] == 0]
        assert plain
        assert all(row["queries_that_differ"] == 0 for row in plain)


@pytest.mark.parametrize("axes", ["K", "KRD"])
def test_scaling_draws_a_panel_an_axis(document, tmp_path, axes):
    document("scaling", "--axes", *axes, "--plot", str(tmp_path / "new" / "scaling.png"))
    with Image.open(tmp_path / "new" / "scaling.png") as image:
        assert image.width > 300 * min(2, len(axes))
        assert image.height > 250 * -(-len(axes) // 2)


def test_sharper_plans_are_compared_on_images_of_ones_own(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(8):
        coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        file = tmp_path / "shop" / "ab"[number // 4] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((96, 72), Image.Resampling.BICUBIC).save(file)
    words = ["--datasets", "folder", "--data", str(tmp_path / "shop"), "--protocol", "all", "--grid", "3"]
    words += ["--model", str(save_tiny_model(tmp_path / "tiny")), "--pairs", "3", "--queries", "3", "--rerank", "4"]
    words += ["--ways", "plan that scores", "sharpened 10", "epsilon 0.02", "annealed to 0.0125", "exact"]
    done = run("sharpening", *words, "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    found = {row["way"]: row for row in json.loads((tmp_path / "found.json").read_text())["results"]}
    assert all(row[kind]["additivity"] <= 1e-6 for row in found.values() for kind in ("flip", "shift"))
    masses = [found[way]["flip"]["mass"]["value"] for way in ("plan that scores", "epsilon 0.02", "annealed to 0.0125")]
    assert masses == sorted(masses)
    assert found["plan that scores"]["retrieval"]["less_scoring_plan"]["value"] == 0
    assert "retrieval" not in found["sharpened 10"]
    assert "as scored" in done.stdout


def test_help_shows_the_text_of_the_module():
    done = run("evaluate", "--help")
    assert done.returncode == 0, done.stderr
    assert "python benchmarks/evaluate.py --size sop" in done.stdout


@pytest.mark.parametrize("name", [*COMMANDS, "embedding", "sharpening"])
def test_that_text_has_an_example(name):
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert f"\n    python benchmarks/{name}.py" in ast.get_docstring(ast.parse(source))


def test_a_wrong_number_of_runs_is_refused():
    done = run("rerank", "--runs", "0")
    assert done.returncode == 2
    assert "--runs: need 1 or more, got 0" in done.stderr
