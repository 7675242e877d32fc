from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from diml.models import load_embedder
from diml.training.checkpoints import (
    load_optimizer,
    publish_model,
    read_checkpoint,
    settle,
    write_checkpoint,
)

STATE = {
    "position": {"epoch": 3, "best": 0.1 + 0.2, "none": None, "yes": True},
    "optimizer": {"state": {0: {"step": torch.tensor(4.0), "exp_avg": torch.randn(2, 3)}}, "betas": (0.9, 0.999)},
    "array": np.arange(5),
    "empty": torch.zeros(0, 3),
    "nested": [{"a": [torch.tensor([True, False])]}, ()],
    "number": np.float64(1.5),
}


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_what_is_written_is_read(tiny, tmp_path):
    embedder = tiny()
    write_checkpoint(tmp_path / "last.ckpt", embedder, STATE)
    assert equal(read_checkpoint(tmp_path / "last.ckpt"), STATE | {"number": 1.5})
    assert load_embedder(tmp_path / "last.ckpt").fingerprint() == embedder.fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_is_safetensors_and_json_only(tiny, tmp_path):
    write_checkpoint(tmp_path / "last.ckpt", tiny(), STATE)
    names = {path.name for path in (tmp_path / "last.ckpt").iterdir()}
    assert names == {"model.safetensors", "embedder.json", "training.safetensors", "state.json"}
    json.loads((tmp_path / "last.ckpt" / "state.json").read_text())


def test_values_that_neither_format_can_hold_raise(tiny, tmp_path):
    with pytest.raises(TypeError, match=r"state.a.b: a checkpoint holds tensors.*got set"):
        write_checkpoint(tmp_path / "last.ckpt", tiny(), {"a": {"b": {1, 2}}})


class Killed(BaseException):
    pass


HOOK: dict = {"left": None}


def _hook(event, arguments):
    # While the interpreter ends, HOOK may be None already.
    if (
        HOOK is not None
        and HOOK["left"] is not None
        and event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
    ):
        if HOOK["folder"] not in str(arguments[:2]):
            return
        HOOK["left"] -= 1
        if HOOK["left"] < 0:
            raise Killed


sys.addaudithook(_hook)  # hooks cannot be removed; this one does nothing outside of the test below


def test_killed_before_any_operation_it_is_the_old_or_the_new_one(tiny, tmp_path):
    """Every file operation from the n-th on fails, as after a kill, for n = 0, 1, ..."""
    embedder = tiny()
    write_checkpoint(tmp_path / "start", embedder, {"number": 1})
    seen = []
    for operations in range(200):
        folder = tmp_path / str(operations)
        shutil.copytree(tmp_path / "start", folder / "last.ckpt")
        HOOK.update(left=operations, folder=str(folder))
        try:
            write_checkpoint(folder / "last.ckpt", embedder, {"number": 2})
            finished = True
        except Killed:
            finished = False
        finally:
            HOOK["left"] = None
        assert settle(folder / "last.ckpt")
        assert [path.name for path in folder.iterdir() if "partial" in path.name or ".ckpt." in path.name] == []
        seen.append(read_checkpoint(folder / "last.ckpt")["number"])
        assert load_embedder(folder / "last.ckpt").fingerprint() == embedder.fingerprint()
        shutil.rmtree(folder)
        if finished:
            break
    assert len(seen) > 12
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}


@pytest.mark.parametrize(
    ("there", "left"),
    [
        ((), None),
        (("last.ckpt",), "last.ckpt"),
        (("last.ckpt", ".last.ckpt.partial"), "last.ckpt"),
        (("last.ckpt", ".last.ckpt.new"), ".last.ckpt.new"),
        ((".last.ckpt.old", ".last.ckpt.new"), ".last.ckpt.new"),
        (("last.ckpt", ".last.ckpt.old"), "last.ckpt"),
        ((".last.ckpt.old",), ".last.ckpt.old"),
        ((".last.ckpt.partial",), None),
        ((".last.ckpt.new",), ".last.ckpt.new"),
    ],
)
def test_settling_keeps_the_newest_complete_one(tmp_path, there, left):
    for name in there:
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)
    assert settle(tmp_path / "last.ckpt") == (left is not None)
    assert [path.name for path in tmp_path.iterdir()] == (["last.ckpt"] if left else [])
    if left:
        assert (tmp_path / "last.ckpt" / "who").read_text() == left


