"""The user's own nn.Module as a backbone: found layouts, saving by import path, loading by import."""

import copy
import importlib
import json
import os
import subprocess
import sys
import textwrap

import pytest
import timm
import torch
from torch import nn

import diml
from diml.checksums import sealed
from diml.data.transforms import IMAGENET_MEAN, Preprocess
from diml.matching import Matcher
from diml.models import Backbone, Embedder, load_embedder
from diml.models.backbones import Features, MapBackbone, TokenBackbone
from diml.models.modules import ModuleBackbone, wrap_module

SMALL = Preprocess(size=64, resize=64)

SOURCE = """
import torch
from torch import nn

from diml.models import Backbone
from diml.models.backbones import Features


class Net(nn.Module):
    def __init__(self, width: int = 8, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.layers = nn.Sequential(nn.Conv2d(3, width, 8, stride=8), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, images):
        return (self.scale * self.layers(images)).sigmoid()

    class Inner(nn.Conv2d):
        pass


class Last(Backbone):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 6, 8, stride=8), channels=6)

    def forward(self, images):
        maps = self.net(images)
        return Features(maps, maps.amax(dim=(2, 3)))


def make_net(width: int) -> nn.Module:
    return nn.Sequential(*Net(width).layers)


def unannotated(width):
    return Net(width)


def forged(path: str) -> None:
    open(path, "w").write("owned")


def not_a_network() -> nn.Module:
    return 3


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 8, stride=8)
        self.second = self.first

    def forward(self, images):
        return self.second(images)
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module of the user's, importable as `usernets`."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "usernets.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "usernets", raising=False)
    yield importlib.import_module("usernets")
    sys.modules.pop("usernets", None)


def batch(count: int = 2, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


class Fixed(nn.Module):
    """Any layout of the same map: (N, 6, H / 16, W / 16)."""

    def __init__(self, layout: str, prefix: int = 0, **attributes: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 16, stride=16)
        self.layout, self.prefix = layout, prefix
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, images):
        maps = self.conv(images)
        if self.layout == "NCHW":
            return maps
        if self.layout == "NHWC":
            return maps.permute(0, 2, 3, 1)
        tokens = maps.flatten(2).transpose(1, 2)
        first = maps.amax(dim=(2, 3))[:, None].expand(-1, self.prefix, -1)
        return torch.cat([first, tokens], dim=1)


@pytest.mark.parametrize(
    ("layout", "prefix", "options"),
    [
        ("NCHW", 0, {}),
        ("NHWC", 0, {}),
        ("NTC", 0, {}),
        ("NTC", 1, {}),
        ("NTC", 5, {"prefix_tokens": 5}),
        ("NHWC", 0, {"layout": "NHWC"}),
    ],
)
@torch.no_grad()
def test_every_layout_gives_the_same_map(layout, prefix, options):
    net = Fixed(layout, prefix)
    embedder = load_embedder(net, preprocess=SMALL, grid=None, **options)
    seen, maps = embedder.backbone(batch()), net.conv(batch())
    assert isinstance(embedder.backbone, ModuleBackbone)
    torch.testing.assert_close(seen.maps, maps)
    pooled = maps.amax(dim=(2, 3)) if prefix else maps.mean(dim=(2, 3))
    torch.testing.assert_close(seen.pooled, pooled)
    assert embedder.dim == 6
    assert embedder(batch()).grid == (4, 4)
    assert embedder(batch(size=96)).grid == (6, 6)
    assert load_embedder(net, preprocess=SMALL, **options).embed(torch.zeros(2, 3, 80, 80)).num_regions == 16


@torch.no_grad()
def test_tokens_of_an_image_that_is_no_square_keep_its_proportions():
    net = Fixed("NTC", 1)
    images = torch.randn(1, 3, 32, 96, generator=torch.Generator().manual_seed(1))
    seen = load_embedder(net, preprocess=SMALL).backbone(images)
    torch.testing.assert_close(seen.maps, net.conv(images))


@torch.no_grad()
def test_token_pooling_of_a_module_can_be_chosen():
    net = Fixed("NTC", 1)
    seen = load_embedder(net, preprocess=SMALL, token_pooling="mean").backbone(batch())
    torch.testing.assert_close(seen.pooled, net.conv(batch()).mean(dim=(2, 3)))
    with pytest.raises(ValueError, match=r"no class token, got 'class'; use 'mean'"):
        load_embedder(Fixed("NTC"), preprocess=SMALL, token_pooling="class")


def test_a_module_alone_is_enough():
    embedder = Embedder(Fixed("NCHW"))
    assert (embedder.grid, embedder.dim, embedder.preprocess, embedder.matcher) == (4, 6, Preprocess(), Matcher())
    assert embedder.preprocess.mean == IMAGENET_MEAN
    assert embedder.embed([torch.rand(3, 50, 60), torch.rand(3, 90, 60)]).dense.shape == (2, 16, 6)
    assert diml.Embedder is Embedder


def test_options_of_names_are_options_of_modules():
    matcher = Matcher(epsilon=0.02)
    embedder = load_embedder(
        Fixed("NCHW"), head="linear", dim=3, grid=2, pooled="grid_mean", precision="bfloat16", matcher=matcher
    )
    assert not embedder.training
    assert (embedder.dim, embedder.grid, embedder.matcher) == (3, 2, matcher)
    assert (embedder.config.pooled, embedder.config.precision) == ("grid_mean", "bfloat16")
    whiten = load_embedder(Fixed("NCHW"), head="whiten", dim=4, preprocess=SMALL)
    whiten.fit_head(torch.rand(9, 3, 64, 64))
    assert whiten.embed(torch.rand(1, 3, 64, 64)).dim == 4
    with pytest.raises(ValueError, match="architecture: of no use with a module"):
        load_embedder(Fixed("NCHW"), architecture="resnet50")


@torch.no_grad()
def test_a_module_is_shared_and_the_trial_run_changes_nothing_in_it(nets):
    net = nets.Net()
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    embedder = Embedder(net)
    assert embedder.backbone.net is net
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_gradients_reach_the_users_module():
    net = Fixed("NHWC")
    embedder = load_embedder(net, preprocess=SMALL, head="linear", dim=4)
    embedder(batch()).dense[..., 0].sum().backward()
    assert net.conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "kind"), [("test_resnet", MapBackbone), ("test_convnext", MapBackbone), ("test_vit", TokenBackbone)]
)
def test_a_timm_network_as_a_module_is_read_like_its_name(name, kind):
    options = {"num_classes": 0} | ({"img_size": 64} if name == "test_vit" else {})
    net = timm.create_model(name, **options).eval()
    embedder = load_embedder(net, preprocess=SMALL)
    size = {"img_size": 64} if name == "test_vit" else None
    named = load_embedder(name, preprocess=SMALL, pretrained=False, factory_options=size)
    named.backbone.net.load_state_dict(net.state_dict())
    assert isinstance(embedder.backbone, kind)
    with torch.no_grad():
        torch.testing.assert_close(embedder(batch()).dense, named(batch()).dense)
        torch.testing.assert_close(embedder(batch()).pooled, named(batch()).pooled)


class FeaturesFirst(nn.Module):
    """A classifier whose `forward_features` has the map, without timm's other methods."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Fixed("NCHW")

    def forward_features(self, images):
        return self.net(images)

    def forward(self, images):
        return self.net(images).mean(dim=(2, 3))


