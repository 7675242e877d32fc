"""Two processes do what one does: real processes under torchrun, on the loopback interface.

Tolerances: gradients are summed in another order, so losses and weights agree up to float32 rounding, which training
amplifies: losses to 1e-4 relative, weights to 2e-4 absolute after 8 steps of Adam at 1e-3. Embeddings and metrics of
the same network are equal.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from diml.data import Preprocess
from diml.models import load_embedder
from diml.training.config import write_config
from diml.training.logs import read_records
from end_to_end.small_runs import make_images, small_config, start, tensors_of

TESTS = str(Path(__file__).resolve().parents[1])

CASES = {
    # learnable beta per class; random mining, which has to be the same in both processes; shares of unequal size
    "margin": {"objective": "margin", "miner": "distance", "batch_size": 9, "per_class": 3, "clip_norm": 1.0},
    # regions of both processes, matched and mined, with another epsilon than the default
    "margin_diml": {"objective": "margin_diml", "matcher": {"epsilon": 0.02}},
    # proxies
    "proxyanchor": {"objective": "proxyanchor", "weight_decay": 0.0},
    # a sampler that depends on the embeddings of all processes
    "sampler": {"objective": "multisimilarity", "sampler": "greedy_coreset"},
}

TRAIN = """
import json, os, sys
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from diml.data import load_dataset
from diml.distributed import process_group
from diml.evaluation import evaluate_regions
from diml.matching import Matcher
from diml.models import load_embedder
from diml.training import train
from diml.training.embedding import embed_shared
from end_to_end.small_runs import small_config

several = os.environ.get("WORLD_SIZE", "1") != "1"
if several:  # one group for several trainings
    torch.distributed.init_process_group("gloo")

folder, prefix, cases = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
for name, changes in cases.items():
    matcher = Matcher(**changes.pop("matcher", {{}}))
    train(small_config(folder / "images.csv", folder / (prefix + name), matcher=matcher, **changes))

images = load_dataset("csv", folder / "images.csv").test
images = images.subset(list(range(len(images) - 3)))  # the last one is alone in its class: it has no relevant image
with process_group("cpu") as processes:
    found = embed_shared(load_embedder(folder / "model"), images, processes, batch_size=5)
    report = evaluate_regions(
        found.regions,
        found.images.labels,
        rerank_at=(0, 5),
        matcher=Matcher(epsilon=0.02),
        processes=processes,
    )
    result = report.to_dict() | {{"dense": found.regions.dense.tolist(), "queries": report.queries.tolist()}}
    result["hits"] = {{k: [row[:8] for row in rows.tolist()] for k, rows in report.hits.items()}}
    result["per_query"] = {{k: {{m: v.tolist() for m, v in ms.items()}} for k, ms in report.per_query.items()}}
    (folder / f"evaluated-{{processes.size}}-{{processes.rank}}.json").write_text(json.dumps(result))
if several:  # threads that are alive when Python exits can abort the process
    torch.distributed.destroy_process_group()
"""

#: The command as a user starts it, without an existing process group.
COMMAND = """
import sys

import torch

torch.set_num_threads(1)
from diml.cli.train import parse

sys.exit(parse(sys.argv[1:]).run())
"""


def finish(process) -> str:
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Every case trained in one process and in two."""
    folder = tmp_path_factory.mktemp("distributed")
    make_images(folder)
    load_embedder("test_resnet", pretrained=False, preprocess=Preprocess(size=64, resize=72)).save(folder / "model")
    code, cases = TRAIN.format(tests=TESTS), json.dumps(CASES)
    started = [start(code, folder / f"start-{n}", folder, f"by{n}-", cases, processes=n) for n in (1, 2)]
    for process in started:
        finish(process)
    return folder


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_records(run / "metrics.jsonl") if record["kind"] == "train"]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_losses_and_weights_of_one(place, case):
    one, two = place / f"by1-{case}", place / f"by2-{case}"
    assert losses(two) == pytest.approx(losses(one), rel=1e-4, abs=1e-6)
    assert len(losses(one)) == 8
    ours, theirs = tensors_of(one / "last.ckpt"), tensors_of(two / "last.ckpt")
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(
            theirs[name], ours[name], rtol=0, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_run_says_how_many_processes_it_had(place):
    starts = [read_records(place / f"by{n}-margin" / "metrics.jsonl")[0] for n in (1, 2)]
    assert [record["processes"] for record in starts] == [1, 2]


def test_a_sharded_evaluation_is_equal_to_that_of_one_process(place):
    results = [json.loads((place / f"evaluated-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")]
    assert results[0]["without_relevant"] == 1
    assert results[1] == results[0]
    assert results[2] == results[0]


@pytest.mark.slow
def test_a_process_without_a_readable_image_in_a_batch_takes_part(tmp_path):
    """Batches of one class or two over two processes, with unfrozen batch norm; most classes are broken."""
    csv = make_images(tmp_path / "images", train=6)
    for number in range(3):
        for path in (tmp_path / "images" / f"class{number}").iterdir():
            path.write_bytes(b"broken")
    changes = {"on_bad_image": "skip", "validation_fraction": 0, "epochs": 2, "freeze_batch_norm": False}
    changes |= {"objective": "multisimilarity", "miner": "none", "sampler_options": ("batches_per_epoch=12",)}
    settings = small_config(csv, tmp_path / "run", batch_size=4, per_class=2, **changes)
    write_config(tmp_path / "settings.yaml", settings)
    finish(start(COMMAND, tmp_path / "start", "csv", "--config", tmp_path / "settings.yaml", processes=2))
    records = [r for r in read_records(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"]
    faults = [r.get("fault") for r in records]
    assert len(records) == 24
    assert set(faults) == {None, "no image of the batch can be read"}
    assert all(torch.isfinite(value).all() for value in load_embedder(tmp_path / "run").state_dict().values())


def test_the_command_under_torchrun_prints_once_and_writes_one_run(place):
    settings = small_config(place / "images.csv", place / "command", epochs=1, objective="multisimilarity")
    write_config(place / "command.yaml", settings)
    process = start(COMMAND, place / "command-start", "csv", "--config", place / "command.yaml", processes=2)
    out = finish(process)
    assert out.count("Best epoch: 1") == 1
    assert read_records(place / "command" / "metrics.jsonl")[0]["processes"] == 2
    assert load_embedder(place / "command").dim == 16
