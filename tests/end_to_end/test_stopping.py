"""Whatever ends a command, its workers end with it; SIGTERM and SIGHUP end it in order."""

from __future__ import annotations

import signal
import sys

import pytest
import yaml

from diml.assets import cache_folder
from end_to_end.small_runs import SMALL
from end_to_end.stopping import MarkedCommand, make_slow_images
from tiny_model import save_tiny_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

LOADING = ("--workers", "2", "--batch-size", "4")
ENDS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "hang up": signal.SIGHUP, "Ctrl-C": signal.SIGINT}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow")
    listed = make_slow_images(folder / "images").read_text().splitlines()
    boxes = ["path,x0,y0,x1,y1", *(f"{line.split(',')[0]},0,0,1500,1500" for line in listed[1:])]
    (folder / "images" / "boxes.csv").write_text("\n".join(boxes) + "\n")
    save_tiny_model(folder / "model")
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in SMALL.items()}
    base = plain | {"data": str(folder / "images" / "images.csv"), "workers": 2, "validation_fraction": 0.5}
    base["batch_size"] = 4
    (folder / "cache").mkdir()  # the assets, without the embeddings of earlier runs, which would leave nothing to do
    for asset in cache_folder().iterdir():
        if asset.name != "embeddings":
            (folder / "cache" / asset.name).symlink_to(asset)
    (folder / "train.yaml").write_text(yaml.safe_dump(base))
    sweep = {"base": base, "runs": {"margin": {}}, "output": str(folder / "sweep")}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return folder


def words(name, place, end):
    csv, model = place / "images" / "images.csv", place / "model"
    data = ("csv", "--data", csv, *LOADING, "--no-cache")
    dataset = (*data, "--model", model)
    return {
        "evaluate": ("evaluate", *dataset),
        "compare": ("compare", *dataset),
        "tune": ("tune", *dataset),
        "report": ("report", model, *data, "--html", place / "report.html"),
        "calibrate": ("calibrate", *dataset),
        "train-matcher": ("train-matcher", *dataset, "--output", place / "scored"),
        "audit": (
            "audit",
            *data[:-1],
            "--model",
            model,
            "--boxes",
            csv.parent / "boxes.csv",
            "--output",
            place / "audit",
        ),
        "demo": ("demo", "--no-train", "--workers", "2", "--output", place / "demo"),
        "index build": ("index", "build", csv, "--index", place / "index", "--model", model, *LOADING),
        "train": ("train", "csv", "--config", place / "train.yaml", "--output", place / f"run {end}"),
        "sweep": ("sweep", place / "sweep.yaml"),
    }[name]


def stop(place, name, end):
    """Start a command, end it while its workers decode, and wait until all of its processes are gone."""
    with MarkedCommand(*words(name, place, end), DIML_CACHE=str(place / "cache")) as command:
        command.wait_for_workers(2)
        command.process.send_signal(ENDS[end])
        code, _, error = command.end()
        command.wait_until_all_are_gone()
    assert "Traceback" not in error
    if end == "kill":
        assert code == -signal.SIGKILL
    else:
        assert code == 130, error
        assert f"diml {name.split()[0]}: " in error
        assert "every file that was finished is complete" in error or "Resume with: diml" in error


def test_workers_of_a_killed_command_end(place):
    stop(place, "evaluate", "kill")


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    "name",
    [
        "evaluate",
        "compare",
        "tune",
        "report",
        "calibrate",
        "train-matcher",
        "audit",
        "demo",
        "index build",
        "train",
        "sweep",
    ],
)
def test_every_command_with_workers_ends_with_them(place, name, end):
    stop(place, name, end)
