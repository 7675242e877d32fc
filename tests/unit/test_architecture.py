"""The structure of the package: who may import whom, unique class names, settings that stand once, cheap imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "diml"
FILES = sorted(PACKAGE.rglob("*.py"))
PACKAGES = {file.relative_to(PACKAGE).with_suffix("").parts[0] for file in FILES}

#: Modules that everything may build on.
GROUND = {
    "files",
    "checksums",
    "workers",
    "allocator",
    "extending",
    "extras",
    "field_texts",
    "spelling",
    "documents",
    "progress",
    "distributed",
    "assets",
    "lean_imports",
}
BASE = GROUND | {"matching", "data", "models"}
#: package -> packages it may import besides itself (docs/architecture.md says why)
MAY_IMPORT = {
    "files": set(),
    "checksums": {"documents"},
    "workers": set(),
    "allocator": set(),
    "extending": {"spelling"},
    "extras": set(),
    "field_texts": set(),
    "spelling": set(),
    "documents": set(),
    "progress": set(),
    "distributed": set(),
    "lean_imports": set(),
    "assets": {"files", "checksums", "spelling"},
    "matching": set(),
    "data": GROUND | {"matching"},
    "models": GROUND | {"matching", "data"},
    "objectives": {"matching", "extending", "extras", "spelling"},
    "evaluation": BASE,
    "search": BASE | {"calibration", "explain"},
    "calibration": BASE | {"evaluation"},
    "explain": BASE | {"evaluation", "calibration"},
    "faithfulness": BASE | {"evaluation", "explain"},
    "audit": BASE | {"evaluation", "explain"},
    "training": BASE | {"objectives", "evaluation"},
    "cli": PACKAGES,
    "web": PACKAGES - {"cli"},
    "__init__": PACKAGES - {"cli", "web"},
    "__main__": {"cli"},
}
#: package -> the only packages from outside it may import, besides the standard library
OUTSIDE = {
    "files": set(),
    "checksums": set(),
    "workers": set(),
    "allocator": set(),
    "extending": set(),
    "extras": set(),
    "field_texts": set(),
    "spelling": set(),
    "documents": {"yaml"},
    "assets": set(),
    "progress": {"rich"},
    "distributed": {"torch"},
    "lean_imports": {"torch"},
    "matching": {"torch"},
}
HEAVY = {"timm", "matplotlib", "torchvision", "PIL", "pytorch_metric_learning", "scipy", "sklearn", "tyro", "rich"}


def package_of(file: Path) -> str:
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


def dotted_imports(file: Path) -> set[str]:
    package = ("diml", *file.relative_to(PACKAGE).parts[:-1])
    return imports_of(file.read_text(encoding="utf-8"), package)


def packages_and_outsiders(file: Path) -> tuple[set[str], set[str]]:
    """Packages of ours and top-level packages of others that a file imports."""
    names = [name.split(".") for name in dotted_imports(file)]
    ours = {name[1] if len(name) > 1 else "__init__" for name in names if name[0] == "diml"}
    packages = {name if name in PACKAGES else "__init__" for name in ours}  # `from diml import match`
    outside = {name[0] for name in names} - {"diml", "__future__"} - sys.stdlib_module_names
    return packages, outside


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_package_imports_only_what_it_may(file):
    package = package_of(file)
    assert package in MAY_IMPORT, f"{package} is not in the design: add it to docs/architecture.md and to MAY_IMPORT"
    packages, outside = packages_and_outsiders(file)
    allowed = MAY_IMPORT[package] | {package}
    assert packages <= allowed, f"{package} may not import {sorted(packages - allowed)}"
    if package in OUTSIDE:
        assert outside <= OUTSIDE[package], f"{package} may not import {sorted(outside - OUTSIDE[package])}"


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


def test_the_kernel_is_imported_by_matching_and_doctor_only():
    users = {
        str(file.relative_to(PACKAGE))
        for file in FILES
        if any(name.startswith(("diml.matching.native", "diml.matching._kernel")) for name in dotted_imports(file))
    }
    assert {user for user in users if not user.startswith("matching/")} == {"cli/doctor.py"}


def test_no_import_runs_in_a_circle():
    """Module-level imports of our own modules, those for typing left out, can be put in an order."""
    edges: dict[str, set[str]] = {}
    modules = {".".join(("diml", *file.relative_to(PACKAGE).with_suffix("").parts)): file for file in FILES}
    for module, file in modules.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        top = [node for node in tree.body if isinstance(node, ast.ImportFrom | ast.Import)]
        names = {name for node in top for name in imports_of(ast.unparse(node), tuple(module.split(".")[:-1]))}
        found = {next((m for m in (name, name.rpartition(".")[0]) if m in modules), None) for name in names}
        edges[module] = found - {None, module}
    done: set[str] = set()
    while ready := {module for module, needs in edges.items() if module not in done and needs <= done}:
        done |= ready
    assert sorted(set(edges) - done) == []


def test_nothing_is_named_utils():
    names = {part for file in FILES for part in file.relative_to(PACKAGE).with_suffix("").parts}
    assert not names & {"utils", "util", "common", "helpers", "helper", "misc"}


def test_no_two_classes_have_one_name():
    places = defaultdict(list)
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{file.relative_to(PACKAGE)}:{node.lineno}")
    doubled = {name: where for name, where in places.items() if len(where) > 1}
    doubled.pop("MatcherOptions", None)  # once for mypy, once made from Matcher
    assert doubled == {}


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        ("0.05", "matching/transport.py"),  # epsilon
        ("4e-6", "matching/transport.py"),  # tolerance
        ('"cross_correlation"', "matching/weights.py"),
    ],
)
def test_defaults_of_the_matcher_stand_in_one_place(text, owner):
    """As a default of a parameter or field; a learning rate or a temperature may be 0.05 as well."""
    found = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for name, default in _defaults(node):
                if name in ("epsilon", "tolerance", "weights", "marginals") and ast.unparse(default) in _spellings(
                    text
                ):
                    found.add(str(file.relative_to(PACKAGE)))
            if isinstance(node, ast.Assign) and text in ast.unparse(node.value) and text != '"cross_correlation"':
                targets = {name.id for name in ast.walk(node.targets[0]) if isinstance(name, ast.Name)}
                found |= {str(file.relative_to(PACKAGE))} if targets & {"EPSILON", "TOLERANCE"} else set()
    assert found <= {owner, "matching/matcher.py"}


def _spellings(text: str) -> set[str]:
    return {text, text.replace('"', "'"), "4e-06" if text == "4e-6" else text}


def _defaults(node: ast.AST) -> list[tuple[str, ast.expr]]:
    """Names and defaults of the parameters of a function, or of a field."""
    if isinstance(node, ast.FunctionDef):
        arguments = [*node.args.posonlyargs, *node.args.args]
        pairs = list(zip(reversed(arguments), reversed(node.args.defaults), strict=False))
        pairs += [
            (arg, default) for arg, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if default
        ]
        return [(arg.arg, default) for arg, default in pairs]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        return [(node.target.id, node.value)]
    return []


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        ("epsilon: need", "matching/transport.py"),
        ("tolerance: need", "matching/transport.py"),
        ("max_iterations: need", "matching/transport.py"),
        ("structural_weight: need", "matching/matcher.py"),
        ("weights: need one of", "matching/matcher.py"),
    ],
)
def test_settings_of_the_matcher_are_checked_in_one_place(text, owner):
    """No other module compares or validates them."""
    users = {str(file.relative_to(PACKAGE)) for file in FILES if f'"{text}' in file.read_text(encoding="utf-8")}
    assert users == {owner}


def test_names_of_weights_stand_in_one_place():
    """Elsewhere they are a default of `Matcher`, or compared with "uniform" only."""
    users = {str(file.relative_to(PACKAGE)) for file in FILES if '"cross_correlation"' in file.read_text("utf-8")}
    assert users == {"matching/weights.py", "matching/matcher.py"}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_does_not_import_the_heavy_libraries():
    assert set(run("import sys, diml; print(*sys.modules)").split()) & HEAVY == set()


def test_the_method_needs_torch_only():
    loaded = set(run("import sys, diml.matching; print(*sys.modules)").split())
    assert "diml.matching.matcher" in loaded
    assert {name for name in loaded if name.startswith("diml.") and not name.startswith("diml.matching")} == set()
    assert not loaded & HEAVY


def test_importing_the_package_prints_nothing_and_draws_no_random_number():
    code = "import torch; torch.manual_seed(0); before = torch.get_rng_state(); threads = torch.get_num_threads()\n"
    code += "grad, kind = torch.is_grad_enabled(), torch.get_default_dtype()\nimport diml, diml.matching\n"
    code += "assert torch.equal(before, torch.get_rng_state())\nassert threads == torch.get_num_threads()\n"
    code += "assert (grad, kind) == (torch.is_grad_enabled(), torch.get_default_dtype())"
    assert run(code) == ""
