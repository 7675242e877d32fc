import argparse
import pickle

import pytest
import timm
import torch

from diml.matching import Regions
from diml.models import load_embedder
from diml.models.grids import resize_grid

NAME = "test_resnet"
CHANNELS = 96


@pytest.fixture(scope="module")
def network():
    """A network of the authors' kind, small: names of torchvision, values at random, statistics not at their start."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = timm.create_model(NAME, num_classes=0).state_dict()
    generator = torch.Generator().manual_seed(5)
    return {
        name: value + 0.1 * torch.rand(value.shape, generator=generator) if "running" in name else value
        for name, value in state.items()
    }


@pytest.fixture
def weights(network):
    """As the authors' network names its weights: stages twice, the embedding last."""
    generator = torch.Generator().manual_seed(6)
    named = {f"model.{name}": value for name, value in network.items()}
    named["model.last_linear.weight"] = torch.randn(64, CHANNELS, generator=generator)
    named["model.last_linear.bias"] = torch.randn(64, generator=generator)
    for name, value in network.items():
        if name.startswith("layer"):
            stage, rest = name.removeprefix("layer").split(".", 1)
            named[f"layer_blocks.{int(stage) - 1}.{rest}"] = value
    return named


@pytest.fixture
def write(tmp_path):
    def save(content) -> str:
        torch.save(content, tmp_path / "best.pth")
        return str(tmp_path / "best.pth")

    return save


def images() -> torch.Tensor:
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def expected(network, weights):
    """What their network sees in `images`, through a network filled here: maps and pooled, embedded."""
    net = timm.create_model(NAME, num_classes=0)
    net.load_state_dict(network)
    net.eval()
    weight, bias = weights["model.last_linear.weight"], weights["model.last_linear.bias"]
    with torch.no_grad():
        maps = torch.nn.functional.conv2d(net.forward_features(images()), weight[:, :, None, None], bias)
        return maps, net(images()) @ weight.T + bias


@pytest.mark.parametrize("key", ["model", "state_dict"])
@pytest.mark.parametrize("wrapped", ["", "module.", "module.module."])
@torch.no_grad()
def test_a_checkpoint_of_the_authors_is_read(key, wrapped, weights, write, expected):
    path = write({key: {f"{wrapped}{name}": value for name, value in weights.items()}, "epoch": 3, "recall": 0.5})
    embedder = load_embedder(path, architecture=NAME)
    config = embedder.config
    assert (config.head, config.dim, config.pooled, config.grid) == ("linear", 64, "backbone", 4)
    assert (embedder.preprocess.size, embedder.preprocess.resize) == (224, 256)
    assert not embedder.training
    maps, pooled = expected
    found, wanted = embedder(images()), Regions.normalized(resize_grid(maps, 4).flatten(2).transpose(1, 2), pooled)
    torch.testing.assert_close(found.dense, wanted.dense, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pooled, wanted.pooled, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_diml_variant_has_a_convolution_and_the_mean_of_the_grid(weights, write, expected):
    weights["model.last_linear.weight"] = weights["model.last_linear.weight"][:, :, None, None]
    embedder = load_embedder(write({"model": weights}), architecture=NAME)
    assert embedder.config.pooled == "grid_mean"
    wanted = Regions.from_maps(resize_grid(expected[0], 4))
    torch.testing.assert_close(embedder(images()).pooled, wanted.pooled, atol=1e-5, rtol=0)
    torch.testing.assert_close(embedder(images()).dense, wanted.dense, atol=1e-5, rtol=0)


@torch.no_grad()
def test_names_and_outputs_are_torchvisions(write):
    """Against torchvision's own network with their embedding in place of its classifier."""
    from torchvision.models import resnet18

    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = resnet18().eval()
        net.fc = torch.nn.Linear(512, 32)
    named = {f"module.model.{name.replace('fc.', 'last_linear.')}": value for name, value in net.state_dict().items()}
    embedder = load_embedder(write({"model": named}), architecture="resnet18")
    expected = torch.nn.functional.normalize(net(images()), dim=1)
    torch.testing.assert_close(embedder(images()).pooled, expected, atol=1e-5, rtol=0)


def test_it_can_be_saved_as_one_of_ours(weights, write, tmp_path):
    embedder = load_embedder(write({"model": weights}), architecture=NAME, grid=7)
    embedder.save(tmp_path / "saved")
    assert load_embedder(tmp_path / "saved").fingerprint() == embedder.fingerprint()
    assert embedder.grid == 7


def test_options_stored_beside_the_weights_do_no_harm(weights, write):
    path = write({"state_dict": weights, "opt": argparse.Namespace(lr=1e-5, arch="resnet50_frozen_normalize")})
    assert load_embedder(path, architecture=NAME).dim == 64


def test_the_embedding_may_stand_outside_the_network(weights, write):
    for part in ("weight", "bias"):
        weights[f"last_linear.{part}"] = weights.pop(f"model.last_linear.{part}")
    assert load_embedder(write({"model": weights}), architecture=NAME).dim == 64


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return exec, (f"import pathlib; pathlib.Path({str(self.target)!r}).write_text('owned')",)


@pytest.mark.parametrize("plain", [True, False])
def test_a_hostile_file_is_refused_and_not_run(plain, weights, tmp_path):
    target, path = tmp_path / "owned.txt", tmp_path / "best.pth"
    if plain:
        path.write_bytes(pickle.dumps({"model": Hostile(target)}))
    else:
        torch.save({"model": weights, "extra": Hostile(target)}, path)
    with pytest.raises(ValueError, match=r"best\.pth: refused.*nothing in it was run"):
        load_embedder(path, architecture=NAME)
    assert not target.exists()
    torch.load(path, weights_only=False) if not plain else pickle.loads(path.read_bytes())
    assert target.exists(), "the file was not hostile after all"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"<html>404</html>", b"\x80\x04K\x01."])
