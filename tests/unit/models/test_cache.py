import os
import shutil

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from diml.data import ImageSet
from diml.data.images import BadImageError
from diml.matching import Matcher
from diml.models.cache import embed_cached
from diml.models.embedder import Embedded


def equal(first: Embedded, second: Embedded) -> bool:
    regions = (first.regions, second.regions)
    return (
        all(torch.equal(getattr(regions[0], part), getattr(regions[1], part)) for part in ("dense", "pooled"))
        and regions[0].grid == regions[1].grid
        and torch.equal(first.kept, second.kept)
    )


@pytest.fixture
def embedder(tiny, monkeypatch):
    """An embedder that counts how often it really embeds."""
    made = tiny()
    calls = []
    original = made.embed_checked
    monkeypatch.setattr(made, "embed_checked", lambda *args, **options: calls.append(1) or original(*args, **options))
    made.calls = calls
    return made


def test_a_second_call_reads_the_cache(embedder, paths, tmp_path):
    first = embed_cached(embedder, paths, cache_dir=tmp_path / "cache")
    second = embed_cached(embedder, [str(path) for path in paths], cache_dir=str(tmp_path / "cache"))
    assert len(embedder.calls) == 1
    assert equal(first, second)
    assert equal(first, embedder.embed_checked(paths))
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_moved_files_of_the_same_content_are_found(embedder, paths, tmp_path):
    first = embed_cached(embedder, paths, cache_dir=tmp_path / "cache")
    moved = [shutil.move(path, tmp_path / f"moved{index}.png") for index, path in enumerate(paths)]
    assert equal(embed_cached(embedder, moved, cache_dir=tmp_path / "cache"), first)
    assert len(embedder.calls) == 1


def test_anything_that_matters_makes_it_anew(embedder, tiny, paths, tmp_path):
    cache = tmp_path / "cache"
    embed_cached(embedder, paths, cache_dir=cache)
    embed_cached(embedder, paths[::-1], cache_dir=cache)
    embed_cached(embedder, paths[:-1], cache_dir=cache)
    embed_cached(tiny(seed=1), paths, cache_dir=cache)
    embed_cached(tiny(grid=2), paths, cache_dir=cache)
    embed_cached(tiny(precision="bfloat16"), paths, cache_dir=cache)
    shutil.copy(paths[0], paths[1])
    embed_cached(embedder, paths, cache_dir=cache)
    assert len(embedder.calls) == 4
    assert len(list(cache.iterdir())) == 7


