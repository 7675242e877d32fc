"""The code blocks of the README and the documents run without modification.

A Python block whose first line is `# NAME.py` is a file of the user's, which the following blocks can import.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from diml.models import load_embedder
from drawn_pair import drawn_pair
from warm_processes import run_command

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "docs/quickstart.md",
    "docs/explain.md",
    "docs/search.md",
    "docs/scale.md",
    "docs/export.md",
)
WITH_COMMANDS = (*DOCUMENTS, "docs/commands.md")


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, image in zip("ab", drawn_pair(), strict=True):
        image.save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_blocks_run(document: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = blocks(document, "python")
    assert found
    for number, block in enumerate(found):
        file = re.match(r"# (\w+\.py)\n", block)
        if file:
            (folder / file[1]).write_text(block)
        else:
            exec(compile(block, f"{document}, Python block {number + 1}", "exec"), {"__name__": "document"})
    if any('"why.png"' in block for block in found):
        with Image.open(folder / "why.png") as image:
            assert image.width >= 1200
    assert capsys.readouterr().out.strip()


def test_the_output_in_the_readme_is_what_its_block_prints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    block, shown = found.groups()
    exec(compile(block, "README.md", "exec"), {"__name__": "document"})
    printed, number = capsys.readouterr().out, r"\d+(?:\.\d+)?"
    assert re.sub(number, "#", printed) == re.sub(number, "#", shown)
    for now, then in zip(re.findall(number, printed), re.findall(number, shown), strict=True):
        assert float(now) == pytest.approx(float(then), abs=0.002 if "." in then else 1)


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """Every line of every console block, run in one folder that has a.png, b.png and c.png."""
    folder = tmp_path_factory.mktemp("console")
    for name, image in zip("abc", (*drawn_pair(), drawn_pair()[1].rotate(90)), strict=True):
        image.save(folder / f"{name}.png")
    done = {}
    for line in dict.fromkeys(line for document in WITH_COMMANDS for line in console_lines(document)):
        done[line] = run_command(shlex.split(line)[1:], folder)
    return done | {"folder": subprocess.CompletedProcess([], 0, stdout=str(folder))}


def console_lines(document: str) -> list[str]:
    return [line for block in blocks(document, "console") for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("document", WITH_COMMANDS)
def test_console_blocks_run(document: str, console: dict[str, subprocess.CompletedProcess[str]]) -> None:
    lines = console_lines(document)
    assert lines
    for line in lines:
        assert line.startswith("diml "), f"{document}: only diml's own commands are run, got {line}"
        assert console[line].returncode == 0, f"{line}\n{console[line].stderr}"
        assert console[line].stdout.strip(), line


def test_the_demo_writes_the_files_that_it_names(console: dict[str, subprocess.CompletedProcess[str]]) -> None:
    folder, shown = Path(console["folder"].stdout), console["diml demo"].stdout
    named = [Path(line.strip()) for line in shown.splitlines() if line.startswith("  runs/demo/")]
    names = {str(path.relative_to("runs/demo")) for path in named}
    images = {"query-1.png", "query-2.png", "query-3.png", "wrong-hit.png"}
    tables = {"evaluation.csv", "evaluation.json", "differences.csv"}
    tables |= {f"run/test/{table}" for table in tables}
    assert names == images | tables | {"run"}
    assert all((folder / path).stat().st_size > 0 for path in named)
    methods = json.loads((folder / "runs/demo/evaluation.json").read_text())["methods"]
    plain, refined = methods["mobilenetv2_100"]["rows"]
    # docs/results.md: R@1 98.25 -> 99.50, MAP@R 64.32 -> 69.73
    assert plain["recall@1"] == pytest.approx(0.9825, abs=0.003)
    assert plain["map@r"] == pytest.approx(0.643, abs=0.005)
    assert refined["recall@1"] >= 0.992
    assert refined["map@r"] >= 0.692
    assert f"{100 * plain['recall@1']:.2f}" in shown
    assert f"{100 * refined['map@r']:.2f}" in shown
    methods = json.loads((folder / "runs/demo/run/test/evaluation.json").read_text())["methods"]
    bare, whitened, trained = (methods[name]["rows"] for name in methods)
    assert list(methods) == ["backbone alone", "head before training", "trained head"]
    for alone, before, after in zip(bare, whitened, trained, strict=True):  # K = 0 and K = 100
        assert after["map@r"] > alone["map@r"] + 0.05
        assert after["map@r"] > before["map@r"] - 0.01  # what training adds to the whitening is not significant here
    assert load_embedder(folder / "runs/demo/run").config.head == "linear"


def test_make_targets_that_the_readme_names_exist() -> None:
    targets = re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def anchors(document: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_documents_have_targets() -> None:
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", document.read_text()):
            path, _, anchor = link.partition("#")
            target = document.parent / path if path else document
            assert target.exists(), f"{document.name}: {link}"
            assert not anchor or anchor in anchors(target), f"{document.name}: {link}"
