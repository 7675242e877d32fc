import importlib.util
import threading
import time

import pytest
import timm
import torch

from diml.assets import AssetError, fetch_asset
from diml.models import pretrained
from diml.models.pretrained import OFFLINE, WeightsError, copy_in_order, fetch_state, load_exactly
from diml.models.zoo import build_backbone


def asset(name):
    try:
        return torch.load(fetch_asset(OFFLINE[name]), weights_only=True)
    except AssetError as error:
        pytest.skip(f"the asset cannot be fetched: {error}")


@pytest.mark.parametrize(("name", "tensors"), [("mobilenetv2_100", 312), ("tf_efficientnet_lite0", 294)])
@torch.no_grad()
def test_the_assets_give_timms_networks_bitwise(name, tensors):
    """Against a network filled here, one tensor after the other."""
    state = {key: value for key, value in asset(name).items() if key.split(".")[0] not in ("classifier", "_fc")}
    net = timm.create_model(name, num_classes=0).eval()
    places = list(net.state_dict().values())
    assert len(places) == len(state) == tensors
    for place, value in zip(places, state.values(), strict=True):
        place.copy_(value)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    seen = build_backbone(name)(images)
    assert torch.equal(seen.maps, net.forward_features(images))
    assert torch.equal(seen.pooled, net(images))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["resnet50", "googlenet", "bninception", "resnet18.tv_in1k"])
def test_without_network_the_error_names_the_model_the_cause_and_the_remedies(name):
    if name == "bninception" and importlib.util.find_spec("pretrainedmodels") is None:
        pytest.skip("needs `pip install 'diml[bninception]'`")
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        build_backbone(name)
    said = str(caught.value)
    for part in (name, "Name or service not known", "mobilenetv2_100", "folder", "pretrained=False"):
        assert part in said
    assert time.monotonic() - start < 30


def test_a_host_that_does_not_answer_is_not_waited_for(monkeypatch):
    over = threading.Event()

    def hang(*args, **options):
        over.wait(60)
        raise TimeoutError("timed out")

    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("socket.create_connection", hang)
    monkeypatch.setattr(pretrained, "_PATIENCE_SECONDS", 0.2)
    try:
        with pytest.raises(WeightsError, match="did not answer"):
            build_backbone("test_resnet")
    finally:
        over.set()


@pytest.mark.usefixtures("no_network")
def test_without_network_a_cached_file_is_used(monkeypatch, tmp_path):
    net = timm.create_model("test_resnet")
    file = tmp_path / "pytorch_model.bin"
    torch.save(net.state_dict(), file)
    found = {("timm/test_resnet.r160_in1k", "pytorch_model.bin"): str(file)}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name: found.get((repo, name)))
    loaded = build_backbone("test_resnet").net.state_dict()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in loaded.items())


def test_a_failure_inside_timm_is_told_in_our_words(monkeypatch):
    monkeypatch.setattr(pretrained, "unreachable", lambda url: None)

    def fail(*args, **options):
        raise ConnectionResetError("peer went away")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(WeightsError, match=r"test_resnet.*ConnectionResetError: peer went away"):
        build_backbone("test_resnet")


def test_a_model_without_weights_says_so():
    with pytest.raises(WeightsError, match="timm has none"):
        build_backbone("darknet17")


def test_weights_in_another_order_or_number_are_refused():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 4))
    state = {f"x{index}": value for index, value in enumerate(net.state_dict().values())}
    copy_in_order(net, state | {"classifier.weight": torch.zeros(9)}, "file")
    with pytest.raises(ValueError, match="file: need 4 tensors, got 3"):
        copy_in_order(net, dict(list(state.items())[:3]), "file")
    with pytest.raises(ValueError, match=r"x3 is of shape \(4,\), need \(2, 3\) for 0\.weight"):
        copy_in_order(net, dict(reversed(state.items())), "file")


def test_weights_that_do_not_fit_are_named():
    net = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"1 missing \(bias\); 1 unexpected \(b\); 1 of another shape \(weight \(9,\)"):
        load_exactly(net, {"weight": torch.zeros(9), "b": torch.zeros(1)}, "file")


def test_counters_of_batch_norm_may_be_missing():
    net = torch.nn.BatchNorm1d(2)
    state = {name: value for name, value in net.state_dict().items() if name != "num_batches_tracked"}
    load_exactly(net, state, "file")
    assert net.num_batches_tracked == 0


@pytest.mark.usefixtures("no_network")
def test_torchs_cache_is_used_and_read_safely(tmp_path):
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"weight": torch.ones(2)}, folder / "some-12345678.pth")
    assert torch.equal(fetch_state("some", "https://host.invalid/some-12345678.pth")["weight"], torch.ones(2))
