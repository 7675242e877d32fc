"""The workflows of the checkout agree with its Makefile and pyproject.toml, as texts: they run elsewhere."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from diml.cli import COMMANDS

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = {"3.11", "3.12", "3.13", "3.14"}


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["jobs"]
    return found


def matrix(job: dict[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = job.get("strategy", {}).get("matrix", {})
    return found


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def lowest(package: str) -> str:
    """The lowest version of a dependency."""
    (line,) = [line for line in PROJECT["project"]["dependencies"] if re.match(rf"{package}\W", line)]
    return str(line.partition(">=")[2])


def test_there_are_workflows_for_tests_and_wheels() -> None:
    assert [path.name for path in WORKFLOWS] == ["tests.yml", "wheels.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_job_has_a_runner_and_steps_that_use_or_run_something(path: Path) -> None:
    for name, job in jobs(path).items():
        assert job["runs-on"], name
        assert job["steps"], name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), (name, step)
            assert "uses" not in step or "@" in step["uses"], f"{name}: {step['uses']} has no version"
        keys = re.findall(r"\$\{\{\s*matrix\.(\w+)", str(job))
        assert set(keys) <= set(matrix(job)), name
        assert set(job.get("needs", [])) <= set(jobs(path)), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_they_run_exists(path: Path) -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    for name, job in jobs(path).items():
        for command in commands(job):
            words = shlex.split(command.split("${{")[0])
            if words[0] == "make":
                assert words[1] in targets(), f"{name}: no target {words[1]}"
            for folder in (word for word in words if word.startswith(("tests/", "benchmarks/", "docs/"))):
                assert (ROOT / folder).exists(), f"{name}: {folder}"
            for named in re.findall(r"\.\[([\w,]+)\]", command):
                assert set(named.split(",")) <= set(extras), f"{name}: {named}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_python_is_one_that_the_package_admits(path: Path) -> None:
    least = tuple(map(int, PROJECT["project"]["requires-python"].removeprefix(">=").split(".")))
    for name, job in jobs(path).items():
        asked = [step["with"]["python-version"] for step in job["steps"] if "python-version" in step.get("with", {})]
        asked = [*(version for version in asked if "matrix" not in version), *matrix(job).get("python", [])]
        for version in asked:
            assert isinstance(version, str), f"{name}: {version} needs quotes, or 3.10 is 3.1"
            assert tuple(map(int, version.split("."))) >= least, name
            assert version in PYTHONS, name


def test_the_tests_cover_the_systems_pythons_and_versions_of_torch_that_are_promised() -> None:
    found = jobs(ROOT / ".github" / "workflows" / "tests.yml")
    assert set(matrix(found["linux"])["python"]) == PYTHONS
    assert {"arm" in runner for runner in matrix(found["linux"])["runner"]} == {True, False}
    assert all(runner.startswith("ubuntu") for runner in matrix(found["linux"])["runner"])
    assert {"make check PYTHON=python", "make test PYTHON=python"} == set(commands(found["linux"]))
    assert found["macos"]["runs-on"].startswith("macos")
    assert found["windows"]["runs-on"].startswith("windows")
    assert found["without-kernel"]["env"] == {"DIML_NATIVE": "0"}
    with_lowest, newest = matrix(found["lowest"])["torch"]
    assert shlex.split(with_lowest) == [f"torch=={lowest('torch')}.0", f"torchvision=={lowest('torchvision')}.0"]
    assert newest == ""
    assert any("make test-lowest" in command for command in commands(found["lowest"]))


def test_the_classifiers_are_the_pythons_that_are_tested() -> None:
    named = {line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if "Python :: 3." in line}
    assert named == PYTHONS


def test_wheels_are_built_for_the_same_pythons_and_systems_and_tested_by_commands_that_exist() -> None:
    built, job = PROJECT["tool"]["cibuildwheel"], jobs(ROOT / ".github" / "workflows" / "wheels.yml")["wheels"]
    assert built["build"].split() == [f"cp{version.replace('.', '')}-*" for version in sorted(PYTHONS)]
    systems = {runner.partition("-")[0] for runner in matrix(job)["runner"]}
    assert systems == {"ubuntu", "macos", "windows"}
    assert "ubuntu-24.04-arm" in matrix(job)["runner"]
    assert not {"macos-13", "macos-15-intel"} & set(matrix(job)["runner"]), "torch 2.4 has no wheels for them"
    assert any(re.fullmatch(r"python -m pip install cibuildwheel==[\d.]+", command) for command in commands(job))
    words = shlex.split(built["test-command"])
    assert words[0] in PROJECT["project"]["scripts"]
    assert words[1] in COMMANDS
    assert words[2:5] == ["&&", "python", "-c"]
    compile(words[5], "test-command", "exec")
    assert not {"before-all", "before-build"} & set(built), "wheels need no more than pyproject.toml names"


def test_the_command_that_tests_a_wheel_runs_here(capsys: pytest.CaptureFixture[str]) -> None:
    """Its second part; `diml doctor` has tests of its own."""
    exec(shlex.split(PROJECT["tool"]["cibuildwheel"]["test-command"])[5], {})
    assert "score" in capsys.readouterr().out


def test_a_release_waits_for_all_that_is_built() -> None:
    found = jobs(ROOT / ".github" / "workflows" / "wheels.yml")
    assert set(found["publish"]["needs"]) == set(found) - {"publish"}
    assert found["publish"]["permissions"] == {"id-token": "write"}
    assert "refs/tags/v" in found["publish"]["if"]


def test_the_version_is_the_same_in_the_package_and_where_it_is_cited() -> None:
    version = PROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"]
    assert citation["version"] == version
    assert f"version = {{{version}}}" in (ROOT / "README.md").read_text()


def test_hooks_before_a_commit_are_parts_of_make_check() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"] for repository in repositories for hook in repository["hooks"]]
    checks = re.findall(r"^\t\$\(BIN\)/(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for entry in entries:
        words = entry.removeprefix(".venv/bin/").removesuffix(" --force-exclude")
        assert any(check.startswith(words) for check in checks), entry
