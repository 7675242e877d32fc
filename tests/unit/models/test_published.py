"""Embedders on the hub: pushed to one on the loopback interface, fetched again, and every refusal in one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from calibrated import made_up_calibrator
from diml.calibration.finding import find_calibration
from diml.cli import errors
from diml.evaluation import evaluate_regions
from diml.evaluation.tables import write_reports
from diml.extending import register
from diml.matching import LearnedMatcher, Matcher, Regions
from diml.matching.learned import VoteScorer
from diml.models import Embedder, load_embedder
from diml.models.card import model_card, read_results
from diml.models.hub import HubError
from diml.models.pretrained import WeightsError
from diml.models.published import is_published, published_folder, write_publication
from diml.models.zoo import is_backbone
from diml.training import TrainConfig
from diml.training.config import write_config
from local_hub import READER, LocalHub, local_hub
from tiny_model import save_tiny_model


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    with local_hub(monkeypatch, tmp_path / "hub") as server:
        yield server


def learned(dim: int) -> LearnedMatcher:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return LearnedMatcher.of(VoteScorer(dim))


def scores(embedder: Embedder, images: list[Any]) -> torch.Tensor:
    regions = embedder.embed(images)
    return embedder.matcher.score(regions, regions, torch.arange(len(images)).expand(len(images), -1))


@pytest.fixture(scope="module")
def tested_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tested run, its numbers from an evaluation of random regions."""
    folder = tmp_path_factory.mktemp("hub") / "run"
    save_tiny_model(folder, head="linear", dim=16, grid=2, matcher=Matcher(epsilon=0.02))
    config = TrainConfig(dataset="orl", epochs=3, model="/home/me/secret/begun", data=Path("/home/me/photos"))
    write_config(folder / "config.yaml", config)
    draw, labels = torch.Generator().manual_seed(0), [0, 1, 2, 0, 1, 2, 0, 1, 1, 2, 0, 1, 2, 0]
    before, report = (
        evaluate_regions(Regions.from_maps(torch.randn(14, 8, 2, 2, generator=draw)), labels, rerank_at=(0, 5))
        for _ in range(2)
    )
    gains = [
        {"rerank_at": k, "metric": metric, **found._asdict()}
        for k in (0, 5)
        for metric, found in report.minus(before, k).items()
    ]
    settings = config.to_dict() | {"best_epoch": 2}
    write_reports(folder, {"frozen": before, "run": report}, settings, {"trained_minus_frozen": gains})
    return folder


