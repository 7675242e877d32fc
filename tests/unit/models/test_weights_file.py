"""Weights of one's own files for timm's names: names of others, safety, and what does not fit."""

from __future__ import annotations

import argparse
import json
import os

import pytest
import timm
import torch
from safetensors.torch import save_file

from diml.data.transforms import Preprocess
from diml.models import load_embedder
from diml.models.pretrained import WeightsError, load_exactly
from diml.models.weights_file import read_weights_file
from diml.models.zoo import build_backbone, default_preprocess

SIZE = Preprocess(size=64, resize=64)
SMALL = {"depth": 2, "embed_dim": 64, "num_heads": 2}


def network(name: str, *, seed: int = 0, **options) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = timm.create_model(name, **options).eval()
        for parameter in made.parameters():
            parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    return made


def load(name: str, file, **options):
    return load_embedder(name, weights_file=file, preprocess=SIZE, **options)


def written(state, file):
    plain = {key: value.contiguous() for key, value in state.items()}
    if file.suffix == ".safetensors":
        save_file(plain, file)
    else:
        torch.save(plain, file)
    return file


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "test_vit_relpos"])
def test_a_file_of_timms_own_names_is_loaded_without_a_hub(name, suffix, tmp_path):
    net = network(name, img_size=64) if "vit" in name else network(name)
    embedder = load(name, written(net.state_dict(), tmp_path / f"weights{suffix}"))
    own = embedder.backbone.net.state_dict()
    assert own
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in own.items() if key != "pos_embed")


@pytest.mark.parametrize("wrapped", ["model", "state_dict", "state_dict_ema", "module", "both"])
def test_files_of_training_runs_are_unwrapped(wrapped, tmp_path):
    state = network("test_resnet").state_dict()
    found = {f"module.{key}": value for key, value in state.items()} if wrapped in ("module", "both") else state
    file = {wrapped if wrapped != "both" else "state_dict": found, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(found if wrapped == "module" else file, tmp_path / "best.pth")
    own = load("test_resnet", tmp_path / "best.pth").backbone.net.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in own.items())


def openai_clip(net: torch.nn.Module, proj: int) -> dict[str, torch.Tensor]:
    """The weights of timm's CLIP tower under the names of OpenAI's release, with a piece of the text tower."""
    renamed = {"logit_scale": torch.ones(()), "token_embedding.weight": torch.zeros(4, 4)}
    rules = [
        ("blocks.", "transformer.resblocks."), (".attn.qkv.", ".attn.in_proj_"), (".attn.proj.", ".attn.out_proj."),
        (".mlp.fc1.", ".mlp.c_fc."), (".mlp.fc2.", ".mlp.c_proj."), (".norm1.", ".ln_1."), (".norm2.", ".ln_2."),
        ("norm_pre.", "ln_pre."), ("patch_embed.proj.", "conv1."), ("cls_token", "class_embedding"),
        ("pos_embed", "positional_embedding"),
    ]  # fmt: skip
    for key, value in net.state_dict().items():
        name = key
        for ours, theirs in rules:
            name = name.replace(ours, theirs)
        if name.startswith("norm."):
            name = name.replace("norm.", "ln_post.")
        if name.startswith("head."):
            continue
        renamed[f"visual.{name}"] = value[0, 0] if key == "cls_token" else value[0] if key == "pos_embed" else value
    renamed["visual.proj"] = torch.randn(net.embed_dim, proj)
    return renamed


def test_names_of_others_are_those_that_timm_knows(tmp_path):
    """OpenAI's names for CLIP: its projection is the classifier of timm's network, and the text tower is left out."""
    options = SMALL | {"img_size": 64}
    net = network("vit_base_patch32_clip_224", **options)
    state = openai_clip(net, net.num_classes)
    file = written(state, tmp_path / "ViT-B-32.pth")
    embedder = load("vit_base_patch32_clip_224", file, factory_options=options)
    own = embedder.backbone.net.state_dict()
    torch.testing.assert_close(own, {key: net.state_dict()[key] for key in own})


