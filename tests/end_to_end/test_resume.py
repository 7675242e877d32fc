"""A run that is killed with SIGKILL at any point and resumed ends with the weights of an uninterrupted one."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
import torch

from diml.models import load_embedder
from diml.training.logs import read_records
from end_to_end.small_runs import make_images, start, tensors_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")

#: A process that has imported everything forks one child per run; a child kills itself before its n-th operation on a
#: file of the run (open, create, rename, remove), or is killed from outside after some seconds.
RUNNER = """
import json, os, shutil, signal, sys, time, traceback
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
import matplotlib.backends.backend_agg  # imported once for all children

from end_to_end.small_runs import small_config
from diml.models import load_embedder
from diml.training import train

load_embedder("test_resnet", pretrained=False)
folder, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
SETTINGS = dict(
    objective="margin", miner="distance", sampler="greedy_coreset", schedule="cosine", warmup_steps=3, clip_norm=2.0,
    freeze_batch_norm=False, validation_rerank_at=3,
)
EVENTS = {{"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.copyfile"}}


def child(output, resume, kill_before):
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        if event in EVENTS and str(output) in str(arguments[:2]):
            seen += 1
            if seen == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        train(small_config(folder / "images.csv", output, **SETTINGS), resume=resume)
        (folder / "operations").write_text(str(seen))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def run(output, resume=False, kill_before=None, kill_after=None):
    pid = os.fork()
    if pid == 0:
        child(output, resume, kill_before)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


done = []
for name, kills in jobs:
    output, killed, started = folder / name, 0, time.perf_counter()
    for kill in kills:
        status = run(output, (output / "config.yaml").exists(), **kill)
        while status == 0 and "kill_after" in kill:  # finished before the kill: kill earlier
            shutil.rmtree(output)
            kill = {{"kill_after": kill["kill_after"] / 2}}
            status = run(output, **kill)
        killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            sys.exit(f"{{name}}: a run failed")
    status = run(output, (output / "config.yaml").exists())
    done.append([name, killed, os.waitstatus_to_exitcode(status), time.perf_counter() - started])
operations = int((folder / "operations").read_text())
print(json.dumps({{"done": done, "operations": operations}}))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    make_images(folder)
    return folder


def runs(place: Path, jobs) -> dict:
    code = RUNNER.format(tests=str(Path(__file__).resolve().parents[1]))
    process = start(code, place, place, json.dumps(jobs))
    out, error = process.communicate(timeout=300 + 30 * len(jobs))
    assert process.returncode == 0, error
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def whole(place):
    """An uninterrupted run: its folder, its number of file operations and its duration in seconds."""
    found = runs(place, [["whole", []]])
    return place / "whole", found["operations"], found["done"][0][3]


def _settings(state: dict) -> list:
    """The saved configuration within a checkpoint's state, as pairs of name and value."""
    return dict(state["state"]["dict"])["config"]["dict"]


def assert_same_run(found: Path, wanted: Path) -> None:
    for checkpoint in ("last.ckpt", "best.ckpt"):
        ours, theirs = tensors_of(found / checkpoint), tensors_of(wanted / checkpoint)
        assert ours.keys() == theirs.keys()
        different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
        assert different == []
        states = [json.loads((run / checkpoint / "state.json").read_text()) for run in (found, wanted)]
        for state, run in zip(states, (found, wanted), strict=True):
            outputs = [pair for pair in _settings(state) if pair[0] == "output"]
            assert [value for _, value in outputs] == [str(run)]
            outputs[0][1] = "the run's own folder"
            del state["sha256"]  # which contains the folder
        assert states[0] == states[1]
    numbers = [
        [{key: value for key, value in record.items() if key != "images_per_second"} for record in records]
        for records in (read_records(run / "metrics.jsonl") for run in (found, wanted))
    ]
    without_starts = [[record for record in records if record["kind"] != "start"] for records in numbers]
    assert without_starts[0] == without_starts[1]
    assert load_embedder(found).fingerprint() == load_embedder(wanted).fingerprint()
    assert {path.name for path in found.iterdir()} == {path.name for path in wanted.iterdir()}  # nothing is left over


def check(place, whole, jobs) -> None:
    wanted, _, _ = whole
    found = runs(place, jobs)
    for (name, kills), (_, killed, code, _) in zip(jobs, found["done"], strict=True):
        assert code == 0, name
        assert killed >= 1, (name, kills)
        assert_same_run(place / name, wanted)


def test_killed_before_any_operation_on_files_and_resumed(place, whole):
    """At random operations, most of which write checkpoints; at the very beginning, and while tables are written."""
    _, operations, _ = whole
    points = [2, *random.Random(5).sample(range(1, operations + 1), 4), operations - 5]
    check(place, whole, [[f"operation-{point}", [{"kill_before": point}]] for point in sorted(points)])


def test_killed_from_outside_at_random_moments_again_and_again(place, whole):
    _, operations, seconds = whole
    moments = random.Random(6)
    once = [[f"moment-{n}", [{"kill_after": moments.uniform(0.05, 0.9) * seconds}]] for n in range(2)]
    thrice = [{"kill_before": moments.randint(operations // 3, operations // 2)} for _ in range(3)]
    check(place, whole, [*once, ["again", thrice]])


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, 9))
def test_killed_before_every_operation_on_files(place, whole, first):
    """Half an hour on two cores: every eighth operation from the first, in eight tests for as many workers."""
    _, operations, _ = whole
    check(place, whole, [[f"every-{point}", [{"kill_before": point}]] for point in range(first, operations + 1, 8)])
