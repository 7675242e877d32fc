"""A training image is a function of its seed, equal to torchvision's, and the same in any process."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from diml.data import BadImageError, Preprocess, load_image
from diml.data.augment import Augment
from diml.data.loading import TrainingLoader, item_seed

SMALL = Preprocess(size=16, resize=18)


def training_batches(images, plan, augment: Augment, *, workers: int = 0, on_bad_image: str = "fail", **numbers):
    """The batches of one epoch of a loader of its own."""
    return TrainingLoader(images, augment, workers=workers, on_bad_image=on_bad_image).epoch(plan, **numbers)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def torchvision_twin(augment: Augment, image: Image.Image, seed: int) -> Image.Image:
    kind = InterpolationMode(augment.preprocess.interpolation)
    steps: list = [
        v2.RandomResizedCrop(augment.preprocess.size, augment.scale, augment.ratio, kind),
        v2.RandomHorizontalFlip(augment.flip),
    ]
    if any(augment.jitter):
        steps.append(v2.ColorJitter(*augment.jitter))
    if augment.grayscale:
        steps.append(v2.RandomGrayscale(augment.grayscale))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return v2.Compose(steps)(image)


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    seed=st.integers(0, 2**63 - 1),
    scale=st.sampled_from([(0.08, 1.0), (0.5, 0.9), (1.0, 1.0)]),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    jitter=st.sampled_from([(0, 0, 0, 0), (0.2, 0.2, 0.2, 0.2), (0, 1.5, 0, 0), (0, 0, 0, 0.5)]),
    grayscale=st.sampled_from([0.0, 0.5]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_bit_identical_to_torchvision(width, height, seed, scale, flip, jitter, grayscale, interpolation) -> None:
    preprocess = Preprocess(size=16, resize=18, interpolation=interpolation)
    augment = Augment(preprocess=preprocess, scale=scale, flip=flip, jitter=jitter, grayscale=grayscale)
    image = noise(width, height)
    wanted = torchvision_twin(augment, image, seed)
    assert np.array_equal(np.asarray(augment.view(image, seed)), np.asarray(wanted))
    assert torch.equal(augment(image, seed), preprocess.normalize(wanted))


def test_the_smallest_crop_of_a_decoded_file_still_has_the_gap() -> None:
    """Crops are reduced as views are; only the smallest one of a square image says how small a file may be decoded."""
    assert Augment(preprocess=SMALL).at_least is None
    gap = replace(SMALL, reducing_gap=2)
    augment = Augment(preprocess=gap, scale=(0.25, 1), ratio=(1, 1), flip=0)
    assert augment.at_least == 2 * 16 / 0.5
    assert Augment(preprocess=gap, scale=(0.25, 1)).at_least == math.ceil(64 / math.sqrt(0.75))
    image = noise(500, 375).resize((1000, 750))
    for seed in range(5):
        whole = Augment(preprocess=SMALL, scale=(0.25, 1), ratio=(1, 1), flip=0).view(image, seed)
        reduced = np.asarray(augment.view(image, seed), dtype=float)
        assert 0 < np.abs(reduced - np.asarray(whole, dtype=float)).mean() < 3


def test_files_are_decoded_for_the_crops(tmp_path: Path) -> None:
    file = tmp_path / "large.jpg"
    noise(640, 512).resize((1280, 1024)).save(file)
    augment = Augment(preprocess=replace(SMALL, reducing_gap=2), scale=(0.25, 1), ratio=(1, 1))
    (batch,) = training_batches([file], [[0]], augment, seed=3, epoch=1)
    decoded = load_image(file, at_least=augment.at_least)
    assert decoded.size == (160, 128)
    assert torch.equal(batch.images[0], augment(decoded, item_seed(3, 1, 0)))


def test_the_authors_recipe_is_the_default() -> None:
    values = Augment()(noise(500, 375), seed=1)
    assert values.shape == (3, 224, 224)
    assert values.dtype == torch.float32
    assert Augment().jitter == (0, 0, 0, 0)


def test_a_seed_determines_the_image_and_the_global_stream_is_left_alone() -> None:
    augment, image = Augment(preprocess=SMALL, jitter=(0.2, 0.2, 0.2, 0.1), grayscale=0.5), noise(40, 30)
    before = torch.get_rng_state()
    first = augment(image, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first, augment(image, seed=5))
    assert len({augment(image, seed).numpy().tobytes() for seed in range(20)}) == 20


def test_half_of_the_images_are_mirrored() -> None:
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))).convert("RGB")
    augment = Augment(preprocess=SMALL, scale=(1, 1), ratio=(1, 1))
    falling = [np.asarray(augment.view(ramp, item_seed(0, 0, i)))[0, [0, -1], 0] for i in range(400)]
    assert 150 < sum(int(left) > int(right) for left, right in falling) < 250


def test_seeds_differ_between_runs_epochs_and_images() -> None:
    seeds = {item_seed(*key) for key in itertools.product(range(5), range(10), range(40))}
    assert len(seeds) == 5 * 10 * 40
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_settings_go_to_plain_values_and_back() -> None:
    augment = Augment(preprocess=SMALL, scale=(0.2, 0.9), jitter=(0.1, 0, 0, 0))
    plain = augment.to_dict()
    assert plain["preprocess"] == SMALL.to_dict()
    assert plain["scale"] == [0.2, 0.9]
    assert plain["preprocess"]["size"] == 16
    assert Augment.from_dict(plain) == augment
    assert Augment.from_dict({}) == Augment()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scales": (0.1, 1)}, "did you mean 'scale'"),
        ({"scale": (0, 1)}, "scale: need"),
        ({"scale": (0.5, 1.1)}, "scale: need"),
        ({"ratio": (2, 1)}, "ratio: need"),
        ({"ratio": (1,)}, "ratio: need 2"),
        ({"flip": 1.2}, "flip: need a probability"),
        ({"grayscale": -1}, "grayscale: need a probability"),
        ({"jitter": (0, 0, 0, 0.6)}, "jitter: need"),
        ({"jitter": (0.1, 0.1)}, "jitter: need 4"),
        ({"preprocess": {"size": 0}}, "size"),
    ],
)
def test_wrong_settings_are_named(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        Augment.from_dict(wrong)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    made = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        noise(30 + number, 24, seed=number).save(path)
        made.append(path)
    return made


PLAN = [[3, 1, 7], [0, 3, 5], [6, 2, 4]]
AUGMENT = Augment(preprocess=SMALL)


def test_images_belong_to_their_indices_in_the_order_of_the_plan(paths: list[Path]) -> None:
    batches = list(training_batches(paths, PLAN, AUGMENT, seed=4, epoch=2))
    assert [batch.indices.tolist() for batch in batches] == PLAN
    for batch in batches:
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            assert torch.equal(image, AUGMENT(load_image(paths[index]), item_seed(4, 2, index)))


def test_workers_change_nothing_and_live_on(paths: list[Path]) -> None:
    with TrainingLoader(paths, AUGMENT, workers=2) as loader:
        for epoch in range(2):
            wanted = training_batches(paths, PLAN, AUGMENT, seed=1, epoch=epoch)
            for got, alone in zip(loader.epoch(PLAN, seed=1, epoch=epoch), wanted, strict=True):
                assert torch.equal(got.images, alone.images)
                assert torch.equal(got.indices, alone.indices)
        given_up = loader.epoch(PLAN * 4, seed=1, epoch=2)
        next(given_up)
        resumed = list(loader.epoch(PLAN[1:], seed=1, epoch=1))
        whole = list(training_batches(paths, PLAN, AUGMENT, seed=1, epoch=1))
        assert [batch.indices.tolist() for batch in resumed] == PLAN[1:]
        assert all(torch.equal(a.images, b.images) for a, b in zip(resumed, whole[1:], strict=True))
        paths[3].write_bytes(b"")
        failing = loader.epoch([[1], [3], [1]])
        next(failing)
        with pytest.raises(BadImageError) as caught:
            next(failing)
        assert type(caught.value) is BadImageError
        assert caught.value.path == str(paths[3])


def test_epochs_differ_and_may_be_interleaved(paths: list[Path]) -> None:
    loader = TrainingLoader(paths, AUGMENT)
    first, second = loader.epoch(PLAN, epoch=0), loader.epoch(PLAN, epoch=1)
    for a, b, wanted in zip(first, second, training_batches(paths, PLAN, AUGMENT, epoch=1), strict=True):
        assert not torch.equal(a.images, b.images)
        assert torch.equal(b.images, wanted.images)


def test_bad_images_are_reported_or_fail(paths: list[Path]) -> None:
    paths[3].write_bytes(b"no image")
    paths[5] = paths[5].with_name("nowhere.png")
    first, second, third, fourth = training_batches(paths, [*PLAN, [3, 5]], AUGMENT, on_bad_image="skip")
    assert first.indices.tolist() == [1, 7]
    assert second.indices.tolist() == [0]
    assert [Path(bad.path) for bad in second.bad] == [paths[3], paths[5]]
    assert second.bad[1].reason == "no such file"
    assert not third.bad
    assert fourth.images.shape == (0, 3, 16, 16)
    with pytest.raises(BadImageError, match=r"nowhere\.png: no such file"):
        list(training_batches(paths, [[2, 5]], AUGMENT))


def test_the_global_random_stream_is_left_alone(paths: list[Path]) -> None:
    before = torch.get_rng_state()
    list(training_batches(paths, PLAN, AUGMENT))
    assert torch.equal(before, torch.get_rng_state())


def test_images_in_memory_need_no_workers() -> None:
    images = [noise(20, 20), torch.zeros(3, 9, 9), np.zeros((9, 9))]
    (batch,) = training_batches(images, [[2, 0, 1]], AUGMENT, workers=2)
    assert batch.indices.tolist() == [2, 0, 1]


def test_no_batches() -> None:
    assert list(training_batches([noise(9, 9)], [], AUGMENT)) == []


def test_wrong_arguments_are_named_when_called(paths: list[Path]) -> None:
    with pytest.raises(ValueError, match="workers"):
        TrainingLoader(paths, AUGMENT, workers=-1)
    with pytest.raises(ValueError, match="on_bad_image"):
        TrainingLoader(paths, AUGMENT, on_bad_image="ignore")
    loader = TrainingLoader(paths, AUGMENT)
    with pytest.raises(ValueError, match=r"indices 0\.\.7, got 8"):
        loader.epoch([[0, 8]])
    with pytest.raises(ValueError, match="seed"):
        loader.epoch(PLAN, seed=-1)
    loader.close()
    with pytest.raises(ValueError, match="closed"):
        loader.epoch(PLAN)