def test_a_damaged_checkpoint_says_so(tiny, tmp_path):
    write_checkpoint(tmp_path / "last.ckpt", tiny(), STATE)
    with pytest.raises(FileNotFoundError, match=r"no state.json"):
        read_checkpoint(tmp_path)
    weights = tmp_path / "last.ckpt" / "training.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"last.ckpt cannot be read .*damaged"):
        read_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt" / "state.json").write_text('{"format": 2, "state": 1}')
    weights.unlink()
    with pytest.raises(ValueError, match=r"cannot be read"):
        read_checkpoint(tmp_path / "last.ckpt")


FILES = ("model.safetensors", "embedder.json", "training.safetensors", "state.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.3, 0.6, 0.99])
def test_one_changed_byte_anywhere_is_found(tiny, tmp_path, name, place):
    """Found when the run is resumed, which reads the state and the embedder."""
    checkpoint = tmp_path / "last.ckpt"
    write_checkpoint(checkpoint, tiny(), STATE)
    content = bytearray((checkpoint / name).read_bytes())
    at = next(i for i in range(int(len(content) * place), len(content)) if chr(content[i]) not in ' \n",:{}[]')
    content[at] = ord("1") if content[at] != ord("1") else ord("2")
    (checkpoint / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged|not readable|not the settings|need format"):
        _ = read_checkpoint(checkpoint), load_embedder(checkpoint)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_checkpoint_is_found(tiny, tmp_path, name):
    for seed, checkpoint in enumerate(("best.ckpt", "last.ckpt")):
        state = {"weights": torch.full((3,), float(seed)), "number": seed}
        write_checkpoint(tmp_path / checkpoint, tiny(seed=seed, grid=seed + 2), state)
    shutil.copy(tmp_path / "best.ckpt" / name, tmp_path / "last.ckpt" / name)
    with pytest.raises(ValueError, match=r"damaged, or not the file that was written here"):
        _ = read_checkpoint(tmp_path / "last.ckpt"), load_embedder(tmp_path / "last.ckpt")


def test_another_format_raises(tiny, tmp_path):
    write_checkpoint(tmp_path / "last.ckpt", tiny(), {"number": 1})
    (tmp_path / "last.ckpt" / "state.json").write_text('{"format": 3, "state": 1}')
    with pytest.raises(ValueError, match=r"need format 2, got 3"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_publishing_gives_an_embedder(tiny, tmp_path):
    for seed in (0, 1):
        embedder = tiny(seed=seed)
        write_checkpoint(tmp_path / "best.ckpt", embedder, {})
        publish_model(tmp_path / "best.ckpt", tmp_path)
        assert load_embedder(tmp_path).fingerprint() == embedder.fingerprint()


@pytest.mark.parametrize("kind", ["Adam", "SGD"])
def test_a_reloaded_optimizer_continues_bit_identically(tiny, tmp_path, kind):
    """Including the memory layout, on which the last bit depends."""
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def steps(embedder, optimizer, number):
        for _ in range(number):
            optimizer.zero_grad()
            embedder(images).dense[:, 0, 0].sum().backward()
            optimizer.step()

    def fresh(embedder):
        extra = {"momentum": 0.9} if kind == "SGD" else {}
        return getattr(torch.optim, kind)(embedder.parameters(), lr=1e-2, **extra)

    embedder = tiny()
    optimizer = fresh(embedder)
    steps(embedder, optimizer, 2)
    write_checkpoint(tmp_path / "last.ckpt", embedder, {"optimizer": optimizer.state_dict()})
    again = load_embedder(tmp_path / "last.ckpt").eval()
    reloaded = fresh(again)
    load_optimizer(reloaded, read_checkpoint(tmp_path / "last.ckpt")["optimizer"])
    for parameter, other in zip(embedder.parameters(), again.parameters(), strict=True):
        assert parameter.stride() == other.stride()
        for name, value in optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor):
                assert value.stride() == reloaded.state[other][name].stride()
    steps(embedder, optimizer, 2)
    steps(again, reloaded, 2)
    for parameter, other in zip(embedder.parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter, other)
