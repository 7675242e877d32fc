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
        ("vti-b16", "vit_base_patch16_224"),
        ("vti_b_16", "vit_base_patch16_224"),
        ("vtib16", "vit_base_patch16_224"),
        ("deti-s16", "deit_small_patch16_224"),
        ("dinov2-b14", "vit_base_patch14_dinov2"),
        ("dinvo2-b14", "vit_base_patch14_dinov2"),
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


@pytest.mark.parametrize(
    ("typed", "family"),
    [
        ("dinvo2", "dinov2"),
        ("dino2", "dinov"),
        ("facebook/dinvo2-small", "dinov2"),
        ("resent50", "resnet50"),
        ("resnxet50", "resnext50"),
        ("reset50", "resnet50"),
        ("efficentnet", "efficientnet"),
        ("efficientnt_b0", "efficientnet"),
        ("mobilnetv2", "mobilenetv2"),
        ("moblienetv3", "mobilenetv3"),
        ("convnxt", "convnext"),
        ("convenxt tiny", "convnext"),
        ("swinn", "swin"),
        ("vti", "vit"),
        ("vti-b16", "vit_base_patch16"),
        ("vit-bsae-16", "vit_base_patch16"),
        ("deti", "deit"),
        ("densnet", "densenet"),
        ("regent", "regnet"),
        ("siglpi", "siglip"),
        ("clpi", "clip"),
        ("eva2", "eva02"),
        ("beti", "beit"),
        ("maxvti", "maxvit"),
        ("xceptoin", "xception"),
        ("inceptionv33", "inception_v3"),
        ("googlenett", "googlenet"),
    ],
)
def test_typing_errors_in_the_name_of_a_family_are_corrected(typed, family):
    """All that is suggested is of the family that was meant, not of one whose name looks alike as a whole."""
    found = names_meant(typed, ["googlenet", "bninception"])
    assert found
    assert all(family in name for name in found), found


def test_models_without_weights_come_last_and_nonsense_finds_nothing():
    assert names_meant("zzzzqqq") == []
    assert names_meant("") == []
    assert len(names_meant("vit")) == 3


def test_the_error_suggests_them_and_the_prefix_of_the_hub():
    with pytest.raises(ValueError, match="no model 'dinov2'; did you mean 'vit_small_patch14_dinov2'"):
        build_backbone("dinov2")
    with pytest.raises(ValueError, match="no model 'dinvo2'; did you mean 'vit_small_patch14_dinov2'"):
        build_backbone("dinvo2")
    with pytest.raises(ValueError, match=r"A timm model on the Hugging Face hub is 'hf-hub:timm/resnet18.a1_in1k'"):
        build_backbone("timm/resnet18.a1_in1k")
