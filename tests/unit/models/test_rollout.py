"""Truncated attention rollout: laws, an oracle that reads timm's own unfused attention, and what is refused."""

from __future__ import annotations

import threading

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diml.data.transforms import Preprocess
from diml.matching import Matcher, Regions
from diml.models import Embedder, load_embedder
from diml.models.backbones import Backbone, Features, TokenBackbone
from diml.models.rollout import _Attention, features_with_masses, not_plain, plain_attention
from diml.models.zoo import build_backbone

#: Every kind of attention that can be rolled out: options that make the network small, whether it has a class token.
SMALL = {"depth": 3, "embed_dim": 64, "num_heads": 2}
KINDS = {
    "test_vit": {},  # class token
    "test_vit4": {},  # registers, mean
    "test_vit_relpos": {},  # relative position bias, shared
    "vit_small_patch16_dinov3": SMALL,  # rotary embedding, registers
    "eva02_tiny_patch14_224": SMALL,  # rotary embedding, absolute positions, no fused projection
    "beit_base_patch16_224": SMALL,  # relative position bias as a mask of the fused attention
    "vit_base_patch16_siglip_224": SMALL,  # attention pooling
    "deit_tiny_distilled_patch16_224": SMALL,  # two class tokens
    "vit_srelpos_small_patch16_224": SMALL,
}


def network(name: str, *, fused: bool = True, pooling=None, **options) -> TokenBackbone:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = 56 if "patch14" in name else 64
        made = build_backbone(
            name, pretrained=False, image_size=size, token_pooling=pooling, options=KINDS.get(name, {}) | options
        )
        for parameter in made.parameters():  # biases and tokens that begin at zero would not be tested
            parameter.data.add_(torch.randn(parameter.shape) * 0.2)
    for part in made.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = fused
    assert isinstance(made, TokenBackbone)
    return made.eval()


def batch(backbone: Backbone, count: int = 2) -> torch.Tensor:
    size = backbone.image_size or 4 * (backbone.net.patch_embed.patch_size[0])
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def matrices(backbone: TokenBackbone, images: torch.Tensor) -> list[torch.Tensor]:
    """Attention (B, H, L, L) of each block, as timm's unfused code hands it to its dropout."""
    found: list[torch.Tensor] = []
    layers = [part for part in backbone.net.blocks.modules() if type(part) in plain_attention()]
    hooks = [part.attn_drop.register_forward_hook(lambda _, given, __: found.append(given[0])) for part in layers]
    before = [part.fused_attn for part in layers]
    for part in layers:
        part.fused_attn = False
    backbone(images)
    for part, hook, fused in zip(layers, hooks, before, strict=True):
        hook.remove()
        part.fused_attn = fused
    return found


def naive(backbone: TokenBackbone, images: torch.Tensor, blocks: int) -> torch.Tensor:
    """(B, P) by the formula, with whole matrices in float64."""
    rolled = None
    for matrix in matrices(backbone, images)[-blocks:]:
        half = (matrix.double().mean(dim=1) + torch.eye(matrix.shape[-1]).double()) / 2
        rolled = half if rolled is None else half @ rolled
    assert rolled is not None
    torch.testing.assert_close(rolled.sum(dim=2), torch.ones(rolled.shape[:2]).double(), atol=1e-5, rtol=0)
    reading = rolled[:, : backbone.class_tokens] if backbone.token_pooling == "class" else rolled[:, backbone.prefix :]
    mass = reading.mean(dim=1)[:, backbone.prefix :]
    return mass / mass.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("blocks", [1, 2, 9])
@pytest.mark.parametrize("name", [name for name in KINDS if "siglip" not in name])
@torch.no_grad()
def test_masses_are_those_of_the_formula(name, blocks, fused):
    backbone = network(name, fused=fused)
    images = batch(backbone)
    seen, why = features_with_masses(backbone, images, blocks)
    assert why == ""
    assert seen.masses.dtype == torch.float32
    assert seen.masses.shape == (2, *seen.maps.shape[2:])
    torch.testing.assert_close(seen.masses.sum(dim=(1, 2)), torch.ones(2))
    torch.testing.assert_close(seen.masses.flatten(1).double(), naive(backbone, images, blocks), atol=1e-6, rtol=1e-4)
    assert (seen.masses.flatten(1).std(dim=1) > 1e-4).all()  # not uniform by mistake
    torch.testing.assert_close(seen.maps, backbone(images).maps)  # recording changes nothing


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch16_dinov3", "beit_base_patch16_224"])
@torch.no_grad()
def test_fused_and_unfused_agree_in_bfloat16(name):
    found = []
    for fused in (True, False):
        backbone = network(name, fused=fused)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(features_with_masses(backbone, batch(backbone), 2)[0].masses)
    exact = features_with_masses(backbone, batch(backbone), 2)[0].masses
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], found[1], atol=2e-3, rtol=0.05)
    torch.testing.assert_close(found[0], exact, atol=5e-3, rtol=0.1)