@pytest.fixture
def run(tested_run: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(tested_run, tmp_path / "run")


@pytest.mark.parametrize("kind", ["transport", "learned", "whiten"])
def test_what_is_pushed_is_loaded_again_with_equal_scores(hub, tiny, images, kind):
    embedder = tiny(grid=2, head="whiten", dim=8) if kind == "whiten" else tiny(grid=2, matcher=Matcher(epsilon=0.02))
    if kind == "whiten":
        embedder.fit_head(images)
    if kind == "learned":
        embedder = embedder.with_settings(matcher=learned(embedder.dim))
    address = embedder.push_to_hub("me/groceries")
    assert address.startswith(f"{hub.address}/me/groceries/commit/")
    assert not hub.repositories["me/groceries"].private
    for loaded in (Embedder.from_pretrained("me/groceries"), load_embedder("hf-hub:me/groceries@main")):
        assert (loaded.fingerprint(), loaded.matcher) == (embedder.fingerprint(), embedder.matcher)
        assert torch.equal(scores(loaded, images), scores(embedder, images))
    assert Embedder.from_pretrained("me/groceries", grid=3).grid == 3


def test_a_push_is_one_commit_that_replaces_the_one_before(hub, tiny):
    embedder = tiny(grid=2)
    embedder.with_settings(matcher=learned(embedder.dim)).push_to_hub("me/x")
    repository = hub.repositories["me/x"]
    repository.files["notes.txt"] = b"mine"
    assert "scorer.safetensors" in repository.files
    old = repository.sha
    embedder.push_to_hub("me/x")
    assert repository.commits == 2
    assert set(repository.files) == {"README.md", "embedder.json", "model.safetensors", "notes.txt"}
    assert Embedder.from_pretrained("me/x").matcher == Matcher()
    with pytest.raises(HubError, match="model: the hub has no me/x that you may see; check the name and the revision"):
        Embedder.from_pretrained(f"me/x@{old}")


def test_the_present_version_is_fetched_and_without_a_network_the_cached_one(hub, tiny, monkeypatch):
    tiny(seed=1).push_to_hub("me/x")
    first = Embedder.from_pretrained("me/x").fingerprint()
    tiny(seed=2).push_to_hub("me/x")
    second = Embedder.from_pretrained("me/x").fingerprint()
    assert first != second
    hub.asked.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert Embedder.from_pretrained("me/x").fingerprint() == second
    assert hub.asked == []
    with pytest.raises(WeightsError, match=r"hf-hub:me/y.*not cached, and HF_HUB_OFFLINE is set.*local-dir:PATH"):
        Embedder.from_pretrained("me/y")
    with pytest.raises(HubError, match="me/x cannot be written, HF_HUB_OFFLINE is set"):
        tiny().push_to_hub("me/x")


@pytest.mark.usefixtures("no_network")
def test_without_a_network_nothing_is_written(tiny, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(HubError, match=r"repo_id: me/x cannot be written, .*Name or service not known"):
        tiny().push_to_hub("me/x")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "token: need one with write access to push, got none; .* set HF_TOKEN"),
        ("hf_unknown", "the hub does not know this token"),
        (READER, "the token has no permission for me/x; use one with write access"),
    ],
)
def test_a_token_that_may_not_write_is_told_with_the_remedy(hub, tiny, monkeypatch, token, message):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=message) as caught:
        tiny().push_to_hub("me/x", token=token)
    line = errors.explained(caught.value)
    assert line is not None
    assert "\n" not in line
    assert hub.repositories == {}


def test_a_model_that_is_missing_or_not_for_you_is_told(hub, tiny, monkeypatch):
    with pytest.raises(HubError, match="model: the hub has no me/nothing that you may see"):
        Embedder.from_pretrained("me/nothing")
    tiny().push_to_hub("me/mine", private=True)
    assert hub.repositories["me/mine"].private
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="there is no me/mine that it may see; check the name, and set HF_TOKEN"):
        Embedder.from_pretrained("me/mine")


def test_a_private_push_to_a_public_place_is_refused(hub, tiny):
    tiny(seed=1).push_to_hub("me/x")
    before = dict(hub.repositories["me/x"].files)
    with pytest.raises(HubError, match="private: me/x is public already, and nothing was pushed"):
        tiny(seed=2).push_to_hub("me/x", private=True)
    assert hub.repositories["me/x"].files == before


@pytest.mark.parametrize("name", ["groceries", "me/my/x", "me/", "/x", "me/x y", ""])
def test_a_name_of_another_form_is_refused_before_anything_is_sent(hub, tiny, name):
    with pytest.raises(ValueError, match="repo_id: need OWNER/NAME"):
        tiny().push_to_hub(name)
    assert hub.asked == []


def test_from_pretrained_takes_folders_and_names_too(hub, tiny, tmp_path, monkeypatch):
    embedder = tiny(grid=2)
    embedder.save(tmp_path / "me" / "x")
    monkeypatch.chdir(tmp_path)
    for name in ("me/x", tmp_path / "me" / "x", f"local-dir:{tmp_path / 'me' / 'x'}"):
        assert Embedder.from_pretrained(name).fingerprint() == embedder.fingerprint()
    assert Embedder.from_pretrained("test_resnet", pretrained=False).config.backbone == "test_resnet"
    assert hub.asked == []
    with pytest.raises(ValueError, match="head: of no use with a saved embedder"):
        load_embedder(f"local-dir:{tmp_path / 'me' / 'x'}", head="whiten")


