"""Batches contain every image once and in order, with and without workers, and bad ones are named."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diml.data import BadImageError, Preprocess, load_image
from diml.data.loading import _decode, iterate_batches
from diml.data.pixel_depth import Notice

PREPROCESS = Preprocess(size=8, resize=8)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    made = []
    for number in range(7):
        path = tmp_path / f"{number}.png"
        values = np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(values).save(path)
        made.append(path)
    return made


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_once_in_order(paths: list[Path], workers: int) -> None:
    batches = list(iterate_batches(paths, PREPROCESS, batch_size=3, workers=workers))
    assert [len(batch.indices) for batch in batches] == [3, 3, 1]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(7))
    wanted = torch.stack([PREPROCESS(load_image(path)) for path in paths])
    assert torch.equal(torch.cat([batch.images for batch in batches]), wanted)
    assert batches[0].indices.dtype == torch.int64
    assert not any(batch.bad for batch in batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_large_files_are_decoded_as_the_preprocessing_says(tmp_path: Path, workers: int) -> None:
    preprocess = Preprocess(size=8, resize=8, reducing_gap=2)
    paths = [tmp_path / f"{number}.jpg" for number in range(3)]
    for number, path in enumerate(paths):
        values = np.random.default_rng(number).integers(0, 256, (75, 90, 3), dtype=np.uint8)
        Image.fromarray(values).save(path)
    (batch,) = iterate_batches(paths, preprocess, workers=workers)
    decoded = [load_image(path, at_least=preprocess.at_least) for path in paths]
    assert {image.size for image in decoded} == {(23, 19)}
    assert torch.equal(batch.images, torch.stack([preprocess(image) for image in decoded]))
    (own,) = iterate_batches(paths, lambda image: preprocess(image))  # a function says nothing of files
    assert torch.equal(own.images, torch.stack([preprocess(load_image(path)) for path in paths]))


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_reports_bad_images_and_goes_on(paths: list[Path], workers: int) -> None:
    paths[1].write_bytes(b"no image")
    paths[4].write_bytes(b"")
    paths[5] = paths[5].with_name("nowhere.png")
    paths[6].write_bytes(paths[6].read_bytes()[:100])
    batches = list(iterate_batches(paths, PREPROCESS, batch_size=4, workers=workers, on_bad_image="skip"))
    assert batches[0].indices.tolist() == [0, 2, 3]
    assert [Path(bad.path) for bad in batches[0].bad] == [paths[1]]
    assert batches[1].images.shape == (0, 3, 8, 8)
    assert batches[1].indices.shape == (0,)
    assert [Path(bad.path) for bad in batches[1].bad] == paths[4:]
    assert [bad.reason for bad in batches[1].bad][:2] == ["is empty (0 bytes)", "no such file"]


@pytest.mark.parametrize("workers", [0, 2])
def test_fail_raises_our_error_in_the_caller(paths: list[Path], workers: int) -> None:
    paths[4].write_bytes(b"")
    batches = iterate_batches(paths, PREPROCESS, batch_size=3, workers=workers)
    assert len(next(batches).indices) == 3
    with pytest.raises(BadImageError) as caught:
        next(batches)
    assert type(caught.value) is BadImageError
    assert str(caught.value) == f"{paths[4]}: is empty (0 bytes)"


def test_a_missing_file_is_a_bad_image_too(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="no such file"):
        list(iterate_batches([tmp_path / "nowhere.png"], PREPROCESS))


def test_images_in_memory_are_named_by_their_place() -> None:
    images = [Image.new("RGB", (9, 9)), torch.zeros(3, 9, 9), torch.zeros(2, 9, 9), np.zeros((9, 9))]
    (batch,) = iterate_batches(images, PREPROCESS, workers=2, on_bad_image="skip")
    assert batch.indices.tolist() == [0, 1, 3]
    assert [bad.path for bad in batch.bad] == ["<image 2>"]


def test_the_global_random_stream_is_left_alone(paths: list[Path]) -> None:
    before = torch.get_rng_state()
    list(iterate_batches(paths, PREPROCESS))
    assert torch.equal(before, torch.get_rng_state())


def test_a_fault_of_the_preprocessing_is_not_taken_for_a_bad_image(paths: list[Path]) -> None:
    def broken(image: Image.Image) -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(iterate_batches(paths, broken, on_bad_image="skip"))


def test_no_images_no_batches() -> None:
    assert list(iterate_batches([], PREPROCESS, workers=2)) == []


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"workers": -1}, {"on_bad_image": "ignore"}])
def test_wrong_arguments_are_named_when_called(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        iterate_batches([], PREPROCESS, **wrong)


def test_threads_decode_the_next_batch_only_and_end_with_the_caller(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[tuple[int, str]] = []

    def recorded(
        images: list[Path], index: int, prepare: Preprocess, at_least: int | None
    ) -> tuple[int, torch.Tensor, list[Notice]]:
        decoded.append((index, threading.current_thread().name))
        return _decode(images, index, prepare, at_least)

    monkeypatch.setattr("diml.data.loading._decode", recorded)
    batches = iterate_batches(paths, PREPROCESS, batch_size=2)
    assert next(batches).indices.tolist() == [0, 1]
    batches.close()
    assert {index for index, _ in decoded} <= set(range(4))
    assert all(name.startswith("diml-decoding") for _, name in decoded)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("diml-decoding")]


def test_functions_of_the_user_are_called_in_one_thread(paths: list[Path]) -> None:
    """A plain function may not bear more than one."""
    found: set[threading.Thread] = set()

    def prepare(image: Image.Image) -> torch.Tensor:
        found.add(threading.current_thread())
        return PREPROCESS(image)

    assert sum(len(batch.indices) for batch in iterate_batches(paths, prepare, batch_size=3)) == 7
    assert found == {threading.current_thread()}
