"""The package installs where there is no C++ compiler, works there in torch, warns once, and is complete."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Looks for diml in the folder alone: the finder of an editable installation would come first.
ALONE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
sys.path.insert(0, sys.argv.pop(1))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps"]
    words += [
        "--disable-pip-version-check",
        "--target",
        str(folder / "lib"),
        f"-Cbuild-dir={folder / 'build'}",
        str(ROOT),
    ]
    environment = {**os.environ, "CXX": str(folder / "no-such-compiler")}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder / "lib"


def alone(folder: Path, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ALONE + code, str(folder), *words]
    environment = {name: value for name, value in os.environ.items() if name != "DIML_NATIVE"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_it_works_and_says_once_what_is_missing(installed: Path) -> None:
    code = """
import torch, diml
from diml.matching import Matcher, Regions
assert diml.__file__.startswith(sys.path[0]), diml.__file__
dense = torch.eye(4).expand(3, 4, 4)
regions = Regions.normalized(dense, dense.mean(dim=1))
for _ in range(3):
    scores = Matcher().score(regions, regions, torch.tensor([[0], [1], [2]]))
print(scores.flatten().tolist())
"""
    done = alone(installed, code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx([2, 2, 2], abs=1e-2)
    assert done.stderr.count("the compiled kernel is missing") == 1


def test_the_doctor_has_the_remedy(installed: Path) -> None:
    done = alone(installed, "from diml.cli import main; sys.exit(main(sys.argv[1:]))", "doctor", "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert not found["kernel"]["available"]
    assert "install a C++ compiler" in found["advice"][0]


def test_all_that_is_needed_is_installed_and_no_source_of_the_kernel(installed: Path) -> None:
    source = ROOT / "src" / "diml"
    wanted = {file.relative_to(source) for kind in ("py", "js", "css", "html") for file in source.rglob(f"*.{kind}")}
    there = {file.relative_to(installed / "diml") for file in (installed / "diml").rglob("*") if file.is_file()}
    assert wanted | {Path("py.typed")} <= there
    assert not [file for file in there if file.suffix in (".cpp", ".hpp", ".inl", ".so")]