def test_forward_features_comes_before_forward():
    embedder = load_embedder(FeaturesFirst(), preprocess=SMALL)
    assert embedder.backbone(batch()).maps.shape == (2, 6, 4, 4)


@torch.no_grad()
def test_torchvisions_resnet_without_its_head():
    from torchvision.models import resnet18

    net = nn.Sequential(*list(resnet18().children())[:-2])
    regions = Embedder(net).embed(torch.rand(1, 3, 70, 70))
    assert (regions.num_regions, regions.dim) == (16, 512)
    with pytest.raises(ValueError, match=r"one pooled vector per image, shape \(1, 1000\).*children\(\)\)\[:-2\]"):
        Embedder(resnet18())


@torch.no_grad()
def test_a_backbone_of_ones_own_is_used_unchanged(nets):
    backbone = nets.Last()
    embedder = Embedder(backbone)
    assert isinstance(backbone, Backbone)
    assert embedder.backbone is backbone
    seen = backbone(batch())
    assert isinstance(seen, Features)
    assert repr(seen) == "Features(maps (2, 6, 8, 8), pooled (2, 6), torch.float32)"
    torch.testing.assert_close(embedder(batch()).pooled, nn.functional.normalize(seen.pooled, dim=1))
    with pytest.raises(ValueError, match="layout: the module is a Backbone"):
        load_embedder(backbone, layout="NCHW")


class Gives(nn.Module):
    def __init__(self, output) -> None:
        super().__init__()
        self.output = output

    def forward(self, images):
        return self.output(images)