def test_position_embeddings_are_resampled_as_by_timm(tmp_path):
    """DINOv2 at 518 pixels used at 56: 4 x 4 patches instead of 37 x 37."""
    options = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    name = "vit_small_patch14_dinov2"
    file = written(network(name, **options).state_dict(), tmp_path / "dinov2.safetensors")
    embedder = load_embedder(name, weights_file=file, size=56, factory_options=options)
    assert embedder.preprocess.size == 56
    assert embedder.preprocess.resize == 64
    overlay = {"file": str(file)}
    once = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, img_size=56, num_classes=0, **options
    ).eval()
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        seen, expected = embedder.backbone(images), once.forward_features(images)
    torch.testing.assert_close(seen.pooled, expected[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen.maps.flatten(2).mT, expected[:, 1:], atol=1e-5, rtol=1e-4)
    larger = embedder.with_settings(preprocess=Preprocess(size=70, resize=80))
    assert larger(torch.randn(1, 3, 70, 70)).num_regions == 16


def test_an_embedder_from_a_file_is_saved_whole(tmp_path):
    file = written(network("test_vit", img_size=64, depth=2).state_dict(), tmp_path / "w.safetensors")
    embedder = load("test_vit", file, factory_options={"depth": 2, "img_size": 64})
    embedder.save(tmp_path / "saved")
    again = load_embedder(tmp_path / "saved")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(images).dense, embedder(images).dense)
    assert again.fingerprint() == embedder.fingerprint()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("blocks.0.norm1.weight"), "does not fit 'test_vit'.*Missing.*blocks.0.norm1.weight"),
        (lambda state: state.update(other=torch.zeros(1)), "does not fit 'test_vit'.*Unexpected.*other"),
        (lambda state: state.update({"norm.weight": torch.zeros(3)}), "does not fit 'test_vit'.*size mismatch.*norm"),
        (lambda state: state.clear() or state.update(a=torch.zeros(1)), "does not fit 'test_vit'"),
        (
            lambda state: state.update({"norm.weight": torch.zeros(64, dtype=torch.int64)}),
            r"need floating-point weights, got 1 others \(norm.weight int64\)",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(change, said, tmp_path):
    state = network("test_vit").state_dict()
    change(state)
    with pytest.raises(ValueError, match=f"(?s)weights_file: .*{said}"):
        load("test_vit", written(state, tmp_path / "w.safetensors"))


def test_integers_for_weights_of_any_name_are_refused(tmp_path):
    state = network("test_vit").state_dict()
    state["cls_token"] = state["cls_token"].long()
    with pytest.raises(ValueError, match=r"weights of another kind.*cls_token int64 instead of float32"):
        load("test_vit", written(state, tmp_path / "w.safetensors"))
    net = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"1 of another kind \(weight int64 instead of float32\)"):
        load_exactly(net, {"weight": torch.zeros(2, 3).long(), "bias": torch.zeros(2)}, "file")


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch /tmp/diml-was-here",))


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save({"model": Hostile()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"refused, .*nothing in it was run"):
        load("test_vit", tmp_path / "w.pth")


def test_other_files_are_refused(tmp_path, tiny):
    with pytest.raises(FileNotFoundError, match=r"weights_file: .*nowhere.pth does not exist"):
        load("test_vit", tmp_path / "nowhere.pth")
    (tmp_path / "w.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"weights_file: .*w\.safetensors is damaged"):
        load("test_vit", tmp_path / "w.safetensors")
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="contains no tensors; its names: epoch"):
        load("test_vit", tmp_path / "w.pth")
    tiny("test_vit").save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"part of a saved embedder; load its folder, .*saved"):
        load("test_vit", tmp_path / "saved" / "model.safetensors")
    for model in (tmp_path / "saved", torch.nn.Conv2d(3, 4, 8)):
        with pytest.raises(ValueError, match="weights_file: of no use"):
            load_embedder(model, weights_file=tmp_path / "w.pth")


def test_half_precision_files_are_taken(tmp_path):
    state = {key: value.half() for key, value in network("test_vit", img_size=64).state_dict().items()}
    embedder = load("test_vit", written(state, tmp_path / "w.safetensors"), factory_options={"img_size": 64})
    assert embedder.backbone.net.cls_token.dtype == torch.float32
    assert read_weights_file(tmp_path / "w.safetensors")["cls_token"].dtype == torch.float16


def test_googlenet_takes_torchvisions_file(tmp_path):
    from torchvision.models import GoogLeNet

    with torch.random.fork_rng():
        state = GoogLeNet(init_weights=False, aux_logits=False).state_dict()
    torch.save(state, tmp_path / "googlenet.pth")
    own = build_backbone("googlenet", weights_file=tmp_path / "googlenet.pth").net.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in own.items())


