import dataclasses
import json
import math

import pytest
import torch

from diml.checksums import sealed
from diml.data.transforms import Preprocess
from diml.matching import Matcher, Regions
from diml.models import Embedder, EmbedderConfig, folder, load_embedder


def equal(first: Regions, second: Regions) -> bool:
    return torch.equal(first.dense, second.dense) and torch.equal(first.pooled, second.pooled)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_resnet", {}),
        ("test_resnet", {"head": "linear", "dim": 8, "grid": 3, "pooled": "grid_mean", "precision": "bfloat16"}),
        ("test_resnet", {"head": "whiten", "dim": 6, "grid": None}),
        ("test_vit", {"token_pooling": "mean", "preprocess": Preprocess(size=48, resize=48, mode="square")}),
        ("googlenet", {"head": "linear", "dim": 4}),
        ("test_resnet", {"matcher": Matcher(weights="uniform", epsilon=0.02, tolerance=1e-5, max_iterations=50)}),
    ],
)
def test_a_saved_embedder_comes_back_bitwise_equal(name, options, tiny, images, tmp_path):
    embedder = tiny(name, **options)
    if options.get("head") == "whiten":
        embedder.fit_head(images)
    embedder.save(tmp_path / "saved")
    assert {file.name for file in (tmp_path / "saved").iterdir()} == {"embedder.json", "model.safetensors"}
    loaded = load_embedder(tmp_path / "saved")
    assert loaded.config == embedder.config
    assert loaded.matcher == embedder.matcher
    assert loaded.fingerprint() == embedder.fingerprint()
    assert not loaded.training
    assert equal(loaded.embed(images), embedder.embed(images))


def test_a_head_fitted_on_few_images_keeps_its_length(tiny, images, tmp_path):
    embedder = tiny(head="whiten", dim=60, grid=1)
    with pytest.warns(UserWarning, match="fewer"):
        embedder.fit_head(images)
    embedder.save(tmp_path / "saved")
    assert load_embedder(tmp_path / "saved").dim == 7


def test_settings_of_a_folder_can_be_overridden(tiny, images, tmp_path):
    tiny(grid=3).save(tmp_path / "saved")
    loaded = load_embedder(str(tmp_path / "saved"), grid=None, pooled="grid_mean", precision="float32")
    assert (loaded.grid, loaded.config.pooled, loaded.config.precision) == (None, "grid_mean", "float32")
    assert equal(loaded.embed(images), tiny(grid=None, pooled="grid_mean").embed(images))


@pytest.mark.parametrize(
    "option", [{"head": "linear"}, {"dim": 4}, {"architecture": "resnet50"}, {"token_pooling": "mean"}]
)
def test_options_of_no_use_with_a_folder_are_refused(option, tiny, tmp_path):
    tiny().save(tmp_path / "saved")
    with pytest.raises(ValueError, match=f"{next(iter(option))}: of no use with a saved embedder"):
        load_embedder(tmp_path / "saved", **option)


OTHER = {"epsilon": 0.02, "weights": "uniform", "tolerance": 1e-5, "max_iterations": 77}
MATCHERS = [
    Matcher(**OTHER, structural_weight=0.25, share=0.8),
    Matcher(**OTHER, structural_weight=math.inf, share="auto"),
    Matcher(**OTHER, structural_weight=0.0, matching="maxsim"),
]


def test_every_setting_differs_from_its_default_in_one_of_these():
    for field in dataclasses.fields(Matcher):
        assert any(getattr(matcher, field.name) != field.default for matcher in MATCHERS), field.name


@pytest.mark.parametrize("matcher", MATCHERS, ids=["share", "auto", "maxsim"])
def test_every_setting_of_the_matcher_is_saved_and_can_be_replaced(matcher, tiny, tmp_path):
    tiny(matcher=matcher).save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "embedder.json").read_text())
    assert saved["config"]["matcher"] == matcher.to_dict()
    assert load_embedder(tmp_path / "saved").matcher == matcher
    other = Matcher(epsilon=0.1)
    assert load_embedder(tmp_path / "saved", matcher=other).matcher == other
    loaded = load_embedder(tmp_path / "saved", grid=2)
    assert loaded.matcher == matcher
    loaded.save(tmp_path / "again")
    assert load_embedder(tmp_path / "again").matcher == matcher


def test_saving_again_replaces(tiny, tmp_path):
    (tmp_path / "saved").mkdir()
    tiny().save(tmp_path / "saved")
    tiny(seed=1).save(tmp_path / "saved")
    assert load_embedder(tmp_path / "saved").fingerprint() == tiny(seed=1).fingerprint()
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]


