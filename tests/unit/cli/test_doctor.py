"""`diml doctor` shows versions, kernel and devices, and what could be improved."""

import importlib.metadata
import json

import pytest
import torch
import tyro

from diml import extras
from diml.cli.doctor import DoctorCommand, advise, examine
from diml.matching import native


def run(*words: str) -> int:
    return tyro.cli(DoctorCommand, args=list(words), config=(tyro.conf.FlagCreatePairsOff,)).run()


def test_it_shows_versions_kernel_threads_devices_and_assets(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    run()
    printed = capsys.readouterr().out
    version = importlib.metadata.version("torch")
    for part in (version, "dispatch", "threads", "devices", "mobilenetv2", "orl_faces", "cores"):
        assert part in printed


def test_a_missing_extra_is_optional_and_named_with_its_command(capsys, monkeypatch):
    """Rich takes words in square brackets for markup, and would print `pip install 'diml'`."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(extras, "EXTRAS", {"plot": ("matplotlib",), "web": ("no_such_module", "nor_this")})
    run()
    printed = capsys.readouterr().out
    assert "not installed (no_such_module, nor_this); optional: pip install 'diml[web]'" in printed
    assert ("Nothing to fix; extras are only needed for what they add." in printed) == (not advise(examine()))


def test_json_has_the_same(capsys):
    code = run("--json")
    found = json.loads(capsys.readouterr().out)
    assert found["kernel"]["available"] == native.info()["available"]
    assert found["kernel"]["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert code == int(native.info()["reason"].startswith("not built"))


@pytest.mark.parametrize(
    ("reason", "switch", "code", "remedy"),
    [
        ("not built: no compiler", "not set", 1, "C++ compiler"),
        ("turned off by DIML_NATIVE=0", "0", 0, "unset DIML_NATIVE"),
    ],
)
def test_a_missing_kernel_has_a_remedy(capsys, monkeypatch, reason, switch, code, remedy):
    monkeypatch.setattr(native, "_KERNEL", None)
    monkeypatch.setattr(native, "_REASON", reason)
    monkeypatch.setenv("DIML_NATIVE", switch)
    assert run() == code
    assert remedy in capsys.readouterr().out


def test_idle_cores_are_told():
    found = examine()
    found["machine"]["cores"], found["kernel"]["threads"] = 16, 2
    assert any(line.startswith("threads:") for line in advise(found))
