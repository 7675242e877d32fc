"""`diml push`, and `hf-hub:` names of saved embedders in other commands, with a hub on the loopback interface."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from diml.cli import main
from diml.models import load_embedder
from diml.search import open_store
from end_to_end.small_runs import make_images
from local_hub import LocalHub, local_hub
from tiny_model import save_tiny_model


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    with local_hub(monkeypatch, tmp_path / "hub") as server:
        yield server


def test_a_pushed_model_serves_other_commands_by_its_name(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluated as it was saved, without a whitening of its own; an index records the name."""
    model = save_tiny_model(tmp_path / "model", grid=2, head="linear", dim=8)
    assert main(["push", str(model), "me/groceries", "--private", "--license", "mit"]) == 0
    out = capsys.readouterr().out
    assert f"Pushed: {hub.address}/me/groceries/commit/" in out
    assert "diml.load_embedder('hf-hub:me/groceries')" in out
    assert hub.repositories["me/groceries"].private
    assert b"license: mit" in hub.repositories["me/groceries"].files["README.md"]

    images = make_images(tmp_path, train=3, test=2, each=2)
    words = [
        "evaluate",
        "csv",
        "--data",
        str(images),
        "--json",
        "--workers",
        "0",
        "--no-cache",
        "--rerank-at",
        "0",
        "2",
    ]
    rows = {}
    for name in ("hf-hub:me/groceries", str(model)):
        assert main([*words, "--model", name]) == 0
        rows[name] = next(iter(json.loads(capsys.readouterr().out)["methods"].values()))
        assert rows[name]["settings"]["head"] == {"name": "linear", "dim": 8}
    assert rows["hf-hub:me/groceries"]["rows"] == rows[str(model)]["rows"]

    index = tmp_path / "photos.index"
    built = ["index", "build", str(tmp_path / "class0"), "--index", str(index), "--workers", "0"]
    assert main([*built, "--model", "hf-hub:me/groceries"]) == 0
    store = open_store(index)
    assert store.config.model["name_or_path"] == "hf-hub:me/groceries"
    assert store.config.embedder == load_embedder(model).fingerprint()
    store.close()
    assert main(["search", str(index), str(tmp_path / "class0" / "0.png"), "-k", "1"]) == 0
    assert main(["index", "verify", str(index)]) == 0
    assert "0.png" in capsys.readouterr().out


def test_a_dry_run_writes_what_would_be_pushed_and_its_card_can_be_edited(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny_model(tmp_path / "model")
    card = tmp_path / "card"
    assert main(["push", str(model), "me/groceries", "--dry-run", str(card)]) == 0
    assert "nothing was pushed" in capsys.readouterr().out
    assert hub.asked == []
    assert sorted(path.name for path in card.iterdir()) == ["README.md", "embedder.json", "model.safetensors"]
    assert load_embedder(card).fingerprint() == load_embedder(model).fingerprint()
    (card / "README.md").write_text("# Mine\n")
    assert main(["push", str(card), "me/groceries"]) == 0
    assert hub.repositories["me/groceries"].files["README.md"] == b"# Mine\n"
    assert main(["push", str(model), "me/groceries", "--dry-run", str(card)]) == 2
    assert "is not empty; name a new or empty folder" in capsys.readouterr().err


def test_what_cannot_be_pushed_is_one_line(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny_model(tmp_path / "model")
    monkeypatch.delenv("HF_TOKEN")
    cases = {
        (str(model), "me/x"): "token: need one with write access",
        (str(model), "x"): "need OWNER/NAME",
        (str(tmp_path / "nothing"), "me/x"): "is no folder of a run or of a saved embedder; `diml train`",
        ("mobilenetv2_100", "me/x"): "is no folder of a run or of a saved embedder",
        (str(model), "me/x", "--license", "all mine"): "license: need an identifier",
    }
    for words, message in cases.items():
        monkeypatch.setenv("HF_TOKEN", "hf_writer") if "--license" in words else None
        assert main(["push", *words]) == 2, words
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert hub.repositories == {}
