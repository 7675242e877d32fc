import copy
import importlib.util

import pytest
import timm
import torch
from torch import nn

from diml.extras import MissingExtraError
from diml.models import load_embedder
from diml.models.backbones import MapBackbone, TokenBackbone
from diml.models.inception import IMAGENET_MEAN, IMAGENET_STD, InputAdapter
from diml.models.zoo import build_backbone, default_preprocess


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def image(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_nfnet", "resnet18", "mobilenetv2_035"])
@torch.no_grad()
def test_where_the_head_only_averages_pooled_is_timms_own_and_the_mean_of_the_cells(name):
    backbone = build_backbone(name, pretrained=False, image_size=64)
    seen = backbone(image(64))
    assert backbone.head == "average"
    assert torch.equal(seen.pooled, backbone.net(image(64)))
    assert torch.equal(seen.maps, backbone.net.forward_features(image(64)))
    torch.testing.assert_close(seen.maps.mean(dim=(2, 3)), seen.pooled, atol=1e-6, rtol=1e-4)
    assert seen.maps.shape[1] == backbone.channels


@pytest.mark.parametrize("name", ["test_convnext", "test_mambaout", "mobilenetv3_small_050", "mobilenetv4_conv_small"])
@torch.no_grad()
def test_further_layers_of_a_head_are_applied_to_every_cell(name):
    backbone = build_backbone(name, pretrained=False, image_size=64)
    seen = backbone(image(64))
    assert backbone.head == "per_cell"
    assert torch.equal(seen.pooled, backbone.net(image(64)))
    assert seen.maps.shape[1] == seen.pooled.shape[1] == backbone.channels
    raw = backbone.net.forward_features(image(64))
    raw = raw.permute(0, 3, 1, 2) if backbone.cell_axes == (1, 2) else raw
    cell = raw[:, :, 1:2, 0:1]  # an image whose map is this cell alone has this very summary
    alone = backbone.net.forward_head(
        cell.permute(0, 2, 3, 1) if backbone.cell_axes == (1, 2) else cell, pre_logits=True
    )
    torch.testing.assert_close(seen.maps[:, :, 1, 0], alone, atol=1e-5, rtol=1e-4)


class AttentionHead(nn.Module):
    """A network whose head weighs the cells by their content."""

    num_features = 5

    def forward_features(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.repeat(1, 2, 1, 1)[:, :5], 3)

    def forward_head(self, maps, pre_logits=False):
        return (maps * maps.flatten(2).softmax(dim=2).reshape(maps.shape)).sum(dim=(2, 3))


def test_a_head_without_meaning_for_a_cell_is_left_out():
    net = AttentionHead().eval()
    backbone = MapBackbone(net, net.forward_features(image(9, 1)), None)
    assert backbone.head == "left_out"
    seen = backbone(image(9))
    torch.testing.assert_close(seen.pooled, seen.maps.mean(dim=(2, 3)))


class Layout(nn.Module):
    """The same features in either layout, with a head that averages, and then goes on or not."""

    num_features = 6

    def __init__(self, output_fmt, goes_on):
        super().__init__()
        self.output_fmt = output_fmt
        self.goes_on = goes_on

    def forward_features(self, images):
        maps = torch.nn.functional.adaptive_avg_pool2d(images.repeat(1, 2, 1, 1), (3, 4)) ** 2
        return maps if self.output_fmt == "NCHW" else maps.permute(0, 2, 3, 1)

    def forward_head(self, features, pre_logits=False):
        mean = features.mean(dim=(2, 3) if self.output_fmt == "NCHW" else (1, 2))
        return torch.cat([mean, mean.relu()], dim=1) if self.goes_on else mean


@pytest.mark.parametrize(("goes_on", "head", "channels"), [(True, "per_cell", 12), (False, "average", 6)])
def test_channels_last_networks_give_the_same_as_channels_first_ones(goes_on, head, channels):
    nets = [Layout(layout, goes_on).eval() for layout in ("NCHW", "NHWC")]
    first, last = (MapBackbone(net, net.forward_features(image(12, 1)), None) for net in nets)
    assert first.head == last.head == head
    seen, turned = first(image(12)), last(image(12))
    assert seen.maps.shape == (2, channels, 3, 4)
    assert seen.pooled.shape == (2, channels)
    torch.testing.assert_close(turned.maps, seen.maps)
    torch.testing.assert_close(turned.pooled, seen.pooled)


@torch.no_grad()
def test_a_transformer_of_channels_last_maps():
    backbone = build_backbone("swin_tiny_patch4_window7_224", pretrained=False, image_size=64)
    seen = backbone(image(64))
    assert backbone.image_size == 64
    torch.testing.assert_close(seen.pooled, backbone.net(image(64)))
    torch.testing.assert_close(seen.maps.mean(dim=(2, 3)), seen.pooled, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "prefix"), [("test_vit", 1), ("test_vit2", 1), ("test_vit4", 1), ("test_vit_relpos", 0)]
)
@torch.no_grad()
def test_tokens_become_cells_row_by_row_without_the_prefix(name, prefix):
    backbone = build_backbone(name, pretrained=False, image_size=64)
    assert isinstance(backbone, TokenBackbone)
    assert backbone.prefix == prefix
    seen = backbone(image(64))
    tokens = backbone.net.forward_features(image(64))
    norm = getattr(backbone.net, "fc_norm", None) or nn.Identity()
    torch.testing.assert_close(seen.maps[:, :, 1, 2], norm(tokens[:, prefix + 1 * 4 + 2]))
    assert seen.maps.shape == (2, backbone.channels, 4, 4)
    torch.testing.assert_close(seen.pooled, backbone.net(image(64)))


