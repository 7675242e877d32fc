"""Dockerfile and docker-compose.yaml, checked as texts: what they copy, start and open is what there is."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro

from diml import __version__
from diml.cli.serve import ServeCommand

yaml = pytest.importorskip("yaml", reason="pyyaml is not installed; it is in the extra `train`")

ROOT = Path(__file__).parents[3]
PORT = 8765


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, with lines that go on joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def told(name: str) -> list[str]:
    return [rest for word, rest in instructions() if word == name]


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
    return found


def served(words: list[str]) -> ServeCommand:
    """The command of a container as our own parser reads it."""
    assert words[0] == "serve"
    return tyro.cli(ServeCommand, args=words[1:], config=(tyro.conf.FlagCreatePairsOff,))


def pinned(image: str) -> bool:
    return re.fullmatch(r"[a-z0-9./-]+:(v?\d+\.\d+(\.\d+)?(-[a-z-]+)?|RELEASE\.[\dTZ-]+)", image) is not None


def test_everything_that_is_copied_exists_and_is_not_ignored() -> None:
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    sources = [word for line in told("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert sorted(sources) == sorted(kept)
    for name in sources:
        assert (ROOT / name).exists(), name
    assert {"pyproject.toml", "CMakeLists.txt", "csrc", "src"} <= set(sources)
    project = (ROOT / "pyproject.toml").read_text()  # what its build reads is there
    for name in re.findall(r'^(?:readme = |license-files = \[)"([^"]+)"', project, re.MULTILINE):
        assert name in sources
    (extras,) = re.findall(r"whl\)\[([a-z,]+)\]", (ROOT / "Dockerfile").read_text())
    for extra in extras.split(","):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_versions_of_images_are_pinned() -> None:
    stages = told("FROM")
    assert len(stages) == 2
    assert all(pinned(stage.split()[0]) for stage in stages), stages
    for name, service in compose()["services"].items():
        assert pinned(service["image"]), name
    assert compose()["services"]["diml"]["image"] == f"diml:{__version__}"


def test_the_container_runs_as_a_user_without_rights_and_the_token_is_a_file() -> None:
    order = [word for word, _ in instructions()]
    assert told("USER") == ["diml"]
    assert order.index("USER") > max(place for place, word in enumerate(order) if word == "RUN")
    assert "useradd --system" in (ROOT / "Dockerfile").read_text()
    command = served(json.loads(told("CMD")[0]))
    assert (command.host, command.port) == ("0.0.0.0", PORT)
    assert command.token_file == Path("/run/secrets/diml_token")
    assert json.loads(told("ENTRYPOINT")[0]) == ["diml"]


def test_port_and_probe_agree_with_each_other_and_the_document() -> None:
    assert told("EXPOSE") == [str(PORT)]
    (probe,) = told("HEALTHCHECK")
    words = json.loads(probe.partition("CMD ")[2])
    assert words[:2] == ["python", "-c"]
    assert f"http://127.0.0.1:{PORT}/healthz" in words[2]
    compile(words[2], "HEALTHCHECK", "exec")
    document = (ROOT / "docs/serve.md").read_text()
    assert "`GET /healthz`" in document
    assert f"http://127.0.0.1:{PORT}" in document
    assert ServeCommand().port == PORT


def test_the_composition_starts_the_server_over_milvus_and_lets_it_end() -> None:
    services = compose()["services"]
    diml = services["diml"]
    command = served(diml["command"])
    assert (command.host, command.port) == ("0.0.0.0", PORT)
    assert diml["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert command.index is not None
    assert command.index.startswith("http://milvus:19530/")
    command._check_processes()  # such an index can be shared
    assert command.processes > 1
    name = command.token_file.name if command.token_file else ""
    assert diml["secrets"] == [name]
    assert set(compose()["secrets"]) == {name}
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in diml["volumes"]}
    assert str(command.allow_writes) in mounted
    assert float(diml["stop_grace_period"].rstrip("s")) > command.stop_seconds
    named = {volume.split(":")[0] for one in services.values() for volume in one["volumes"]}
    assert {volume for volume in named if not volume.startswith("./")} == set(compose()["volumes"])
    for service in services.values():
        for other, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in services[other]
    assert not [one for one, service in services.items() if one != "diml" and "ports" in service]
    ready = (ROOT / "docker-compose.yaml").read_text()
    for line in re.findall(r"^#   docker compose run --rm diml (.*)$", ready, re.MULTILINE):
        words = shlex.split(line)
        assert words[:2] == ["index", "build"]
        assert words[2] in mounted
        assert words[words.index("--index") + 1] == command.index