def test_a_foreign_folder_is_not_overwritten(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds no embedder"):
        tiny().save(tmp_path)
    with pytest.raises(FileExistsError):
        tiny().save(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_failure_while_saving_leaves_what_was_there(tiny, tmp_path, monkeypatch):
    tiny().save(tmp_path / "saved")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(folder, "save_file", fail)
    for name in ("saved", "new"):
        with pytest.raises(OSError, match="disk full"):
            tiny(seed=1).save(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]
    assert load_embedder(tmp_path / "saved").fingerprint() == tiny().fingerprint()


@pytest.fixture
def saved(tiny, tmp_path):
    tiny().save(tmp_path / "saved")
    return tmp_path / "saved"


def edit(saved, **changes):
    file = saved / "embedder.json"
    settings = json.loads(file.read_text())
    settings["config"] |= changes
    del settings["sha256"]
    file.write_text(json.dumps(sealed(settings)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gird": 4}, "unknown key 'gird'; did you mean 'grid'"),
        ({"head": "pca"}, "head: need one of identity, linear, whiten, got 'pca'"),
        ({"grid": 99}, "grid: need 1 to 14"),
        ({"grid": "4"}, "grid: need an integer"),
        ({"preprocess": {"sise": 64}}, "unknown key 'sise'"),
        ({"preprocess": 3}, "not the settings of an embedder"),
        ({"matcher": {"epsilon": -1}}, "epsilon"),
        ({"matcher": {"epsilom": 0.1}}, "unknown setting 'epsilom'; did you mean epsilon"),
        ({"matcher": 3}, "not the settings of an embedder"),
        ({"layout": "NCHW"}, "layout: only for a module of your own, got backbone 'test_resnet'"),
        ({"backbone": "test_resnett"}, "did you mean 'test_resnet'"),
        ({"backbone": "test_efficientnet"}, r"need dim 256 for this backbone|do not fit: .* missing"),
        ({"dim": 3}, "need dim"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, said, saved):
    edit(saved, **changes)
    with pytest.raises(ValueError, match=said):
        load_embedder(saved)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": 2, "config": {}, "weights_sha256": ""}', "\x00", '{"format": 1, "config": {}}'],
)
def test_damaged_settings_are_refused(text, saved):
    (saved / "embedder.json").write_text(text)
    with pytest.raises(ValueError, match=r"embedder\.json: not the settings of an embedder"):
        load_embedder(saved)


def test_damaged_weights_are_refused(saved):
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-5], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
            load_embedder(saved)


@pytest.mark.parametrize("name", ["embedder.json", "model.safetensors"])
def test_a_missing_file_is_named(name, saved):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"it has no {name}"):
        load_embedder(saved)


def test_a_missing_folder_is_named(tmp_path):
    for path in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "runs/best.pth"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            load_embedder(path)


def test_a_models_name_is_the_model_whatever_folders_there_are(tiny, tmp_path, monkeypatch):
    tiny(head="linear", dim=4).save(tmp_path / "test_resnet")
    monkeypatch.chdir(tmp_path)
    assert load_embedder("test_resnet", pretrained=False).config.head == "identity"
    assert load_embedder("./test_resnet").config.head == "linear"


def test_defaults_of_names(tiny):
    embedder = load_embedder("test_resnet", pretrained=False, head="linear")
    assert (embedder.grid, embedder.dim, embedder.preprocess.size, embedder.preprocess.resize) == (4, 128, 224, 256)
    assert not embedder.training
    with pytest.raises(ValueError, match="architecture: of no use with a backbone's name"):
        load_embedder("test_resnet", architecture="resnet50")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"grid": 15}, "grid: need 1 to 14"),
        ({"head": "svd"}, "head: need one of"),
        ({"pooled": "max"}, "pooled: need one of backbone, grid_mean, got 'max'"),
        ({"precision": "int8"}, "precision: need one of auto, float32"),
        ({"token_pooling": "max"}, "token_pooling: need one of"),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_a_mistake_in_the_settings_is_found_before_any_download(option, said):
    with pytest.raises(ValueError, match=said):
        load_embedder("resnet50", **option)


def test_a_configuration_survives_plain_values():
    config = EmbedderConfig(
        backbone="resnet50", preprocess=Preprocess(size=32, resize=40), dim=8, head="linear", grid=None
    )
    assert EmbedderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.matcher == Matcher()
    with pytest.raises(ValueError, match="config: missing backbone, dim"):
        EmbedderConfig.from_dict({"preprocess": {}})


def test_weights_of_another_network_are_refused(tiny, tmp_path):
    embedder = tiny(head="linear", dim=4)
    lying = dataclasses.replace(embedder.config, backbone="test_efficientnet")
    Embedder(embedder.backbone, embedder.head, lying).save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"do not fit: .*missing.*unexpected.*is it another architecture"):
        load_embedder(tmp_path / "saved")