def test_bad_images_are_remembered_under_their_present_names(embedder, paths, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    mixed = [paths[0], broken, paths[1], tmp_path / "missing.png"]
    options = {"cache_dir": tmp_path / "cache", "on_bad_image": "skip"}
    first = embed_cached(embedder, mixed, **options)
    assert first.kept.tolist() == [0, 2]
    mixed[1] = broken.rename(tmp_path / "renamed.png")
    second = embed_cached(embedder, mixed, **options)
    assert len(embedder.calls) == 1
    assert equal(first, second)
    assert [image.path for image in second.bad] == [os.fspath(mixed[1]), os.fspath(mixed[3])]
    assert [image.reason for image in second.bad] == [image.reason for image in first.bad]
    with pytest.raises(BadImageError, match=r"renamed\.png"):
        embed_cached(embedder, mixed, cache_dir=tmp_path / "cache")


def test_a_failure_is_not_kept(embedder, paths, tmp_path):
    with pytest.raises(BadImageError):
        embed_cached(embedder, [*paths, tmp_path / "missing.png"], cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("damage", ["short", "text", "empty", "foreign", "one bit of a vector", "a reason", "a number"])
def test_a_damaged_cache_is_made_anew_with_a_warning(damage, embedder, paths, tmp_path):
    from safetensors.torch import save_file

    first = embed_cached(embedder, paths, cache_dir=tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    if damage == "foreign":
        save_file({"dense": torch.zeros(1)}, file)
    else:
        content = file.read_bytes()
        bit = bytes([content[-9] ^ 1])
        damaged = {
            "short": content[:-9],
            "text": b"no safetensors",
            "empty": b"",
            "one bit of a vector": content[:-9] + bit + content[-8:],
            "a reason": content.replace(rb"\"reasons\": []", rb"\"reasons\":[ ]").replace(
                rb"\"grid\": [4", rb"\"grid\": [2"
            ),
            "a number": content.replace(b'"F32"', b'"I32"'),
        }
        assert damaged[damage] != content
        file.write_bytes(damaged[damage])
    with pytest.warns(UserWarning, match=rf"{file.name} is damaged .* computed again"):
        second = embed_cached(embedder, paths, cache_dir=tmp_path / "cache")
    assert equal(first, second)
    assert equal(embed_cached(embedder, paths, cache_dir=tmp_path / "cache"), first)
    assert len(embedder.calls) == 2


def test_images_in_memory_are_found_by_their_pixels(embedder, images, tmp_path):
    arrays = [np.asarray(image) for image in images]
    first = embed_cached(embedder, images, cache_dir=tmp_path / "cache")
    assert equal(embed_cached(embedder, [image.copy() for image in images], cache_dir=tmp_path / "cache"), first)
    assert equal(embed_cached(embedder, arrays, cache_dir=tmp_path / "cache"), first)
    assert len(embedder.calls) == 1
    changed = arrays[0].copy()
    changed[0, 0, 0] ^= 255
    embed_cached(embedder, [changed, *arrays[1:]], cache_dir=tmp_path / "cache")
    assert len(embedder.calls) == 2


def test_bytes_of_a_file_are_the_file(embedder, paths, tmp_path):
    first = embed_cached(embedder, paths, cache_dir=tmp_path / "cache")
    assert equal(embed_cached(embedder, [path.read_bytes() for path in paths], cache_dir=tmp_path / "cache"), first)
    assert len(embedder.calls) == 1


def test_an_image_set_is_its_images(embedder, paths, tmp_path):
    first = embed_cached(embedder, paths, cache_dir=tmp_path / "cache")
    images = ImageSet(paths, list(range(len(paths))))
    assert equal(embed_cached(embedder, images, cache_dir=tmp_path / "cache"), first)
    assert len(embedder.calls) == 1


def test_the_matcher_is_no_part_of_the_key(embedder, tiny, paths, tmp_path):
    first = embed_cached(embedder, paths, cache_dir=tmp_path / "cache")
    other = tiny(matcher=Matcher(epsilon=0.5))
    assert equal(embed_cached(other, paths, cache_dir=tmp_path / "cache"), first)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_no_images_are_refused(embedder, tmp_path):
    with pytest.raises(ValueError, match="at least one image"):
        embed_cached(embedder, [], cache_dir=tmp_path)


def test_a_folder_that_cannot_be_written_to_is_gone_on_without(embedder, paths, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "below", tmp_path / "file"):
        with pytest.warns(UserWarning, match=r"cannot be cached in .*file.*DIML_CACHE"):
            found = embed_cached(embedder, paths, cache_dir=folder)
        assert equal(found, embedder.embed_checked(paths))


def test_a_full_disk_is_gone_on_without(embedder, paths, tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("diml.models.cache.save_file", full)
    with pytest.warns(UserWarning, match="No space left"):
        found = embed_cached(embedder, paths, cache_dir=tmp_path / "cache")
    assert equal(found, embedder.embed_checked(paths))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_pipe_among_the_images_does_not_hang(embedder, paths, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    found = embed_cached(embedder, [*paths, tmp_path / "pipe.png"], cache_dir=tmp_path / "cache", on_bad_image="skip")
    assert [image.path for image in found.bad] == [str(tmp_path / "pipe.png")]


def test_masses_of_a_transformer_are_kept_and_the_reason_where_there_are_none(tiny, paths, tmp_path):
    for name in ("test_vit", "test_resnet"):
        made = embed_cached(tiny(name), paths, cache_dir=tmp_path / name).regions
        again = embed_cached(tiny(name), paths, cache_dir=tmp_path / name).regions
        assert again.massless == made.massless
        assert (again.masses is None) == (name == "test_resnet")
        if again.masses is not None:
            assert torch.equal(again.masses, made.masses)
    assert "no plain vision transformer" in made.massless
    other = embed_cached(tiny("test_vit", rollout_blocks=1), paths, cache_dir=tmp_path / "test_vit").regions
    assert not torch.equal(
        other.masses, embed_cached(tiny("test_vit"), paths, cache_dir=tmp_path / "test_vit").regions.masses
    )