@torch.no_grad()
def test_registers_are_dropped():
    net = timm.create_model("test_vit", num_classes=0, reg_tokens=4, img_size=64).eval()
    backbone = TokenBackbone(net, net.forward_features(image(64, 1)), 64, None)
    assert backbone.prefix == 5
    tokens = net.forward_features(image(64))
    torch.testing.assert_close(backbone(image(64)).maps.flatten(2).transpose(1, 2), tokens[:, 5:])
    torch.testing.assert_close(backbone(image(64)).pooled, tokens[:, 0])


@torch.no_grad()
def test_token_pooling_can_be_chosen():
    backbone = build_backbone("test_vit", pretrained=False, image_size=64, token_pooling="mean")
    seen = backbone(image(64))
    torch.testing.assert_close(seen.pooled, seen.maps.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("name", "pooling", "said"),
    [
        ("test_vit_relpos", "class", "no class token"),
        ("test_vit", "attention", "no attention pooling, got 'attention'; use 'class' or 'mean'"),
        ("test_resnet", "mean", "maps, not tokens"),
        ("googlenet", "class", "maps, not tokens"),
        ("test_vit", "max", "token_pooling: need one of class, mean, attention, got 'max'"),
    ],
)
def test_a_token_pooling_that_cannot_be_is_refused(name, pooling, said):
    with pytest.raises(ValueError, match=said):
        build_backbone(name, pretrained=False, image_size=64, token_pooling=pooling)


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("test_vit", "class"),
        ("vit_small_patch14_reg4_dinov2", "class"),
        ("vit_small_patch16_dinov3", "mean"),
        ("vit_base_patch32_clip_224", "class"),
        ("vit_base_patch16_siglip_224", "attention"),
        ("vit_base_patch16_siglip_gap_224", "mean"),
        ("deit_tiny_distilled_patch16_224", "class"),
        ("eva02_tiny_patch14_224", "mean"),
        ("beit_base_patch16_224", "mean"),
    ],
)
@torch.no_grad()
def test_pooled_is_that_of_the_models_own_head(name, pooling):
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    size, options = 64 if "patch14" not in name else 56, {"depth": 1, "embed_dim": 32, "num_heads": 2}
    backbone = build_backbone(name, pretrained=False, image_size=size, options=options if name != "test_vit" else None)
    assert backbone.token_pooling == pooling
    tokens = backbone.net.forward_features(image(size))
    seen = backbone(image(size))
    torch.testing.assert_close(seen.pooled, backbone.net.forward_head(tokens, pre_logits=True))
    assert seen.maps.shape == (2, backbone.channels, *(size // backbone.net.patch_embed.patch_size[0],) * 2)


@torch.no_grad()
def test_cells_of_attention_pooling_are_images_of_one_cell():
    options = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    backbone = build_backbone("vit_base_patch16_siglip_224", pretrained=False, image_size=64, options=options)
    tokens = backbone.net.forward_features(image(64))
    seen = backbone(image(64)).maps
    for cell in (0, 5, 15):
        alone = backbone.net.forward_head(tokens[:, cell : cell + 1], pre_logits=True)
        torch.testing.assert_close(seen[:, :, cell // 4, cell % 4], alone)


@torch.no_grad()
def test_networks_that_run_at_one_size_only_say_which_and_use_it_by_default():
    assert default_preprocess("halonet26t").size == 256
    with pytest.raises(ValueError, match=r"halonet26t.*224 x 224.*\(AssertionError\).*made for 256 pixels.*--size 256"):
        build_backbone("halonet26t", pretrained=False, image_size=224)


def test_weights_of_five_axes_do_not_stop_the_faster_layout():
    """lambda_resnet26t has three-dimensional convolutions."""
    embedder = load_embedder("lambda_resnet26t", pretrained=False, size=64)
    weights = embedder.state_dict().values()
    assert any(weight.ndim == 5 for weight in weights)
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights if weight.ndim == 4)


@pytest.mark.parametrize("name", ["pit_ti_224", "crossvit_tiny_240"])
def test_a_model_without_spatial_features_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}.*(no spatial features|instead of one feature map)"):
        build_backbone(name, pretrained=False)


@pytest.mark.parametrize(
    ("name", "nearest"), [("resnt50", "resnet50"), ("mobilenet_v2_100", "mobilenetv2_100"), ("googlnet", "googlenet")]
)
def test_an_unknown_name_suggests_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"no model '{name}'; did you mean .*'{nearest}'"):
        build_backbone(name)


def test_an_unknown_tag_names_the_known_ones():
    with pytest.raises(ValueError, match=r"no weights 'resnet50\.nonsense'; known: .*resnet50\.tv_in1k"):
        build_backbone("resnet50.nonsense")


def test_a_size_that_cannot_be_built_is_refused():
    if not timm.is_model("test_maxvit"):
        pytest.skip(f"timm {timm.__version__} has no test_maxvit")
    with pytest.raises(ValueError, match=r"test_maxvit.* 65"):
        build_backbone("test_maxvit", pretrained=False, image_size=65)


@torch.no_grad()
def test_googlenet_is_torchvisions():
    from torchvision.models import GoogLeNet

    backbone = build_backbone("googlenet", pretrained=False)
    whole = GoogLeNet(init_weights=False, aux_logits=False, transform_input=True).eval()
    assert set(whole.state_dict()) - set(backbone.net.state_dict()) == {"fc.weight", "fc.bias"}
    whole.load_state_dict(backbone.net.state_dict(), strict=False)
    whole.fc = nn.Identity()
    torch.testing.assert_close(backbone(image(64)).pooled, whole(image(64)), atol=1e-5, rtol=1e-4)


def test_an_input_adapter_gives_bgr_from_0_to_255_less_its_mean():
    """BN-Inception was trained on B, G, R in 0..255 with the means 104, 117, 128."""
    pixels = torch.rand(2, 3, 4, 4)
    normalised = (pixels - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    adapter = InputAdapter((104 / 255, 117 / 255, 128 / 255), (1 / 255,) * 3, reverse=True)
    expected = 255 * pixels.flip(1) - torch.tensor([104.0, 117.0, 128.0])[:, None, None]
    torch.testing.assert_close(adapter(normalised), expected, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_bninception_is_the_packages_own_on_its_own_input():
    if importlib.util.find_spec("pretrainedmodels") is None:
        pytest.skip("needs `pip install 'diml[bninception]'`")
    backbone = build_backbone("bninception", pretrained=False)
    assert backbone.adapter.order == [2, 1, 0]
    pixels = torch.rand(1, 3, 224, 224)
    normalised = (pixels - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    own_input = 255 * pixels.flip(1) - torch.tensor([104.0, 117.0, 128.0])[:, None, None]
    seen = backbone(normalised)
    torch.testing.assert_close(seen.maps, backbone.net.features(own_input), atol=1e-3, rtol=1e-3)
    assert seen.maps.shape == (1, 1024, 7, 7)


def test_without_its_package_bninception_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'diml\[bninception\]'"):
        build_backbone("bninception", pretrained=False)


def test_preprocessing_is_the_models_own():
    assert default_preprocess("resnet50") == default_preprocess("googlenet")
    lite = default_preprocess("tf_efficientnet_lite0")
    assert (lite.size, lite.resize, lite.mean, lite.std) == (224, 256, (0.5,) * 3, (0.5,) * 3)
    fixed = default_preprocess("vit_base_patch14_reg4_dinov2")
    assert (fixed.size, fixed.resize, fixed.mean) == (518, 592, (0.485, 0.456, 0.406))


def test_a_copy_is_independent_and_equal():
    backbone = build_backbone("test_vit", pretrained=False, image_size=64)
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        torch.testing.assert_close(twin(image(64)).maps, backbone(image(64)).maps)
        next(twin.parameters()).add_(1)
        assert not torch.equal(twin(image(64)).maps, backbone(image(64)).maps)


def test_backbones_hold_each_weight_once():
    for name in ("test_resnet", "test_vit", "googlenet"):
        state = build_backbone(name, pretrained=False, image_size=64).state_dict()
        assert all(key.startswith("net.") for key in state)
        assert len({value.data_ptr() for value in state.values() if value.numel()}) == len(
            [value for value in state.values() if value.numel()]
        )
