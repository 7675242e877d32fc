"""Who may import whom, how long a file may be, and that importing the package is cheap (design: "The house")."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "diml"
FILES = sorted(PACKAGE.rglob("*.py"))
PACKAGES = {file.relative_to(PACKAGE).with_suffix("").parts[0] for file in FILES}

EARLIER = {"matching", "data", "models", "assets", "files", "objectives", "evaluation"}
#: room -> packages it may import besides itself (docs/architecture.md says why)
MAY_IMPORT = {
    "files": set(),
    "allocator": set(),
    "assets": {"files"},
    "matching": set(),
    "data": {"matching", "assets", "files"},
    "models": {"matching", "data", "assets", "files"},
    "objectives": {"matching"},
    "evaluation": {"matching", "models", "data", "files"},
    "search": {"matching", "models", "data", "files"},
    "explain": {"matching", "models", "data", "evaluation", "files"},
    "training": EARLIER,
    "cli": PACKAGES,
    "web": PACKAGES - {"cli"},
    "__init__": PACKAGES - {"cli", "web"},
    "__main__": {"cli"},
}
#: room -> the only packages from outside it may import, besides the standard library
OUTSIDE = {"files": set(), "allocator": set(), "assets": set(), "matching": {"torch"}}
HEAVY = {"timm", "matplotlib", "torchvision", "PIL", "pytorch_metric_learning", "scipy", "sklearn", "tyro", "rich"}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(source: str, package: tuple[str, ...]) -> set[str]:
    """Dotted names of all modules that `source`, a module of `package`, imports anywhere, typing included."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            names |= {".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names}
    return names


def rooms_and_outsiders(file: Path) -> tuple[set[str], set[str]]:
    """Rooms of ours and top-level packages of others that a file imports."""
    package = ("diml", *file.relative_to(PACKAGE).parts[:-1])
    names = [name.split(".") for name in imports_of(file.read_text(encoding="utf-8"), package)]
    ours = {name[1] if len(name) > 1 else "__init__" for name in names if name[0] == "diml"}
    packages = {room if room in PACKAGES else "__init__" for room in ours}  # `from diml import match` is the front door
    outside = {name[0] for name in names} - {"diml", "__future__"} - sys.stdlib_module_names
    return packages, outside


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_room_imports_only_what_it_may(file):
    room = room_of(file)
    assert room in MAY_IMPORT, f"{room} is no room of the design: add it to design.md and to MAY_IMPORT"
    packages, outside = rooms_and_outsiders(file)
    allowed = MAY_IMPORT[room] | {room}
    assert packages <= allowed, f"{room} may not import {sorted(packages - allowed)}"
    if room in OUTSIDE:
        assert outside <= OUTSIDE[room], f"{room} may not import {sorted(outside - OUTSIDE[room])}"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import diml.search.store", "diml.search.store"),
        ("from diml.search import Searcher", "diml.search.Searcher"),
        ("from diml import search", "diml.search"),
        ("from .. import search", "diml.search"),
        ("from ..search.store import open", "diml.search.store.open"),
        ("from . import image", "diml.data.image"),
        ("def f():\n    import diml.search", "diml.search"),
        ("if TYPE_CHECKING:\n    import PIL.Image as I", "PIL.Image"),
    ],
)
def test_every_way_to_import_is_seen(line, found):
    assert imports_of(line, ("diml", "data")) == {found}


def test_nothing_is_named_utils():
    names = {part for file in FILES for part in file.relative_to(PACKAGE).with_suffix("").parts}
    assert not names & {"utils", "util", "common", "helpers", "helper", "misc"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_has_at_most_400_lines(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


def test_what_a_page_is_made_of_is_part_of_the_package_and_short():
    files = [file for file in PACKAGE.glob("*/page/*") if file.suffix in (".js", ".css", ".html")]
    assert {"viewer.js", "viewer.css", "page.html", "app.js", "app.css", "index.html"} <= {file.name for file in files}
    assert all(len(file.read_text(encoding="utf-8").splitlines()) <= 300 for file in files)


def test_the_method_has_at_most_1050_lines():
    """Without the binding of its compiled kernel, which is no part of how it reads (docs/architecture.md)."""
    files = sorted((PACKAGE / "matching").glob("*.py"))
    assert 0 < sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) <= 1050


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_does_not_import_the_heavy_libraries():
    assert set(run("import sys, diml; print(*sys.modules)").split()) & HEAVY == set()


def test_the_method_needs_torch_only():
    """Not even by way of the package's own front door."""
    loaded = set(run("import sys, diml.matching; print(*sys.modules)").split())
    assert "diml.matching.similarity" in loaded
    assert {name for name in loaded if name.startswith("diml.") and not name.startswith("diml.matching")} == set()
    assert not loaded & HEAVY


def test_importing_the_package_prints_nothing_and_draws_no_random_number():
    code = "import torch; torch.manual_seed(0); before = torch.get_rng_state(); threads = torch.get_num_threads()\n"
    code += "grad, kind = torch.is_grad_enabled(), torch.get_default_dtype()\nimport diml, diml.matching\n"
    code += "assert torch.equal(before, torch.get_rng_state())\nassert threads == torch.get_num_threads()\n"
    code += "assert (grad, kind) == (torch.is_grad_enabled(), torch.get_default_dtype())"
    assert run(code) == ""
