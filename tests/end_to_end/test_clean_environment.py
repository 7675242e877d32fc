"""`pip install diml` alone matches, re-ranks, evaluates and explains; what else is needed is named with its command.

A folder of links to the installed files of diml's required dependencies, and theirs, stands for a new environment: no
network is needed, and nothing of the extras can be imported.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import diml

#: Modules of the extras that no required dependency brings.
OPTIONAL = ("pytorch_metric_learning", "sklearn", "matplotlib", "lancedb", "pymilvus", "fastapi", "tensorboard")


Found = dict[tuple[str, str], importlib.metadata.Distribution]


def required(name: str, found: Found, extra: str = "") -> None:
    """Collect a distribution and all that it requires on this machine, with an extra of it or without."""
    key = (canonicalize_name(name), extra)
    if key in found:
        return
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return  # required elsewhere, or a part of torch that this build has not
    found[key] = distribution
    for line in distribution.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            for wanted in ("", *requirement.extras):
                required(requirement.name, found, wanted)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Site-packages of a new environment."""
    found: Found = {}
    required("diml", found)
    folder = tmp_path_factory.mktemp("site")
    for (name, _), distribution in found.items():
        if name == "diml":
            continue
        for file in distribution.files or ():
            target = Path(str(distribution.locate_file(file)))
            if ".." in file.parts or not target.is_file():
                continue
            link = folder / Path(*file.parts)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(target)
    (folder / "diml").symlink_to(Path(diml.__file__).parent)
    info = Path(str(importlib.metadata.distribution("diml")._path))  # type: ignore[attr-defined]
    (folder / info.name).symlink_to(info)
    return folder


def run(site: Path, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    start = f"import sys; sys.path.insert(0, {str(site)!r}); import warnings; warnings.simplefilter('ignore')\n"
    command = [sys.executable, "-S", "-c", start + code, *words]  # -S: no site-packages of the tests' environment
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)


def test_the_extras_are_really_missing(site: Path) -> None:
    code = f"import importlib.util\nprint([name for name in {OPTIONAL} if importlib.util.find_spec(name)])"
    done = run(site, code)
    assert done.stdout.strip() == "[]", done


def test_matching_reranking_evaluation_and_explanation_work(site: Path, tmp_path: Path) -> None:
    code = f"""
import diml, torch
from PIL import Image
from diml.explain import explanation_page
assert diml.__file__.startswith({str(site)!r}), diml.__file__
embedder = diml.load_embedder("test_resnet", pretrained=False)
photos = diml.sample_images()
match = diml.match(photos[0], photos[1], embedder=embedder)
assert abs(float(match.score[0]) - match.ledger().score) < 1e-5
open({str(tmp_path / "why.html")!r}, "w").write(explanation_page(match))
regions = embedder.embed([Image.open(path).convert("RGB").rotate(angle) for path in photos[1:3] for angle in (0, 2, 4)])
ranking = diml.nearest(regions, regions, 5, exclude=torch.arange(6))
assert diml.rerank(regions, regions, ranking.order).order.shape == (6, 5)
print(diml.evaluate_regions(regions, ["a"] * 3 + ["b"] * 3, rerank_at=(0, 5)))
"""
    done = run(site, code)
    assert done.returncode == 0, done.stderr
    assert "Report(6 queries, 6 gallery images" in done.stdout
    assert (tmp_path / "why.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["explain", "a.png", "b.png", "--output", "why.png"], "plot"),
        (["train", "orl", "--objective", "margin"], "train"),
        (["index", "build", ".", "--index", "x.index"], "search"),
        (["serve"], "web"),
    ],
)
def test_a_missing_extra_is_named_with_its_command(site: Path, tmp_path: Path, words: list[str], extra: str) -> None:
    from drawn_pair import drawn_pair

    for name, image in zip("ab", drawn_pair(), strict=True):
        image.save(tmp_path / f"{name}.png")
    code = f"import os; os.chdir({str(tmp_path)!r})\nfrom diml.cli import main\nsys.exit(main(sys.argv[1:]))"
    done = run(site, code, *words)
    assert done.returncode == 2, done
    assert f"pip install 'diml[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