@pytest.mark.parametrize(
    ("output", "options", "said"),
    [
        (
            lambda x: x.mean(dim=(2, 3)),
            {},
            r"got one pooled vector per image, shape \(1, 3\); pass the network without",
        ),
        (lambda x: x.mean(dim=(2, 3), keepdim=True), {}, "one pooled vector per image"),
        (lambda x: {"map": x}, {}, "got a dict; wrap the network in a module"),
        (lambda x: (x, x), {}, "got a tuple; wrap"),
        (lambda x: x.flatten(), {}, r"of N = 1 image from .*Gives', got shape \(12288,\)"),
        (lambda x: x.repeat(2, 1, 1, 1), {}, r"got shape \(2, 3, 64, 64\)"),
        (lambda x: x.long(), {}, "torch.int64"),
        (lambda x: x[..., :3, :3], {}, "read in more than one way; pass layout='NCHW' or layout='NHWC'"),
        (lambda x: x[..., :5], {}, "read in more than one way"),
        (lambda x: x.flatten(2)[..., :7].transpose(1, 2), {}, "T = 7 from .*; pass prefix_tokens=..."),
        (lambda x: x, {"layout": "NTC"}, r"layout: 'NTC' has 3 axes, got features of shape \(1, 3, 64, 64\)"),
        (lambda x: x, {"layout": "NCWH"}, "layout: need one of None, NCHW, NHWC, NTC, got 'NCWH'"),
        (lambda x: x, {"prefix_tokens": 1}, "prefix_tokens: the module is a map"),
        (lambda x: x, {"prefix_tokens": -1}, "prefix_tokens: need an integer of at least 0"),
        (lambda x: x, {"token_pooling": "mean"}, "token_pooling: the module is a map"),
        (lambda x: x @ torch.ones(9, 9), {}, "fails on one image of 64 x 64 pixels.*set it with preprocess="),
    ],
)
def test_modules_without_usable_features_name_the_remedy(output, options, said):
    with pytest.raises(ValueError, match=said):
        load_embedder(Gives(output), preprocess=SMALL, **options)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_as_many_channels_as_cells_are_distinguished_by_a_larger_image(layout):
    net = Fixed(layout)
    for size in (96, 192):  # 6 x 6 cells of 6 channels
        backbone = load_embedder(net, preprocess=Preprocess(size=size, resize=size)).backbone
        assert backbone.layout == layout


def test_an_ambiguous_layout_can_be_given():
    net = Gives(lambda x: x[..., :3, :3])
    assert load_embedder(net, layout="NHWC", preprocess=SMALL).backbone(batch()).maps.shape == (2, 3, 3, 3)
    marked = Gives(lambda x: x[..., :3, :3])
    marked.output_fmt = "NHWC"
    assert load_embedder(marked, preprocess=SMALL).backbone.layout == "NHWC"


@pytest.mark.parametrize("given", [3, None, [nn.Identity()], lambda x: x])
def test_something_else_than_a_module_is_refused(given):
    with pytest.raises(TypeError, match=r"need an nn\.Module"):
        Embedder(given)
    with pytest.raises(TypeError, match=r"model: need a name, a path or an nn\.Module"):
        load_embedder(given)


@pytest.mark.parametrize("option", [{"layout": "NCHW"}, {"prefix_tokens": 1}, {"factory": "a:b"}])
def test_options_of_modules_are_refused_with_names_and_folders(option, tiny, tmp_path):
    tiny().save(tmp_path / "saved")
    for model in ("test_resnet", tmp_path / "saved"):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: of no use with"):
            load_embedder(model, **option)


def equal(first: Embedder, second: Embedder) -> bool:
    pixels = torch.rand(3, 3, 70, 70)
    one, other = first.embed(pixels), second.embed(pixels)
    return torch.equal(one.dense, other.dense) and torch.equal(one.pooled, other.pooled)


