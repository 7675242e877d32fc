"""Names of models as people type them."""

from __future__ import annotations

import pytest

from diml.models.model_search import names_meant
from diml.models.zoo import build_backbone


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("dinov2", "vit_small_patch14_dinov2"),
        ("DINOv2", "vit_small_patch14_dinov2"),
        ("facebook/dinov2-small", "vit_small_patch14_dinov2"),
        ("clip", "vit_base_patch32_clip_224"),
        ("ViT-B/16", "vit_base_patch16_224"),
        ("vit-s-16", "vit_small_patch16_224"),
        ("vitb16", "vit_base_patch16_224"),
        ("siglip", "vit_base_patch16_siglip_224"),
        ("resnet-50", "resnet50"),
        ("ResNet 18", "resnet18"),
        ("mae", "vit_base_patch16_224.mae"),
        ("convnext tiny", "convnext_tiny"),
        ("resnt50", "resnet50"),
        ("googlnet", "googlenet"),
    ],
)
def test_what_people_type_finds_what_they_mean(typed, meant):
    found = names_meant(typed, ["googlenet", "bninception"])
    assert meant in found[:3], found


def test_models_without_weights_come_last_and_nonsense_finds_nothing():
    assert names_meant("zzzzqqq") == []
    assert names_meant("") == []
    assert len(names_meant("vit")) == 3


def test_the_error_suggests_them_and_the_prefix_of_the_hub():
    with pytest.raises(ValueError, match="no model 'dinov2'; did you mean 'vit_small_patch14_dinov2'"):
        build_backbone("dinov2")
    with pytest.raises(ValueError, match=r"A timm model on the Hugging Face hub is 'hf-hub:timm/resnet18.a1_in1k'"):
        build_backbone("timm/resnet18.a1_in1k")
