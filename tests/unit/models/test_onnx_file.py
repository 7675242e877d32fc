"""An embedder as an ONNX file: it computes what torch computes, and says how to prepare images."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from diml.cli import main
from diml.data import Preprocess
from diml.matching import Matcher, Regions
from diml.models import Embedder, load_embedder
from diml.models.onnx_file import description

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; it is in the extra `onnx`")

PREPARED = Preprocess(size=64, resize=72, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def opened(file):
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small vision transformer in `model`, and what the command wrote and printed: `e.onnx` and `facts.json`."""
    folder = tmp_path_factory.mktemp("onnx")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        load_embedder("test_vit", pretrained=False, preprocess=PREPARED, head="linear", dim=8).save(folder / "model")
    words = ["export-onnx", str(folder / "new" / "e.onnx"), "--model", str(folder / "model"), "--grid", "3", "--json"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(words) == 0
    assert [path.name for path in (folder / "new").iterdir()] == ["e.onnx"]
    (folder / "facts.json").write_text(printed.getvalue())
    return folder


def assert_as_torch(session, embedder):
    size = embedder.preprocess.size
    assert [(one.name, one.shape) for one in session.get_inputs()] == [("images", ["batch", 3, size, size])]
    assert [one.name for one in session.get_outputs()] == ["pooled", "dense"]
    for count in (1, 2, 7):
        images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            expected = embedder.eval()(images)
        pooled, dense = (torch.from_numpy(array) for array in session.run(None, {"images": images.numpy()}))
        torch.testing.assert_close(pooled, expected.pooled, atol=1e-5, rtol=0)
        torch.testing.assert_close(dense, expected.dense, atol=1e-5, rtol=0)
        found = Regions(dense, pooled, expected.grid)
        score = Matcher().match(found, found).score
        torch.testing.assert_close(score, Matcher().match(expected, expected).score, atol=1e-4, rtol=0)


def test_the_file_computes_what_torch_computes_for_any_number_of_images(place):
    embedder = load_embedder(place / "model", grid=3)
    assert_as_torch(opened(place / "new" / "e.onnx"), embedder)
    facts = json.loads((place / "facts.json").read_text())
    assert facts["difference"] < 1e-5
    assert facts["fingerprint"] == embedder.fingerprint()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_resnet", {"precision": "bfloat16", "preprocess": Preprocess(size=64, mode="square")}),
        ("mobilenetv3_small_050", {"grid": None, "pooled": "grid_mean"}),
        ("mobilenetv2_100", {}),
    ],
)
def test_other_networks_half_a_minute_each(tiny, tmp_path, name, options):
    embedder = tiny(name, **options)
    modes = [part.training for part in embedder.modules()]
    assert embedder.export_onnx(tmp_path / "e.onnx") < 1e-5
    assert [part.training for part in embedder.modules()] == modes
    assert_as_torch(opened(tmp_path / "e.onnx"), embedder)


@pytest.mark.parametrize("mode", ["crop", "square"])
def test_the_metadata_are_enough_to_prepare_an_image(images, mode):
    """A twin of the preprocessing from the texts of the file alone, in PIL and numpy."""
    embedder = Embedder(torch.nn.Conv2d(3, 5, 8, stride=8))
    embedder = embedder.with_settings(preprocess=dataclasses.replace(PREPARED, mode=mode))
    told = {name.removeprefix("diml."): text for name, text in description(embedder, 16).items()}
    assert (told["channel_order"], told["value_range"]) == ("RGB", "0 to 1 before mean and std")
    side, short, image = int(told["size"]), int(told["resize"]), images[0]
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[told["interpolation"]]
    if told["mode"] == "square":
        view = image.resize((side, side), resample)
    else:
        scale = short / min(image.size)
        view = image.resize((int(image.width * scale), int(image.height * scale)), resample)
        left, top = round((view.width - side) / 2), round((view.height - side) / 2)
        view = view.crop((left, top, left + side, top + side))
    values = np.asarray(view, np.float32) / 255
    values = (values - np.float32(json.loads(told["mean"]))) / np.float32(json.loads(told["std"]))
    np.testing.assert_allclose(values.transpose(2, 0, 1), embedder.preprocess(image).numpy(), atol=1e-6)


