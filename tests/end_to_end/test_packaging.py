"""From a clean copy of the checkout to sdist, to wheel, to a new environment outside of it, where commands run.

The dependencies are those of the environment of the tests, which a .pth file names; no index is asked.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from diml import __version__

ROOT = Path(__file__).parents[2]
#: What the package has besides its modules.
DATA = ("js", "css", "html", "jpg", "txt", "json", "typed")


def done(words: list[str | Path], folder: Path, **environment: str) -> str:
    """What a command prints, which has to succeed."""
    bare = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DIML_NATIVE")}
    found = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env=bare | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert found.returncode == 0, f"{words}\n{found.stdout}\n{found.stderr}"
    return found.stdout


def files_of_the_checkout() -> list[str]:
    """Relative names of the files that are committed or about to be; build outputs are none."""
    listed = done(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], ROOT).split("\0")
    return [name for name in listed if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of a clean copy, built by the hook that `python -m build` calls."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("the files of the checkout are listed by git")
    clone, output = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("sdist")
    for name in files_of_the_checkout():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, clone / name)
    code = "import sys; from scikit_build_core.build import build_sdist; print(build_sdist(sys.argv[1]))"
    name = done([sys.executable, "-c", code, output], clone).splitlines()[-1]
    return output / name


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the sdist alone."""
    folder = tmp_path_factory.mktemp("wheel")
    words = ["wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    done([sys.executable, "-m", "pip", *words, "--wheel-dir", folder, sdist], folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel; dependencies are borrowed, the editable diml of the tests is not."""
    folder = tmp_path_factory.mktemp("environment")
    done([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], folder)
    python = folder / "venv" / "bin" / "python"
    words = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    done([sys.executable, "-m", "pip", "--python", python, *words, wheel], folder)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    borrowed = [path for path in sys.path if Path(path).name == "site-packages"]
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    return folder


def packaged() -> set[str]:
    """Names below `src` of all files of the package."""
    endings = (".py", *(f".{ending}" for ending in DATA))
    return {
        name.removeprefix("src/")
        for name in files_of_the_checkout()
        if name.startswith("src/") and name.endswith(endings)
    }


def test_the_sdist_has_what_a_build_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert sdist.name == f"diml-{__version__}.tar.gz"
    needed = {"pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "PKG-INFO"}
    needed |= {name for name in files_of_the_checkout() if name.startswith("csrc/")}
    assert needed | {f"src/{name}" for name in packaged()} <= names
    assert not [name for name in names if name.startswith((".venv", "runs", "build/", "site/")) or name.endswith(".so")]


@pytest.mark.slow
def test_the_wheel_has_the_package_with_its_images_and_pages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        sizes = {name: archive.getinfo(name).file_size for name in names}
    assert packaged() <= names
    photos = [name for name in names if name.startswith("diml/data/sample_images/") and name.endswith(".jpg")]
    assert len(photos) == 12
    assert sum(sizes[name] for name in photos) <= 300_000
    assert "diml/data/sample_images/LICENSE.txt" in names
    for package in ("explain", "search", "web"):
        assert {name.rpartition(".")[2] for name in names if name.startswith(f"diml/{package}/page/")} >= {"js", "css"}
    inside = {name.partition("/")[0] for name in names}
    assert inside == {"diml", f"diml-{__version__}.dist-info"}
    assert not [name for name in names if name.endswith((".cpp", ".hpp"))]


@pytest.mark.slow  # two minutes: the kernel is compiled, and the demo embeds 400 photos
def test_commands_run_from_the_wheel_outside_of_the_checkout(environment: Path) -> None:
    scripts = environment / "venv" / "bin"
    code = "import diml, json, sys; print(json.dumps([diml.__file__, sys.path]))"
    place, path = json.loads(done([scripts / "python", "-c", code], environment))
    assert Path(place).is_relative_to(environment / "venv")
    assert not [entry for entry in path if Path(entry) == ROOT / "src"]
    found = json.loads(done([scripts / "diml", "doctor", "--json"], environment))
    assert found["kernel"]["available"] == (shutil.which("c++") is not None)
    shown = done([scripts / "diml", "demo", "--no-train"], environment)
    assert "mobilenetv2_100" in shown
    assert json.loads((environment / "runs/demo/evaluation.json").read_text())["methods"]
