import copy
import dataclasses

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from diml.data import ImageSet
from diml.data.images import BadImageError
from diml.data.transforms import Preprocess
from diml.matching import Matcher, Regions, match
from diml.models import Embedder
from diml.models.backbones import autocast_type
from diml.models.grids import resize_grid

NAMES = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"]


def images(count: int = 3, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def same(first: Regions, second: Regions, atol: float = 0.0) -> None:
    assert first.grid == second.grid
    torch.testing.assert_close(first.dense, second.dense, atol=atol, rtol=0)
    torch.testing.assert_close(first.pooled, second.pooled, atol=atol, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_regions_are_the_heads_of_pooled_and_cells(name, tiny):
    embedder = tiny(name, head="linear", dim=8, grid=None)
    features = embedder.backbone(images())
    regions = embedder(images())
    expected = Regions.normalized(
        embedder.head(features.maps.flatten(2).transpose(1, 2)), embedder.head(features.pooled), features.maps.shape[2:]
    )
    same(regions, expected, 1e-5)
    assert regions.dim == embedder.dim == 8


@pytest.mark.parametrize("grid", range(1, 15))
@torch.no_grad()
def test_every_grid_gives_its_regions(grid, tiny):
    regions = tiny(grid=grid)(images(2))
    assert (regions.num_regions, regions.grid) == (grid * grid, (grid, grid))


@torch.no_grad()
def test_the_dense_embedding_is_resized_after_the_head(tiny):
    embedder = tiny(head="linear", dim=8, grid=3)
    maps = embedder.backbone(images()).maps
    embedded = embedder.head(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    expected = resize_grid(embedded, 3).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embedder(images()).dense, torch.nn.functional.normalize(expected, dim=2))


@torch.no_grad()
def test_grid_mean_is_the_training_form(tiny):
    embedder = tiny(head="linear", dim=8, pooled="grid_mean")
    raw = embedder.head(embedder.backbone(images()).maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    same(embedder(images()), Regions.from_maps(resize_grid(raw, 4)), 1e-6)
    uneven = images(2, 96)  # a map of 3 x 3, which grid 4 does not weigh evenly
    assert not torch.allclose(tiny(pooled="grid_mean")(uneven).pooled, tiny()(uneven).pooled, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_alone_is_as_in_a_batch(name, tiny):
    embedder = tiny(name)
    together = embedder(images(4))
    same(Regions.cat([embedder(images(4)[index : index + 1]) for index in range(4)]), together, 1e-5)


@torch.no_grad()
def test_the_memory_layout_does_not_matter(tiny):
    embedder = tiny()
    other = tiny()
    other.backbone.net.to(memory_format=torch.contiguous_format)
    features = other.backbone(images().contiguous())
    torch.testing.assert_close(embedder.backbone(images()).maps, features.maps, atol=1e-5, rtol=1e-4)
    same(embedder(images()), embedder(images().contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize("pooled", ["backbone", "grid_mean"])
def test_gradients_reach_head_and_backbone(pooled, tiny):
    embedder = tiny(head="linear", dim=8, pooled=pooled).train()
    query = embedder(images(2))
    match(query, query[[1, 0]]).score.sum().backward()
    assert all(parameter.grad is not None for parameter in embedder.parameters())
    assert embedder.head.weight.grad.abs().sum() > 0
    assert next(embedder.backbone.parameters()).grad.abs().sum() > 0


def test_embed_is_forward_of_preprocessed_images(tiny, images):
    embedder = tiny()
    batch = torch.stack([embedder.preprocess(image) for image in images])
    with torch.no_grad():
        expected = embedder(batch)
    for size in (1, 3, 64):
        same(embedder.embed(images, batch_size=size), expected, 1e-5)
    assert not embedder.embed(images).dense.requires_grad


def test_every_kind_of_image(tiny, images, paths):
    embedder = tiny()
    expected = embedder.embed(images)
    same(embedder.embed(paths), expected)
    same(embedder.embed([str(path) for path in paths]), expected)
    same(embedder.embed(path.read_bytes() for path in paths), expected)


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "pil", "tensor", "array"])
def test_a_lone_image_is_a_list_of_one(kind, tiny, images, paths):
    import numpy as np

    array = np.asarray(images[0])
    forms = {
        "path": paths[0],
        "text": str(paths[0]),
        "bytes": paths[0].read_bytes(),
        "pil": images[0],
        "tensor": torch.from_numpy(array.copy()).permute(2, 0, 1),
        "array": array,
    }
    same(tiny().embed(forms[kind]), tiny().embed(images[:1]))


def test_a_tensor_of_many_images_is_many(tiny):
    batch = torch.randint(0, 256, (3, 3, 70, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert len(tiny().embed(batch)) == 3


class Pairs(Dataset):
    """(image, label) of images in memory, or images alone."""

    def __init__(self, images, *, labelled=True, transform=None):
        self.images = images
        self.labelled = labelled
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index] if self.transform is None else self.transform(self.images[index])
        return (image, f"label {index}", index) if self.labelled else image


@pytest.mark.parametrize("labelled", [True, False])
def test_a_map_style_dataset_gives_its_images(labelled, tiny, images, paths):
    embedder = tiny()
    expected = embedder.embed(images)
    same(embedder.embed(Pairs(images, labelled=labelled), batch_size=3), expected, 1e-5)
    same(embedder.embed(Pairs(paths, labelled=labelled), workers=1), expected, 1e-5)
    same(embedder.embed(Subset(Pairs(images, labelled=labelled), [4, 2])), embedder.embed([images[4], images[2]]), 1e-5)


def test_an_image_set_gives_its_images(tiny, images, paths):
    embedder = tiny()
    for source in (paths, images):
        image_set = ImageSet(source, ["a", "b", "c", "a", "b", "c", "a"])
        same(embedder.embed(image_set), embedder.embed(images))
    embedded = embedder.embed_checked(ImageSet([*paths[:2], "missing.png"], [0, 0, 1]), on_bad_image="skip")
    assert embedded.kept.tolist() == [0, 1]
    assert embedded.bad[0].path == "missing.png"


@pytest.mark.parametrize("labelled", [True, False])
def test_a_loader_of_preprocessed_tensors_is_embedded_batch_by_batch(labelled, tiny, images):
    embedder = tiny()
    expected = embedder.embed(images)
    loader = DataLoader(Pairs(images, labelled=labelled, transform=embedder.preprocess), batch_size=3)
    same(embedder.embed(loader), expected, 1e-5)
    embedded = embedder.embed_checked(loader)
    assert embedded.kept.tolist() == list(range(7))
    assert embedded.bad == ()
    same(embedded.regions, expected, 1e-5)
    backwards = DataLoader(loader.dataset, batch_size=2, sampler=[6, 5, 4], drop_last=True)
    same(embedder.embed(backwards), embedder.embed([images[6], images[5]]), 1e-5)
    stacked = torch.stack([embedder.preprocess(image) for image in images])
    same(embedder.embed(DataLoader(TensorDataset(stacked.double()), batch_size=4)), expected, 1e-5)


class Stream(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def test_a_loader_that_does_not_know_its_length(tiny, images, capsys):
    embedder = tiny()
    loader = DataLoader(Stream([embedder.preprocess(image) for image in images]), batch_size=4)
    same(embedder.embed(loader, progress=True), embedder.embed(images), 1e-5)
    done = []
    embedder.embed(loader, progress=done.append)
    assert done == [4, 3]


@pytest.mark.parametrize(
    ("dataset", "error", "said"),
    [
        (TensorDataset(torch.zeros(3, 3, 64, 64, dtype=torch.uint8)), TypeError, "preprocessed float tensors .*uint8"),
        (Stream([{"image": torch.zeros(3, 64, 64)}]), TypeError, "got dict; apply embedder.preprocess"),
        (Stream([]), ValueError, "a DataLoader without batches"),
        (TensorDataset(torch.zeros(3, 1, 64, 64)), ValueError, r"need shape \(B, 3, H, W\), got \(3, 1, 64, 64\)"),
    ],
)
def test_loaders_of_something_else_are_refused(dataset, error, said, tiny):
    with pytest.raises(error, match=said):
        tiny().embed(DataLoader(dataset, batch_size=3))


def test_datasets_of_something_else_are_refused(tiny, images):
    with pytest.raises(TypeError, match="map-style"):
        tiny().embed(Stream(images))
    with pytest.raises(TypeError, match="got dict in item 0"):
        tiny().embed(Pairs([{"image": image} for image in images]))
    normalised = Pairs(images, transform=tiny().preprocess)
    with pytest.raises(BadImageError, match=r"float values outside \[0, 1\]"):
        tiny().embed(normalised)


def test_no_images_are_refused(tiny):
    with pytest.raises(ValueError, match="images: need at least one image, got an empty list"):
        tiny().embed([])


def test_bad_images_fail_or_are_left_out_by_name(tiny, paths, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    mixed = [broken, *paths[:3], tmp_path / "missing.png", paths[3]]
    embedder = tiny()
    with pytest.raises(BadImageError, match=r"broken\.jpg"):
        embedder.embed(mixed)
    embedded = embedder.embed_checked(mixed, on_bad_image="skip", batch_size=1)
    assert embedded.kept.tolist() == [1, 2, 3, 5]
    assert [image.path for image in embedded.bad] == [str(broken), str(tmp_path / "missing.png")]
    assert embedded.bad[1].reason == "no such file"
    same(embedded.regions, embedder.embed([*paths[:4]], batch_size=1))


def test_nothing_but_bad_images_is_an_error(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"none of the 2 can be read \(.*a\.png: no such file"):
        tiny().embed_checked([tmp_path / "a.png", tmp_path / "b.png"], on_bad_image="skip")


def test_modes_are_restored_part_by_part(tiny, images):
    embedder = tiny().train()
    norms = [module for module in embedder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()
    before = {name: value.clone() for name, value in embedder.state_dict().items()}
    embedder.embed(images)
    assert embedder.training
    assert embedder.backbone.net.training
    assert norms
    assert not any(norm.training for norm in norms)
    assert all(torch.equal(value, before[name]) for name, value in embedder.state_dict().items())
    with pytest.raises(BadImageError):
        embedder.embed(["nowhere.png"])
    assert embedder.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_gives_float32_regions_close_to_exact_ones(precision, tiny, images):
    exact, low = tiny().embed(images), tiny(precision=precision).embed(images)
    assert low.dense.dtype == torch.float32
    assert (exact.dense * low.dense).sum(dim=2).min() > 0.99
    assert not torch.equal(exact.dense, low.dense)


def test_precision_follows_the_device(tiny):
    embedder = tiny()
    assert embedder.config.precision == "auto"
    assert embedder.autocast_type() is None
    assert autocast_type("auto", torch.device("mps")) == torch.float16
    assert autocast_type("auto", torch.device("cuda")) == torch.float16
    assert autocast_type("float32", torch.device("cuda")) is None


def test_an_overflow_in_low_precision_names_the_remedy(tiny, images):
    embedder = tiny(head="linear", dim=4, precision="float16")
    with torch.no_grad():
        embedder.head.weight.fill_(1e30)
    with pytest.raises(ValueError, match="finite") as caught:
        embedder.embed(images)
    assert "precision='float32'" in caught.value.__notes__[0]


def test_whitening_fits_on_images_or_on_their_regions(tiny, images):
    raw = tiny().embed(images)
    first, second = (tiny(head="whiten", dim=5, grid=3) for _ in range(2))
    with pytest.raises(ValueError, match="not fitted"):
        first.embed(images)
    first.fit_head(images, batch_size=2)
    second.fit_head(tiny(grid=3).embed(images))
    torch.testing.assert_close(first.head.weight, second.head.weight, atol=1e-3, rtol=1e-3)
    assert first.embed(images).dim == first.dim == 5
    singular = torch.linalg.svdvals(raw.dense.flatten(0, 1).double())[:5]
    for source in (
        Pairs(images),
        ImageSet(images, [0] * 7),
        DataLoader(Pairs(images, transform=first.preprocess), batch_size=4),
    ):
        again = tiny(head="whiten", dim=5, grid=3)
        again.fit_head(source)
        torch.testing.assert_close(again.head.weight, first.head.weight, atol=1e-3, rtol=1e-3)
    third = tiny(head="whiten", dim=5)
    third.fit_head(raw)
    projected = third.head(raw.dense.flatten(0, 1)).double()
    torch.testing.assert_close(torch.linalg.svdvals(projected), singular.sqrt(), atol=1e-4, rtol=1e-4)


def test_fitting_on_few_images_lowers_dim(tiny, images):
    embedder = tiny(head="whiten", dim=60, grid=2)
    with pytest.warns(UserWarning, match="fewer than dim=60"):
        embedder.fit_head(images[:2])
    assert embedder.dim == embedder.embed(images).dim == 8


@pytest.mark.parametrize("head", ["identity", "linear"])
def test_only_whitening_is_fitted(head, tiny, images):
    with pytest.raises(ValueError, match=f"only head 'whiten' is fitted, got '{head}'"):
        tiny(head=head).fit_head(images)


def test_the_fingerprint_names_settings_and_weights(tiny):
    embedder = tiny()
    first = embedder.fingerprint()
    assert len(first) == 64
    assert tiny().fingerprint() == first
    assert tiny(seed=1).fingerprint() != first
    assert tiny(grid=3).fingerprint() != first
    assert tiny(preprocess=Preprocess(size=64, resize=64)).fingerprint() != first
    with torch.no_grad():
        next(embedder.parameters())[0, 0, 0, 0] += 1e-3
    assert embedder.fingerprint() != first


def test_a_copy_embeds_alike(tiny, images):
    embedder = tiny("test_vit")
    same(copy.deepcopy(embedder).embed(images), embedder.embed(images))


def test_progress_is_shown_on_demand(tiny, images, capsys):
    tiny().embed(images)
    assert capsys.readouterr() == ("", "")
    tiny().embed(images, progress=True, batch_size=2)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "7/7" in shown.err


def test_double_precision_is_kept(tiny):
    regions = tiny().double()(images().double())
    assert regions.dense.dtype == torch.float64


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "need a float tensor .* got torch.uint8"),
        ("a.jpg", TypeError, "embedder.embed takes images"),
        (torch.zeros(3, 64, 64), ValueError, r"need shape \(B, 3, H, W\), got \(3, 64, 64\)"),
        (torch.zeros(1, 1, 64, 64), ValueError, "need shape"),
    ],
)
def test_images_of_another_kind_are_refused(given, error, said, tiny):
    with pytest.raises(error, match=said):
        tiny()(given)


def test_a_network_of_one_size_refuses_others(tiny):
    embedder = tiny("test_vit_relpos")
    with pytest.raises(ValueError, match="takes 64 x 64 pixels only, got 96 x 96"):
        embedder(images(1, 96))
    config = dataclasses.replace(embedder.config, preprocess=Preprocess(size=96, resize=96))
    with pytest.raises(ValueError, match="built for images of 64 pixels, got size 96"):
        Embedder(embedder.backbone, embedder.head, config)


def test_a_plain_transformer_takes_every_multiple_of_its_patches(tiny):
    embedder = tiny("test_vit", grid=None)
    assert embedder(images(2, 96)).grid == (6, 6)
    assert embedder(torch.randn(1, 3, 96, 64), masses=True).grid == (6, 4)
    larger = embedder.with_settings(preprocess=Preprocess(size=112, resize=112))
    assert torch.equal(larger(images(1, 112)).dense, embedder(images(1, 112)).dense)
    with pytest.raises(ValueError, match=r"patches of 16 x 16 pixels and needs a multiple.*100; use 96 or 112"):
        embedder.with_settings(preprocess=Preprocess(size=100, resize=100))
    with pytest.raises(ValueError, match=r"images: 'test_vit' cuts images into patches of 16.*got 100 x 64"):
        embedder(torch.randn(1, 3, 100, 64))
    with pytest.raises(ValueError, match=r"'test_vit' cuts images into patches of 16.*size 9; use 16"):
        tiny("test_vit", preprocess=Preprocess(size=9, resize=9))


def test_convolutions_take_any_size(tiny):
    assert tiny(grid=None)(torch.randn(1, 3, 96, 64)).grid == (3, 2)


def test_workers_give_the_same(tiny, paths):
    embedder = tiny()
    same(embedder.embed(paths, workers=1, batch_size=4), embedder.embed(paths, batch_size=4))


def test_image_objects_are_left_alone(tiny):
    image = Image.new("L", (70, 80), 99)
    tiny().embed(image)
    assert (image.mode, image.size) == ("L", (70, 80))


def test_the_matcher_is_the_embedders_and_no_part_of_the_fingerprint(tiny):
    matcher = Matcher(epsilon=0.02, structural_weight=0.5)
    embedder = tiny(matcher=matcher)
    assert embedder.matcher == embedder.config.matcher == matcher
    assert tiny().matcher == Matcher()
    assert embedder.fingerprint() == tiny().fingerprint()


def test_other_settings_share_the_weights(tiny, images):
    embedder = tiny()
    matcher = Matcher(epsilon=0.1)
    changed = embedder.with_settings(grid=2, matcher=matcher, pooled="grid_mean")
    assert changed.backbone is embedder.backbone
    assert (changed.grid, changed.matcher, changed.config.pooled) == (2, matcher, "grid_mean")
    assert (embedder.grid, embedder.matcher) == (4, Matcher())
    assert not changed.training
    same(changed.embed(images), tiny(grid=2, pooled="grid_mean").embed(images))
    with pytest.raises(TypeError, match="head: need one of grid, preprocess, pooled, precision, matcher"):
        embedder.with_settings(head="linear")
    with pytest.raises(ValueError, match="grid: need 1 to 14"):
        embedder.with_settings(grid=99)


def test_reprs_are_one_short_line(tiny, images):
    embedder = tiny(grid=3)
    assert repr(embedder) == "Embedder(test_resnet, head identity, grid 3, dim 96, on cpu)"
    assert repr(tiny(grid=None, head="linear", dim=8)) == "Embedder(test_resnet, head linear, own cells, dim 8, on cpu)"
    embedded = embedder.embed_checked([*images, "missing.png"], on_bad_image="skip")
    assert repr(embedded) == f"Embedded(7 images, 1 bad; {embedded.regions!r})"
    assert len(repr(embedded)) < 200
