"""Every reference in code and documents resolves: links with their anchors, files, sections, commands, targets."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from diml.cli import COMMANDS
from diml.cli.index import ACTIONS

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("src/diml", "csrc", "tests", "benchmarks", "docs", "examples", ".github")
ENDINGS = {".py", ".md", ".cpp", ".hpp", ".inl", ".js", ".yaml", ".yml", ".toml"}
FILES = sorted(
    [file for place in PLACES for file in (ROOT / place).rglob("*") if file.is_file() and file.suffix in ENDINGS]
    + [*ROOT.glob("*.md"), *(ROOT / name for name in ("Makefile", "Dockerfile", "CMakeLists.txt", "pyproject.toml"))]
)
#: The change log names what has been removed since; this file has the patterns themselves.
CHECKED = [file for file in FILES if file.name not in ("CHANGELOG.md", Path(__file__).name)]
DOCUMENTS = [file for file in CHECKED if file.suffix == ".md"]


@cache
def text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@cache
def prose_of(file: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```", "", text_of(file), flags=re.MULTILINE | re.DOTALL)


@cache
def headings(file: Path) -> dict[str, str]:
    """Anchor of each heading, as the site and code hosts make it -> its text."""
    found = {}
    for title in re.findall(r"^#+ (.+)$", prose_of(file), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        found[re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")] = title
    return found


def missing_files(pattern: str, files: list[Path] = CHECKED) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in re.findall(pattern, text_of(file))
        if not any(base.joinpath(name).exists() for base in (ROOT, file.parent))
    ]


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_have_targets(file: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(file)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (file.parent / name).resolve() if name else file
        exists = target.exists() and target.is_relative_to(ROOT)
        if not exists or (anchor and target.suffix == ".md" and anchor not in headings(target)):
            wrong.append(link)
    assert not wrong


def test_documents_named_in_code_and_text_exist() -> None:
    assert not missing_files(r"(?<![\w/.\-])(docs/[\w/\-]+\.(?:md|py|png|jpg))\b(?<!MEASURE.png)")


def test_files_of_the_repository_named_in_code_and_text_exist() -> None:
    name = (
        r"(?:tests|benchmarks|src/diml|csrc|examples|\.github)/[\w/.\-]+\.(?:py|md|yaml|yml|cpp|hpp|json|npz|js|ipynb)"
    )
    assert not missing_files(rf"(?<![\w/.\-])({name})\b(?![*{{\[])")


def test_sections_named_beside_a_document_exist() -> None:
    """`docs/serve.md, "Containers"` names a heading; numbered sections of documents of ours do not exist."""
    wrong = []
    for file in CHECKED:
        for name, title in re.findall(
            r'(docs/[\w/\-]+\.md)`?, "([^"]+)"', re.sub(r"\s*\n\s*(?:#|//|\*)?\s*", " ", text_of(file))
        ):
            if title.lower() not in {known.lower() for known in headings(ROOT / name).values()}:
                wrong.append(f"{file.relative_to(ROOT)}: {name}, {title}")
        wrong += [
            f"{file.relative_to(ROOT)}: {found}" for found in re.findall(r"\w+\.md`?\)?, section \d", text_of(file))
        ]
    assert not wrong


def test_nothing_outside_of_the_repository_is_cited() -> None:
    outside = re.compile(r"\bdesign\.md|shared/design|shared/oracle|\boracle/reference\.npz|/work/")
    assert not [f"{file.relative_to(ROOT)}: {found}" for file in CHECKED for found in outside.findall(text_of(file))]


def test_commands_that_are_named_exist() -> None:
    wrong = []
    for file in CHECKED:
        named = re.findall(r"(?:^ {4}|^\$ |`)diml ([a-z][a-z\-]*)(?: ([a-z]+))?(?=[ `\n])", text_of(file), re.MULTILINE)
        for command, action in named:
            known = command in COMMANDS and (command != "index" or not action or action in ACTIONS)
            if not known:
                wrong.append(f"{file.relative_to(ROOT)}: diml {command} {action}")
    assert not wrong


def test_targets_of_make_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([\w\-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    named = [
        (file, target)
        for file in CHECKED
        for target in re.findall(r"(?:`|^ {4}|^\$ |run: |&& )make ([a-z][a-z\-]+)", text_of(file), re.MULTILINE)
    ]
    assert named
    assert not [f"{file.relative_to(ROOT)}: make {target}" for file, target in named if target not in targets]
