"""Assets are unpacked atomically, from a wheel of known hash, and errors name the remedy."""

import dataclasses
import hashlib
import io
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from types import MappingProxyType

import pytest

from diml import assets
from diml.assets import ASSETS, Asset, AssetError, asset_status, cache_folder, fetch_asset


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("DIML_CACHE", str(folder))
    return folder


def sha256_of(contents: dict[str, bytes]) -> str:
    """What `Asset.content_sha256` is of files, name -> content."""
    lines = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items())
    return hashlib.sha256(lines.encode()).hexdigest()


@pytest.fixture
def toy(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """An asset of two files in a wheel that pip finds on this disk, so that pip itself runs but no network."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "diml_toy_asset-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy/faces/s1/1.pgm", b"one")
        archive.writestr("toy/faces/s2/1.pgm", b"three")
        archive.writestr("toy/faces/s2/readme.txt", b"not wanted")
        archive.writestr("toy/faces_of_others/1.pgm", b"not wanted")
        archive.writestr(
            "diml_toy_asset-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: diml-toy-asset\nVersion: 1.0\n"
        )
        archive.writestr(
            "diml_toy_asset-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("diml_toy_asset-1.0.dist-info/RECORD", "")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    contents = {"faces/s1/1.pgm": b"one", "faces/s2/1.pgm": b"three"}
    asset = Asset(
        name="toy",
        description="Two files",
        package="diml-toy-asset",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        content_sha256=sha256_of(contents),
        member="toy/faces",
        suffix=".pgm",
        files=2,
        size=8,
        licence="MIT",
        credit="Nobody",
    )
    register(asset, monkeypatch)
    return asset


@pytest.fixture
def packed(toy: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """An asset of two files in a tarball of npm, and a stand-in for npm that has it."""
    tarball, tools = tmp_path / "toy-1.0.tgz", tmp_path / "tools"
    with tarfile.open(tarball, "w:gz") as archive:
        for name, content in (
            ("faces/1f.pgm", b"one"),
            ("faces/2f-fe0f.pgm", b"three"),
            ("faces/1f-2f.pgm", b"not wanted"),
            ("faces/1f.txt", b"not wanted"),
            ("faces.pgm", b"not wanted"),
        ):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    tools.mkdir()
    npm = tools / "npm"
    npm.write_text(
        f"""#!{sys.executable}
import shutil, sys
if sys.argv[-1] != "@toys/toy@1.0":
    sys.exit("npm error 404")
shutil.copy({str(tarball)!r}, sys.argv[sys.argv.index("--pack-destination") + 1])
"""
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    contents = {"faces/1f.pgm": b"one", "faces/2f-fe0f.pgm": b"three"}
    asset = dataclasses.replace(
        toy,
        manager="npm",
        package="@toys/toy",
        sha256=hashlib.sha256(tarball.read_bytes()).hexdigest(),
        content_sha256=sha256_of(contents),
        member="package/faces",
        stems="[0-9a-f]+(-fe0f)?",
    )
    register(asset, monkeypatch)
    return asset


def register(asset: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "ASSETS", MappingProxyType({asset.name: asset}))


def test_unpacks_the_wanted_members_and_the_credit(toy: Asset, cache: Path) -> None:
    assert not asset_status()[0].cached
    folder = fetch_asset("toy")
    assert folder.is_relative_to(cache)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files == {"s1/1.pgm": b"one", "s2/1.pgm": b"three"}
    assert "Nobody" in (folder.parent / "CREDIT.txt").read_text()
    assert [(status.asset, status.path, status.cached) for status in asset_status()] == [(toy, folder, True)]
    assert [path.name for path in (cache / "assets").iterdir()] == ["toy-1.0"]


def test_the_second_time_nothing_is_fetched(toy: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch_asset("toy")
    monkeypatch.setattr(subprocess, "run", None)
    assert fetch_asset("toy") == folder


def test_a_damaged_copy_is_fetched_again(toy: Asset) -> None:
    folder = fetch_asset("toy")
    file = folder / "s2" / "1.pgm"
    for content in (b"threE", b"threeee", None, b""):  # the first of the right size
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        assert not asset_status()[0].cached
        file.touch()
    (folder / "s2" / "2.pgm").write_bytes(b"three")
    file.unlink()
    assert not asset_status()[0].cached  # another name
    assert (fetch_asset("toy") / "s2" / "1.pgm").read_bytes() == b"three"
    assert asset_status()[0].cached


def test_a_damaged_copy_that_cannot_be_replaced_is_not_used(toy: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = asset_status()[0].path
    for name, content in (("s1", b"one"), ("s2", b"threE")):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.pgm").write_bytes(content)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    with pytest.raises(AssetError, match="'toy' is damaged in the cache"):
        fetch_asset("toy")


FETCH = """
import os, subprocess, sys
from types import MappingProxyType
from diml import assets
name, version = "toy", "1.0"
asset = assets.Asset(
    name=name, description="", package="none", version=version, sha256="", content_sha256="", member="a", suffix=".pt",
    files=1, size=1, licence="", credit="",
)
assets.ASSETS = MappingProxyType({name: asset})
def run(command, **options):
    folder = command[command.index("--dest") + 1]
    os.makedirs(folder)
    open(folder + "/half.whl", "w").write("half")
    open(options["env"]["TMPDIR"] + "/pip-of-some-kind", "w").write("half")
    print(flush=True)
    sys.stdin.read()
subprocess.run = run
assets.fetch_asset(name)
"""


def test_a_kill_while_fetching_leaves_nothing_once_it_is_fetched(toy: Asset, cache: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", FETCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert [path.name for path in (cache / "assets").iterdir()] != []
    fetch_asset("toy")
    assert [path.name for path in (cache / "assets").iterdir()] == ["toy-1.0"]


def test_the_assets_of_this_version_have_the_content_that_is_written_down() -> None:
    """Checked on the copies that the machine has; a wheel of another content would not be used anyway."""
    for status in asset_status():
        if status.path.exists():
            assert status.cached, status.asset.name


def test_a_wheel_of_another_hash_is_rejected(toy: Asset, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(dataclasses.replace(toy, sha256="0" * 64), monkeypatch)
    with pytest.raises(AssetError, match=f"expected sha256 {'0' * 64}, got {toy.sha256}"):
        fetch_asset("toy")
    assert list((cache / "assets").iterdir()) == []


def test_an_asset_that_pip_cannot_find_names_the_remedy(toy: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    register(dataclasses.replace(toy, version="2.0"), monkeypatch)
    with pytest.raises(AssetError, match=r"diml-toy-asset==2\.0.*PIP_FIND_LINKS"):
        fetch_asset("toy")


def test_without_pip_says_how_to_get_it(toy: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(AssetError, match=r"has no pip module.*-m ensurepip"):
        fetch_asset("toy")


def test_a_pip_that_hangs_is_stopped(toy: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(AssetError, match="did not finish"):
        fetch_asset("toy")


def test_a_cache_that_cannot_be_made_names_the_variable(
    toy: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DIML_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(AssetError, match="DIML_CACHE"):
        fetch_asset("toy")


needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for npm is a script of POSIX")


@needs_posix
def test_npm_unpacks_the_members_that_are_named_so(packed: Asset, cache: Path) -> None:
    folder = fetch_asset("toy")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files == {"1f.pgm": b"one", "2f-fe0f.pgm": b"three"}
    assert "From the npm package @toys/toy@1.0" in (folder.parent / "CREDIT.txt").read_text()
    assert asset_status()[0].cached
    assert [path.name for path in (cache / "assets").iterdir()] == ["toy-1.0"]


@needs_posix
def test_what_goes_wrong_with_npm_is_named(
    packed: Asset, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(dataclasses.replace(packed, sha256="0" * 64), monkeypatch)
    with pytest.raises(AssetError, match=r"the tarball toy-1\.0\.tgz has an unexpected hash.*npm cache verify"):
        fetch_asset("toy")
    register(dataclasses.replace(packed, version="2.0"), monkeypatch)
    with pytest.raises(AssetError, match=r"npm could not fetch @toys/toy@2\.0: npm error 404\. Check the network"):
        fetch_asset("toy")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssetError, match=r"fetched by npm, which is not installed; install Node.*npm pack @toys"):
        fetch_asset("toy")
    assert list((cache / "assets").iterdir()) == []


def test_two_concurrent_fetches_both_get_a_complete_copy(
    toy: Asset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_unpacked = threading.Barrier(2, timeout=60)
    put_in_place = assets._put_in_place

    def wait_for_the_other(*arguments: Path) -> None:
        both_unpacked.wait()
        put_in_place(*arguments)

    monkeypatch.setattr(assets, "_put_in_place", wait_for_the_other)
    results: list[object] = []

    def fetch() -> None:
        try:
            results.append(fetch_asset("toy"))
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [cache / "assets" / "toy-1.0" / "faces"] * 2
    assert [path.name for path in (cache / "assets").iterdir()] == ["toy-1.0"]


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'mobilenetv2'"):
        fetch_asset("mobilenet_v2")


def test_the_cache_folder_is_the_users_or_the_platforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIML_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("DIML_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "diml"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder().parts[-2:] == ("Caches", "diml")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "diml" / "cache"


def test_importing_assets_brings_no_torch() -> None:
    code = "import sys, diml.assets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("name", "tensors"), [("mobilenetv2", 312), ("efficientnet_lite0", 296)])
def test_the_real_weights_are_state_dicts(name: str, tensors: int) -> None:
    import torch

    weights = torch.load(fetch_asset(name), map_location="cpu", weights_only=True)
    assert len(weights) == tensors
    assert all(isinstance(tensor, torch.Tensor) for tensor in weights.values())


def test_the_real_faces_are_forty_people() -> None:
    folder = fetch_asset("orl_faces")
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"s{number}" for number in range(1, 41))
    assert ASSETS["orl_faces"].credit.startswith("ORL Database of Faces, AT&T Laboratories Cambridge")