@pytest.mark.parametrize(
    ("build", "options", "saved_as"),
    [
        (lambda nets: nets.Net(), {}, "usernets:Net"),
        (lambda nets: nets.Net(12, 2.5), {"factory_options": {"width": 12, "scale": 2.5}}, "usernets:Net"),
        (
            lambda nets: nets.make_net(7),
            {"factory": "usernets:make_net", "factory_options": {"width": 7}},
            "usernets:make_net",
        ),
        (
            lambda nets: nets.Net.Inner(3, 4, 8, stride=8),
            {"factory_options": {"in_channels": 3, "out_channels": 4, "kernel_size": 8, "stride": 8}},
            "usernets:Net.Inner",
        ),
        (lambda nets: nets.Last(), {}, "usernets:Last"),
        (lambda nets: nets.Tied(), {}, "usernets:Tied"),
    ],
)
def test_a_users_module_comes_back_bitwise_equal(build, options, saved_as, nets, tmp_path):
    matcher = Matcher(epsilon=0.02, weights="uniform")
    embedder = load_embedder(build(nets), preprocess=SMALL, head="linear", dim=5, grid=3, matcher=matcher, **options)
    embedder.save(tmp_path / "saved")
    assert {file.name for file in (tmp_path / "saved").iterdir()} == {"embedder.json", "model.safetensors"}
    loaded = load_embedder(tmp_path / "saved")
    assert loaded.config == embedder.config
    assert loaded.config.backbone == saved_as
    assert loaded.matcher == matcher
    assert loaded.fingerprint() == embedder.fingerprint()
    assert not loaded.training
    assert equal(loaded, embedder)


def test_a_factory_may_be_given_as_the_function_itself(nets, tmp_path):
    net = nets.make_net(7)
    embedder = load_embedder(net, factory=nets.make_net, factory_options={"width": 7}, preprocess=SMALL)
    embedder.save(tmp_path / "saved")
    assert equal(load_embedder(tmp_path / "saved", grid=2), embedder.with_settings(grid=2))


def test_a_timm_network_is_saved_by_timms_own_factory(tmp_path):
    options = {"model_name": "test_resnet", "num_classes": 0}
    net = timm.create_model(**options)
    embedder = load_embedder(net, factory=timm.create_model, factory_options=options, preprocess=SMALL)
    embedder.save(tmp_path / "saved")
    assert equal(load_embedder(tmp_path / "saved"), embedder)


def test_given_layouts_are_saved(nets, tmp_path, monkeypatch):
    class Tokens(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 6, 16, stride=16)

        def forward(self, images):
            tokens = super().forward(images).flatten(2).transpose(1, 2)
            return torch.cat([tokens[:, :3] * 0, tokens], dim=1)

    Tokens.__module__, Tokens.__qualname__ = "usernets", "Tokens"
    monkeypatch.setattr(nets, "Tokens", Tokens, raising=False)
    options = {"layout": "NTC", "prefix_tokens": 3, "token_pooling": "mean", "preprocess": SMALL}
    embedder = load_embedder(Tokens(), **options)
    embedder.save(tmp_path / "saved")
    assert load_embedder(tmp_path / "saved").config == embedder.config
    assert equal(load_embedder(tmp_path / "saved"), embedder)


class Outer:
    class Deep(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 4, 8, stride=8)


def test_what_cannot_be_imported_is_refused_when_saved(nets, tmp_path, monkeypatch):
    class Local(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 4, 8, stride=8)

    scripted = type("Scripted", (Local,), {"__module__": "__main__", "__qualname__": "Scripted"})
    gone = type("Gone", (Local,), {"__module__": "usernets", "__qualname__": "Gone"})
    nowhere = type("Nowhere", (Local,), {"__module__": "no_such_package.nets", "__qualname__": "Nowhere"})
    for made, error, said in [
        (Local(), ValueError, "is defined inside a function and cannot be imported; move it to the top level"),
        (scripted(), ValueError, "Scripted is defined in the running script or notebook.*factory='module:name'"),
        (gone(), ValueError, "'usernets' has no 'Gone'"),
        (nowhere(), ValueError, "cannot import 'no_such_package.nets:Nowhere'.*PYTHONPATH"),
    ]:
        embedder = Embedder(made)
        assert embedder.embed(torch.rand(1, 3, 64, 64)).dim == 4
        with pytest.raises(error, match=said):
            embedder.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_what_builds_another_network_is_refused_when_saved(nets, tmp_path):
    def save(net, **options):
        load_embedder(net, preprocess=SMALL, **options).save(tmp_path / "saved")

    with pytest.raises(ValueError, match=r"other weights \(.* differ, such as 'layers\.0\.bias'\).*factory_options"):
        save(nets.Net(width=9))
    with pytest.raises(ValueError, match="other features from the same weights; give the arguments"):
        save(nets.Net(scale=3.0))
    with pytest.raises(ValueError, match=r"other weights \(.*or a function that builds it as factory='module:name'"):
        save(nets.make_net(7))  # torch's own nn.Sequential, which is built empty
    with pytest.raises(ValueError, match=r"make_net called with \{\} failed \(TypeError: .*factory_options"):
        save(nets.make_net(7), factory="usernets:make_net")
    with pytest.raises(ValueError, match=r"returned a int instead of an nn\.Module"):
        save(nets.Net(), factory="usernets:not_a_network")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"factory": "usernets.make_net"}, ValueError, "need 'package.module:name'"),
        ({"factory": "usernets:made_net"}, ValueError, "'usernets' has no 'made_net'"),
        ({"factory": "usernets:unannotated"}, ValueError, r"annotated to return one; write `def unannotated\(...\) ->"),
        ({"factory": lambda: None}, ValueError, "is defined inside a function|is a lambda"),
        ({"factory": "no_such:net"}, ValueError, "cannot import 'no_such:net'"),
        ({"factory_options": {"width": {1}}}, ValueError, "factory_options: need values that JSON can hold"),
        ({"factory_options": {"width": (1, 2)}}, ValueError, "use lists for tuples"),
        ({"factory_options": {"width": float("nan")}}, ValueError, "JSON"),
    ],
)
def test_a_mistake_in_the_factory_is_found_when_the_module_is_given(options, error, said, nets):
    with pytest.raises(error, match=said):
        load_embedder(nets.Net(), **options)