def test_a_damaged_file_is_refused(content, tmp_path):
    path = tmp_path / "best.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"best\.pth"):
        load_embedder(path, architecture=NAME)


def changed(weights, **changes):
    return {name: value for name, value in (weights | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {"weights": w}, "need weights under 'model' or 'state_dict', got weights"),
        (lambda w: {"model": 3}, "need weights under"),
        (lambda w: torch.zeros(2), "need a dictionary"),
        (lambda w: {"model": w | {"model.note": "text"}}, "need named tensors, got something else as model.note"),
        (lambda w: {"model": w | {"model.conv9.weight": torch.zeros(1)}}, r"1 unexpected \(conv9\.weight\)"),
        (lambda w: {"model": w | {"critic.weight": torch.zeros(1)}}, r"unexpected critic\.weight"),
        (lambda w: {"model": changed(w, **{"model.conv1.0.weight": None})}, r"1 missing \(conv1\.0\.weight\)"),
        (
            lambda w: {"model": w | {"model.conv1.0.weight": torch.zeros(2, 3, 3, 3)}},
            r"of another shape \(conv1\.0\.weight",
        ),
        (
            lambda w: {"model": changed(w, **{"model.last_linear.weight": None})},
            "last_linear.weight and .bias, got bias",
        ),
        (lambda w: {"model": w | {"model.last_linear.weight": torch.zeros(64, 9)}}, r"\(D, 96\) .* got \(64, 9\)"),
        (lambda w: {"model": w | {"model.last_linear.weight": torch.zeros(64, 96, 3, 3)}}, r"got \(64, 96, 3, 3\)"),
        (lambda w: {"model": w | {"model.last_linear.bias": torch.zeros(63)}}, r"\(63,\)"),
        (
            lambda w: {"model": w | {"layer_blocks.0.0.conv1.weight": torch.zeros(64, 64, 3, 3)}},
            "layer_blocks.* differs",
        ),
    ],
)
def test_a_foreign_dictionary_is_refused(change, said, weights, write):
    with pytest.raises(ValueError, match=said):
        load_embedder(write(change(weights)), architecture=NAME)


def test_another_architecture_is_refused(weights, write):
    with pytest.raises(ValueError, match="another architecture"):
        load_embedder(write({"model": weights}), architecture="test_efficientnet")


def test_the_architecture_must_be_named(weights, write):
    with pytest.raises(ValueError, match="architecture='resnet50'"):
        load_embedder(write({"model": weights}))
    with pytest.raises(ValueError, match="head: of no use with a checkpoint"):
        load_embedder(write({"model": weights}), architecture=NAME, head="whiten")