def test_a_name_says_whether_it_is_a_backbone_or_an_embedder(hub, tiny, tmp_path):
    """Commands put a whitening on a backbone, and leave a saved embedder as it is."""
    tiny().push_to_hub("me/x")
    net = load_embedder("test_resnet", pretrained=False).backbone.net
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, tmp_path / "weights.safetensors")
    hub.repositories["me/timm"] = dataclasses.replace(hub.repositories["me/x"], files={})
    hub.repositories["me/timm"].files |= {
        "config.json": json.dumps({"architecture": "test_resnet"}).encode(),
        "model.safetensors": (tmp_path / "weights.safetensors").read_bytes(),
    }
    assert (is_backbone("hf-hub:me/x"), is_published("hf-hub:me/x")) == (False, True)
    assert (is_backbone("hf-hub:me/timm"), is_published("hf-hub:me/timm")) == (True, False)
    assert load_embedder("hf-hub:me/timm", head="whiten", dim=4).config.head == "whiten"
    assert published_folder("resnet50") is None


@pytest.mark.usefixtures("hub")
def test_a_calibration_is_pushed_and_found(tiny, tmp_path):
    embedder = tiny(grid=2)
    embedder.save(tmp_path / "model")
    made_up_calibrator(embedder).save(tmp_path / "model")
    embedder.push_to_hub("me/x", folder=tmp_path / "model")
    found = find_calibration(["hf-hub:me/x"], fingerprint=embedder.fingerprint(), matcher=embedder.matcher)
    assert found.calibrator is not None


class OwnNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 8, 8, stride=8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.convolution(images)


def test_no_code_is_imported_because_a_model_on_the_hub_says_so(hub, tmp_path, monkeypatch):
    """Its author's network is built by code of this machine, which the user has to name."""
    code = "import torch\nclass Net(torch.nn.Conv2d):\n    def __init__(self):\n        super().__init__(3, 8, 8, 8)\n"
    (tmp_path / "code_of_others.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    import code_of_others

    embedder = load_embedder(code_of_others.Net(), size=64)
    embedder.push_to_hub("me/own")
    assert 'factory="code_of_others:Net")' in hub.repositories["me/own"].files["README.md"].decode()
    with pytest.raises(ValueError, match=r"built by code_of_others:Net, code of its author.*where you trust it"):
        load_embedder("hf-hub:me/own")
    for factory in ("code_of_others:Net", code_of_others.Net):
        assert load_embedder("hf-hub:me/own", factory=factory).fingerprint() == embedder.fingerprint()


def test_the_card_of_a_run_has_its_settings_and_results_and_no_path(tiny, run):
    embedder = load_embedder(run)
    card = model_card(embedder, "me/groceries", results=read_results(run), licence="MIT")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front == {
        "library_name": "diml",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["diml", "image-retrieval", "metric-learning", "optimal-transport", "explainability"],
        "license": "mit",
    }
    assert ModelCard(card).data.library_name == "diml"  # as the hub's own client reads it
    document = json.loads((run / "evaluation.json").read_text())
    trained = document["methods"]["run"]
    for row, bounds in zip(trained["rows"], trained["intervals_95"], strict=True):
        low, high = bounds["map@r"]
        assert f"{100 * row['map@r']:.2f} ({100 * low:.1f}..{100 * high:.1f})" in card
    assert "| trained, re-ranked (K = 5) |" in card
    assert "| trained minus before, pooled vectors |" in card
    assert f"{trained['queries']} queries, {trained['gallery']} gallery images" in card
    for part in ("`orl`", "| epochs | `3` |", "| best_epoch | `2` |", "| epsilon | `0.02` |", "| dim | 16 channels |"):
        assert part in card
    assert '"hf-hub:me/groceries"' in card
    assert "@inproceedings{zhao2021diml," in card
    assert "/home" not in card
    assert "secret" not in card


def test_a_card_names_every_setting_of_the_matcher(tiny):
    card = model_card(tiny(), "me/x")
    for name, value in Matcher().to_dict().items():
        assert f"| {name} | `{value}` |" in card
    assert "reducing gap" not in card
    gap = dataclasses.replace(tiny().preprocess, reducing_gap=2)
    assert "| reducing gap | 2: large images are shrunk" in model_card(tiny(preprocess=gap), "me/x")
    card = model_card(tiny().with_settings(matcher=learned(tiny().dim)), "me/x")
    assert "| epsilon |" not in card
    assert "votes" in card
    assert "license" not in card
    for section in ("## Training", "## Results"):
        assert section not in card
    with pytest.raises(ValueError, match="license: need an identifier such as mit"):
        model_card(tiny(), "me/x", licence="all mine")


def test_results_that_are_not_of_the_present_weights_are_left_out(run):
    """A run that is continued for more epochs is not tested yet; an evaluation that is no run says nothing of it."""
    assert read_results(run) is not None
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(settings | {"epochs": 9}))
    assert read_results(run) is None
    (run / "config.yaml").unlink()
    assert read_results(run) is None