@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_attention_pooling_reads_the_last_block_as_the_head_does(fused):
    """Against a pooling computed from the head's own weights."""
    backbone = network("vit_base_patch16_siglip_224", fused=fused)
    assert backbone.token_pooling == "attention"
    images, pool = batch(backbone), backbone.net.attn_pool
    seen, _ = features_with_masses(backbone, images, 1)
    tokens = backbone.net.forward_features(images)
    query = pool.q_norm(pool.q(pool.latent).reshape(1, 1, pool.num_heads, -1).transpose(1, 2))
    key = pool.k_norm(
        pool.kv(tokens)[..., : tokens.shape[2]].reshape(2, -1, pool.num_heads, pool.head_dim).transpose(1, 2)
    )
    reading = ((query * pool.scale) @ key.mT).softmax(dim=-1).mean(dim=1)  # (B, 1, L)
    half = (matrices(backbone, images)[-1].mean(dim=1) + torch.eye(tokens.shape[1])) / 2
    torch.testing.assert_close(seen.masses.flatten(1), (reading @ half).squeeze(1))
    torch.testing.assert_close(seen.pooled, backbone.net.forward_head(tokens, pre_logits=True))


@pytest.mark.parametrize("pooling", ["class", "mean"])
@torch.no_grad()
def test_one_block_equals_its_attention_with_half_of_the_residual(pooling):
    backbone = network("test_vit", pooling=pooling)
    images = batch(backbone)
    matrix = matrices(backbone, images)[-1].mean(dim=1)
    mass = matrix[:, 0, 1:] if pooling == "class" else (matrix[:, 1:, 1:].mean(dim=1) + 1 / 16) / 2
    expected = mass / mass.sum(dim=1, keepdim=True)
    seen = features_with_masses(backbone, images, 1)[0].masses
    torch.testing.assert_close(seen.flatten(1), expected)


@pytest.mark.parametrize("pooling", ["class", "mean"])
@torch.no_grad()
def test_identity_attention_gives_uniform_masses(pooling):
    """Every token attends to itself only: queries and keys that are positions, far apart."""
    backbone = network("test_vit", pooling=pooling)
    for part in backbone.net.blocks.modules():
        if type(part) in plain_attention():
            part.q_norm = part.k_norm = _Positions()
    seen = features_with_masses(backbone, batch(backbone), 4)[0].masses
    torch.testing.assert_close(seen, torch.full((2, 4, 4), 1 / 16))


class _Positions(nn.Module):
    """Queries or keys (B, H, L, C) replaced by vectors of which each is most like itself."""

    def forward(self, vectors):
        tokens, channels = vectors.shape[2:]
        angle = 2 * torch.pi * torch.arange(tokens) / tokens
        made = torch.zeros(tokens, channels)
        made[:, 0], made[:, 1] = angle.cos() * 1e4, angle.sin() * 1e4
        return made.expand_as(vectors)


@given(
    seed=st.integers(0, 2**31), tokens=st.integers(1, 6), heads=st.integers(1, 3), bias=st.sampled_from([0, 2, 3, 4])
)
@settings(max_examples=40, deadline=None)
def test_attention_carries_mass_and_loses_none(seed, tokens, heads, bias):
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(3, heads, tokens, 4, generator=generator) * 5 for _ in range(2))
    shapes = {2: (tokens, tokens), 3: (heads, tokens, tokens), 4: (3, heads, tokens, tokens)}
    added = torch.randn(shapes[bias], generator=generator) if bias else None
    mass = torch.rand(3, tokens, generator=generator)
    carried = _Attention(query, key, added, 0.5).applied_to(mass)
    matrix = (0.5 * query @ key.mT + (0 if added is None else added)).softmax(dim=-1).mean(dim=1)
    torch.testing.assert_close(carried, (mass.unsqueeze(1) @ matrix).squeeze(1))
    torch.testing.assert_close(carried.sum(dim=1), mass.sum(dim=1))
    torch.testing.assert_close(_Attention(matrix=matrix).applied_to(mass), carried)