def test_moved_code_can_be_named_anew(nets, tmp_path, monkeypatch):
    embedder = load_embedder(nets.Net(), preprocess=SMALL)
    embedder.save(tmp_path / "saved")
    (tmp_path / "code" / "usernets.py").rename(tmp_path / "code" / "movednets.py")
    monkeypatch.delitem(sys.modules, "usernets")
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match=r"cannot import 'usernets:Net'.*has moved, pass factory='module:name'"):
        load_embedder(tmp_path / "saved")
    moved = load_embedder(tmp_path / "saved", factory="movednets:Net", factory_options={"width": 8})
    assert moved.config.backbone == "movednets:Net"
    assert equal(moved, embedder)
    sys.modules.pop("movednets")


@pytest.mark.parametrize("path", ["usernets:forged", "os:system", "builtins:exec", "usernets:torch", "shutil:rmtree"])
def test_a_forged_folder_calls_nothing_but_networks(path, nets, tmp_path):
    load_embedder(nets.Net(), preprocess=SMALL).save(tmp_path / "saved")
    file = tmp_path / "saved" / "embedder.json"
    settings = json.loads(file.read_text())
    settings["config"] |= {"backbone": path, "factory_options": {"path": str(tmp_path / "owned"), "command": "true"}}
    del settings["sha256"]
    file.write_text(json.dumps(sealed(settings)))
    with pytest.raises(ValueError, match=r"neither a subclass of nn\.Module nor a function annotated to return one"):
        load_embedder(tmp_path / "saved")
    assert not (tmp_path / "owned").exists()


def test_an_embedder_loads_in_another_process(nets, tmp_path):
    load_embedder(nets.Net(), preprocess=SMALL, grid=2, matcher=Matcher(epsilon=0.1)).save(tmp_path / "saved")
    code = f"""
        import torch, diml
        embedder = diml.load_embedder({str(tmp_path / "saved")!r})
        assert embedder.embed(torch.zeros(3, 64, 64)).num_regions == 4
        print(embedder, embedder.matcher.epsilon)
    """
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "code")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Embedder(usernets:Net, head identity, grid 2, dim 8, on cpu) 0.1\n"


def test_saving_draws_no_random_numbers_and_builds_once(nets, tmp_path, monkeypatch):
    embedder = load_embedder(nets.Net(), preprocess=SMALL)
    state = torch.get_rng_state()
    embedder.save(tmp_path / "saved")
    assert torch.equal(state, torch.get_rng_state())
    monkeypatch.setattr("diml.models.embedder.check_rebuilds", None)  # a second check would fail
    with torch.no_grad():
        next(embedder.parameters()).add_(1)
    embedder.save(tmp_path / "saved")
    assert load_embedder(tmp_path / "saved").fingerprint() == embedder.fingerprint()


def test_a_half_precision_module_is_tried_and_run_in_its_own_type():
    net = Fixed("NCHW").bfloat16()
    assert Embedder(net).embed(torch.rand(1, 3, 64, 64)).dense.dtype == torch.float32


def test_a_module_without_weights_runs():
    embedder = load_embedder(Gives(lambda x: nn.functional.avg_pool2d(x, 8)), preprocess=SMALL)
    assert embedder.device == torch.device("cpu")
    assert embedder.embed(torch.rand(2, 3, 64, 64)).dim == 3


def test_wrapping_twice_wraps_once(nets):
    wrapped = wrap_module(nets.Net(), "net", size=64)
    assert wrap_module(wrapped, "net", size=64) is wrapped