def test_damaged_results_are_named(run):
    text = (run / "evaluation.json").read_text()
    (run / "evaluation.json").write_text(text.replace('"queries": 14', '"queries": 15'))
    with pytest.raises(ValueError, match=r"evaluation\.json: damaged or changed"):
        read_results(run)


def test_the_results_of_another_embedder_are_not_published(tiny, run, tmp_path):
    other = tiny(head="linear", dim=16, grid=2, seed=5)
    with pytest.raises(ValueError, match=r"holds another embedder than the one to be pushed \(weights\)"):
        write_publication(tmp_path / "new", other, "me/x", source=run)
    with pytest.raises(ValueError, match=r"\(grid\)"):
        write_publication(tmp_path / "new", load_embedder(run, grid=3), "me/x", source=run)
    assert not (tmp_path / "new").exists()
    sharper = load_embedder(run, matcher=Matcher(epsilon=0.01))  # regions do not depend on it
    write_publication(tmp_path / "new", sharper, "me/x", source=run)
    assert load_embedder(tmp_path / "new").matcher.epsilon == 0.01


def test_a_folder_with_something_in_it_is_not_written_to(tiny, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty; name a new or empty folder"):
        write_publication(tmp_path / "there", tiny(), "me/x")
    assert (tmp_path / "there" / "README.md").read_text() == "mine"


def test_a_card_of_the_users_own_is_kept(tiny, tmp_path):
    embedder = tiny()
    write_publication(tmp_path / "first", embedder, "me/x")
    (tmp_path / "first" / "README.md").write_text("# My words\n")
    write_publication(tmp_path / "second", embedder, "me/x", source=tmp_path / "first")
    assert (tmp_path / "second" / "README.md").read_text() == "# My words\n"


def test_an_embedder_of_a_registered_backbone_is_pushed(hub, images):
    register("backbones", "own_net_of_the_hub", lambda *, pretrained: OwnNet())
    embedder = load_embedder("own_net_of_the_hub", size=64)
    embedder.push_to_hub("me/registered")
    loaded = Embedder.from_pretrained("me/registered")
    assert torch.equal(scores(loaded, images), scores(embedder, images))


def test_a_damaged_download_is_named(hub, tiny):
    tiny(seed=1).push_to_hub("me/x")
    files = hub.repositories["me/x"].files
    files["model.safetensors"] = files["model.safetensors"][:-4] + b"\1\2\3\4"
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        Embedder.from_pretrained("me/x")


@pytest.mark.parametrize(
    ("status", "message"),
    [(400, "the hub refused what was sent"), (404, "the hub has no me/x"), (418, "the hub failed; try again later")],
)
def test_a_refusal_is_told_with_what_the_hub_says(hub, tiny, status, message):
    hub.failing = status
    with pytest.raises(HubError, match=rf"repo_id: {message}.*as the test asked"):
        tiny().push_to_hub("me/x")


def test_a_local_copy_of_the_files_is_a_folder(tiny, tmp_path):
    """`local-dir:` names the folder that a message asks to download into."""
    tiny().save(tmp_path / "copy")
    assert published_folder(f"local-dir:{tmp_path / 'copy'}") == tmp_path / "copy"
    shutil.rmtree(tmp_path / "copy")
    with pytest.raises(FileNotFoundError, match=r"has no embedder.json or config.json"):
        published_folder(f"local-dir:{tmp_path / 'copy'}")