@pytest.mark.usefixtures("no_network")
def test_without_network_the_error_says_what_to_download_and_where_to_put_it():
    with pytest.raises(WeightsError) as caught:
        load_embedder("vit_small_patch14_dinov2")
    said = str(caught.value)
    assert "https://huggingface.co/timm/vit_small_patch14_dinov2.lvd142m/resolve/main/" in said
    assert "weights_file=FILE" in said
    assert "--weights-file FILE" in said


def hub_folder(folder, *, name: str = "test_vit", config=None, **options):
    folder.mkdir(parents=True)
    net = network(name, **options)
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, folder / "model.safetensors")
    plain = {
        "architecture": name,
        "model_args": options,
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 64, 64]},
    }
    (folder / "config.json").write_text(json.dumps(plain | (config or {})), encoding="utf-8")
    return net


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("hub", [True, False])
def test_a_model_in_the_layout_of_the_hub_is_loaded_and_saved(hub, tmp_path, monkeypatch):
    """Its config tells architecture, arguments, size, mean and deviation; afterwards the hub is not needed."""
    net = hub_folder(tmp_path / "model", depth=2)
    cached = {("me/my-vit", file): str(tmp_path / "model" / file) for file in ("config.json", "model.safetensors")}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name, **_: cached.get((repo, name)))
    name = "hf-hub:me/my-vit" if hub else f"local-dir:{tmp_path / 'model'}"
    embedder = load_embedder(name)
    assert embedder.config.backbone == "test_vit"
    assert embedder.config.factory_options == {"depth": 2, "img_size": 64}
    assert (embedder.preprocess.size, embedder.preprocess.mean) == (64, (0.1, 0.2, 0.3))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        own = timm.create_model("test_vit", num_classes=0, depth=2, img_size=64).eval()
        assert set(own.state_dict()) == set(embedder.backbone.net.state_dict())
        embedder.save(tmp_path / "saved")
        cached.clear()
        assert torch.equal(load_embedder(tmp_path / "saved")(images).dense, embedder(images).dense)
    assert torch.equal(embedder.backbone.net.norm.weight, net.norm.weight)


@pytest.mark.usefixtures("no_network")
def test_a_name_of_the_hub_that_cannot_be_had_says_how(tmp_path):
    with pytest.raises(WeightsError, match=r"hf-hub:me/my-vit'.*not cached.*config\.json and .*local-dir:PATH"):
        load_embedder("hf-hub:me/my-vit")
    with pytest.raises(FileNotFoundError, match=r"has no embedder.json or config.json"):
        load_embedder(f"local-dir:{tmp_path}")
    hub_folder(tmp_path / "other", config={"architecture": "nobody"})
    with pytest.raises(ValueError, match="architecture 'nobody', which this timm does not have"):
        default_preprocess(f"local-dir:{tmp_path / 'other'}")
    (tmp_path / "other" / "config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"is not the config.json of a timm model"):
        default_preprocess(f"local-dir:{tmp_path / 'other'}")


@pytest.mark.parametrize(
    "options",
    [
        {"checkpoint_path": "/etc/hostname"},
        {"pretrained": True},
        {"pretrained_cfg_overlay": {"url": "https://host.invalid/w.pth"}},
        {"pretrained_strict": False},
        {"features_only": True},
        {"num_classes": 10},
    ],
)
def test_options_cannot_make_timm_read_or_fetch_weights(options, tmp_path):
    """They are read from saved folders and from the hub, which may be forged."""
    said = f"factory_options: need arguments of the architecture 'test_vit', got {next(iter(options))}"
    with pytest.raises(ValueError, match=said):
        load_embedder("test_vit", pretrained=False, factory_options=options)
    with pytest.raises(ValueError, match=said):
        load_embedder("test_vit", weights_file=tmp_path / "none.safetensors", factory_options=options)


def test_options_that_the_architecture_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"factory_options: 'test_vit' cannot be built with \{'depht': 3\}"):
        load_embedder("test_vit", pretrained=False, factory_options={"depht": 3})
    with pytest.raises(ValueError, match="factory_options: 'googlenet' takes none"):
        load_embedder("googlenet", pretrained=False, factory_options={"depth": 3})