def test_large_batches_are_worked_off_in_parts(monkeypatch):
    query, key = torch.randn(5, 2, 7, 4), torch.randn(5, 2, 7, 4)
    mass = torch.rand(5, 7)
    whole = _Attention(query, key, torch.zeros(5, 1, 7, 7)).applied_to(mass)
    monkeypatch.setattr("diml.models.rollout._MATRIX_BYTES", 1)
    torch.testing.assert_close(_Attention(query, key, torch.zeros(5, 1, 7, 7)).applied_to(mass), whole)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cait_xxs24_224", "mixes tokens in another way"),
        ("test_resnet", "no plain vision transformer"),
        ("vit_small_patch16_18x2_224", "2 attention layers"),
    ],
)
def test_what_cannot_be_rolled_out_says_why_and_still_embeds(name, said):
    options = {"depth": 2, "embed_dim": 48, "num_heads": 2} if name != "test_resnet" else {}
    small = timm.create_model(name, **options)
    if name.startswith("cait") and not hasattr(small, "num_prefix_tokens"):
        pytest.skip(f"timm {timm.__version__} does not tell the class token of {name}")
    embedder = load_embedder(
        name, pretrained=False, preprocess=Preprocess(size=64, resize=64), factory_options=options or None
    )
    assert said in not_plain(embedder.backbone)
    regions = embedder(torch.randn(1, 3, 64, 64), masses=True)
    assert regions.masses is None
    with pytest.raises(ValueError, match=f"'rollout' needs the masses of the regions, and query has none: .*{said}"):
        Matcher(weights="rollout").match(regions, regions)


def test_masses_travel_from_embed_to_the_matcher_resampled_as_features(tiny, images):
    embedder = tiny("test_vit", grid=2, precision="float32")
    regions = embedder.embed(images)
    assert regions.masses.shape == (7, 4)
    stacked = torch.stack([embedder.preprocess(image) for image in images])
    own = features_with_masses(embedder.backbone, stacked, 4)[0].masses
    expected = torch.nn.functional.adaptive_avg_pool2d(own.unsqueeze(1), 2).flatten(1)
    torch.testing.assert_close(regions.masses, expected / expected.sum(dim=1, keepdim=True))
    found = Matcher(weights="rollout").match(regions[:3], regions[3:6])
    torch.testing.assert_close(found.weight_q, regions.masses[:3])
    torch.testing.assert_close(found.weight_g, regions.masses[3:6])
    torch.testing.assert_close(found.plan.sum(dim=2), found.weight_q, atol=1e-5, rtol=1e-3)


def test_the_number_of_blocks_is_a_setting_that_is_saved(tiny, images, tmp_path):
    embedder = tiny("test_vit", rollout_blocks=1)
    other = embedder.with_settings(rollout_blocks=4)
    assert not torch.equal(embedder.embed(images).masses, other.embed(images).masses)
    assert embedder.fingerprint() != other.fingerprint()
    embedder.save(tmp_path / "saved")
    again = load_embedder(tmp_path / "saved")
    assert again.config.rollout_blocks == 1
    torch.testing.assert_close(again.embed(images).masses, embedder.embed(images).masses)
    off = embedder.with_settings(rollout_blocks=0).embed(images)
    assert off.masses is None
    assert "rollout_blocks" in off.massless
    with pytest.raises(ValueError, match="rollout_blocks: need an integer of at least 0, got -1"):
        embedder.with_settings(rollout_blocks=-1)


def test_the_forward_pass_of_training_does_not_record(tiny):
    embedder = tiny("test_vit").train()
    regions = embedder(torch.randn(2, 3, 64, 64))
    assert regions.masses is None
    embedder(torch.randn(2, 3, 64, 64), masses=True).dense.sum().backward()
    assert any(parameter.grad is not None for parameter in embedder.parameters())


def test_hooks_are_removed_also_after_an_error():
    backbone = network("test_vit")
    with pytest.raises(ValueError, match="boom"):
        features_with_masses(_Failing(backbone), batch(backbone), 2)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in backbone.modules())


class _Failing(TokenBackbone):
    def __init__(self, other: TokenBackbone) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(other.__dict__)

    def forward(self, images):
        raise ValueError("boom")


def test_two_threads_share_one_network(tiny, images):
    embedder = tiny("test_vit")
    expected = [embedder.embed([image]).masses for image in images]
    found: dict[int, torch.Tensor] = {}

    def work(index: int) -> None:
        for _ in range(3):
            found[index] = embedder.embed([images[index]]).masses

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, masses in found.items():
        torch.testing.assert_close(masses, expected[index])


class Weighed(Backbone):
    """A backbone of a user's own that tells the masses of its cells."""

    def forward(self, images):
        maps = self.net(images)
        return Features(maps, maps.mean(dim=(2, 3)), masses=maps.abs().sum(dim=1))


def test_a_backbone_of_ones_own_may_give_masses():
    embedder = Embedder(Weighed(nn.Conv2d(3, 5, 8, stride=8), channels=5))
    regions = embedder(torch.randn(2, 3, 224, 224), masses=True)
    assert isinstance(regions, Regions)
    torch.testing.assert_close(regions.masses.sum(dim=1), torch.ones(2))
