"""Every benchmark runs as a command at tiny sizes and writes what it measured; speed is not asserted."""

from __future__ import annotations

import ast
import json
import math
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from warm_processes import run_script

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"

TINY = ["--images", "60", "--classes", "6", "--regions", "4", "--dim", "8"]
RUNS = ["--runs", "2", "--threads", "1"]
COMMANDS = {
    "regimes": [*TINY, "--queries", "2", "--rerank-at", "5"],
    "rerank": [*TINY, *RUNS, "--queries", "3", "--rerank-at", "5", "--pairs", "4"],
    "evaluate": [*TINY, *RUNS, "--rerank-at", "5", "--plain-queries", "20"],
    "memory": [*TINY, "--queries", "5", "--rerank-at", "0", "5", "--limit-gb", "0"],
    "peers": [
        *TINY,
        *RUNS,
        "--pairs",
        "20",
        "--rerank-at",
        "5",
        "--peers",
        "pot_batch",
        "torch_batch",
        "torch_maxsim",
        "torch_topk",
        "faiss_flat",
    ],
    "iterations": [*TINY, "--embeddings", "hard", "--queries", "2", "--rerank-at", "10"],
    "startup": ["--runs", "1", "--warmup", "0"],
    "limit": [*RUNS, "--size", "64"],
    "storage_speed": ["--images", "70", "--dim", "8", *RUNS, "--queries", "2", "--rerank-at", "5"],
    "storage": [*TINY, "--embeddings", "hard", "--rerank-at", "5"],
    "index_copy": [*RUNS, "--images", "60", "--regions", "4", "--dim", "8"],
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
        "--exhaustive",
        "--storage",
        "1kb",
    ],
    "loss": [*RUNS, "--batch", "8", "--regions", "4", "--dim", "8", "--embeddings", "easy"],
    "scorer": [*TINY, *RUNS, "--queries", "2", "--rerank-at", "5"],
    "scaling": [*TINY, *RUNS, "--queries", "2", "--plain-queries", "1", "--rerank-at", "5"],
}
SIZES = {"images": (50, 60), "rerank-at": (2, 5), "regions": (4, 9), "dim": (4, 8)}
COMMANDS["scaling"] += [word for flag, sizes in SIZES.items() for word in (f"--vary-{flag}", *map(str, sizes))]


def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return run_script(FOLDER / f"{name}.py", list(words))


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


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in ("loss", "index_copy", "peers") else n for n in COMMANDS]
)
def test_a_benchmark_writes_what_it_measured(name, document):
    found = document(name)
    assert found["benchmark"] == name
    assert {"options", "seed", "machine", "versions", "kernel", "results"} <= set(found)
    assert {"processor", "cores", "threads"} <= set(found["machine"])
    assert {"python", "torch", "diml"} <= set(found["versions"])
    assert found["results"]
    assert all(math.isfinite(number) for number in numbers(found["results"]))


def test_a_scaled_time_is_marked(document):
    for result in document("evaluate", "--embeddings", "easy")["results"]:
        assert result["plain_scaled"]
        assert result["plain_queries"] == 20
        plain = [row for row in result["metrics"] if row["rerank_at"] == 0]
        assert plain
        assert all(row["queries_that_differ"] == 0 for row in plain)


@pytest.mark.parametrize("axes", ["K", "KRD"])
def test_scaling_draws_one_panel_per_axis(document, tmp_path, axes):
    document("scaling", "--axes", *axes, "--plot", str(tmp_path / "new" / "scaling.png"))
    with Image.open(tmp_path / "new" / "scaling.png") as image:
        assert image.width > 300 * min(2, len(axes))
        assert image.height > 250 * -(-len(axes) // 2)


AGAINST = ["--images", "60", "--queries", "3", "--rerank-at", "5", "--evaluation-images", "60", "--classes", "6"]
AGAINST += ["--batch", "8", "--regions", "4", "--dim", "8", "--runs", "1", "--threads", "1"]


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="needs a checkout with .venv (make venv)")
def test_a_checkout_against_itself_gives_equal_results(tmp_path):
    done = run("against_commit", "--other", str(ROOT), *AGAINST, "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    assert len(results) == 6
    assert all(result["equal"] and result["ratio"]["median"] > 0 for result in results)


def test_another_checkout_needs_its_own_environment(tmp_path):
    done = run("against_commit", "--other", str(tmp_path), *AGAINST)
    assert done.returncode == 2
    assert "need a checkout with a virtual environment" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="needs a checkout with .venv (make venv)")
def test_another_checkout_needs_its_own_source(tmp_path):
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    done = run("against_commit", "--other", str(tmp_path), *AGAINST)
    assert done.returncode == 1
    assert f"need diml of {tmp_path}" in done.stderr


def test_help_shows_the_docstring_of_the_module():
    done = run("evaluate", "--help")
    assert done.returncode == 0, done.stderr
    assert "python benchmarks/evaluate.py --size sop" in done.stdout


@pytest.mark.parametrize("name", [*COMMANDS, "against_commit", "embedding"])
def test_that_docstring_has_an_example(name):
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert f"\n    python benchmarks/{name}.py" in ast.get_docstring(ast.parse(source))


def test_a_wrong_number_of_runs_is_rejected():
    done = run("rerank", "--runs", "0")
    assert done.returncode == 2
    assert "--runs: need 1 or more, got 0" in done.stderr