def test_a_reducing_gap_is_among_the_metadata_where_it_is_set():
    embedder = Embedder(torch.nn.Conv2d(3, 5, 8, stride=8)).with_settings(preprocess=PREPARED)
    plain = description(embedder, 16)
    gap = embedder.with_settings(preprocess=dataclasses.replace(PREPARED, reducing_gap=1.5))
    told = description(gap, 16)
    assert set(told) - set(plain) == {"diml.reducing_gap"}
    assert json.loads(told["diml.reducing_gap"]) == 1.5
    assert told["diml.preprocessing"].startswith("shrink by the largest whole factor that leaves 1.5 times the pixels")
    assert told["diml.preprocessing"].endswith(plain["diml.preprocessing"])


def test_the_file_has_these_metadata(place):
    embedder = load_embedder(place / "model", grid=3)
    told = opened(place / "new" / "e.onnx").get_modelmeta().custom_metadata_map
    assert description(embedder, 9).items() <= told.items()
    assert told["diml.fingerprint"] == embedder.fingerprint()
    assert json.loads(told["diml.model"]) == embedder.config.to_dict()
    assert json.loads(told["diml.grid"]) == [3, 3]
    assert told["diml.input"] == "images: float32 (batch, 3, 64, 64), normalised"
    assert told["diml.outputs"].startswith("pooled: float32 (batch, 8); dense: float32 (batch, 9, 8)")


def test_a_graph_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    """The file of another network is in the place of the exporter's."""
    import onnx

    embedder = Embedder(torch.nn.Conv2d(3, 5, 8, stride=8))

    def of_one_vector(value):
        vector = np.full((1, 16, 5), value, np.float32)
        nodes = [
            onnx.helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=1),
            onnx.helper.make_node("Flatten", ["mean"], ["flat"]),
            onnx.helper.make_node("MatMul", ["flat", "row"], ["pooled"]),
            onnx.helper.make_node("MatMul", ["flat", "rows"], ["wide"]),
            onnx.helper.make_node("Reshape", ["wide", "shape"], ["dense"]),
        ]
        values = {"row": vector[:, 0], "rows": vector.reshape(1, -1), "shape": np.array([-1, 16, 5])}
        kind = onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            nodes,
            "other",
            [onnx.helper.make_tensor_value_info("images", kind, ["batch", 3, 224, 224])],
            [onnx.helper.make_tensor_value_info(name, kind, None) for name in ("pooled", "dense")],
            [onnx.numpy_helper.from_array(array, name) for name, array in values.items()],
        )
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)

    (tmp_path / "e.onnx").write_text("before")
    for value in (1.0, float("nan")):
        monkeypatch.setattr("diml.models.onnx_file._exported", lambda *_, value=value: of_one_vector(value))
        with pytest.raises(ValueError, match=r"e\.onnx: the ONNX graph of .* differs from the network by .*, need at"):
            embedder.export_onnx(tmp_path / "e.onnx")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("e.onnx", "before")]


def test_a_network_that_cannot_be_exported_is_refused(tmp_path):
    class Deciding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 5, 8, stride=8)

        def forward(self, images):
            maps = self.layer(images)
            return maps if maps.sum() > 0 else -maps

    with pytest.raises(ValueError, match=r"backbone: .* cannot be exported to ONNX: \S"):
        Embedder(Deciding()).export_onnx(tmp_path / "e.onnx")
    assert not list(tmp_path.iterdir())


def test_names_places_and_packages_are_checked_first(tiny, tmp_path, monkeypatch):
    embedder = tiny()
    with pytest.raises(ValueError, match=r"e\.pb: need a file name that ends in \.onnx"):
        embedder.export_onnx(tmp_path / "e.pb")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(IsADirectoryError, match="name a file"):
        embedder.export_onnx(tmp_path / "folder.onnx")
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(ValueError, match=r"torch: need 2\.6 or newer for ONNX export, got 2\.5\.1"):
        embedder.export_onnx(tmp_path / "e.onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnx, onnxruntime, onnxscript not installed; pip install 'diml\[onnx\]'"):
        embedder.export_onnx(tmp_path / "e.onnx")
