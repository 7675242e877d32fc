"""The public face of the package: every public name is listed here, documented, and importable."""

from __future__ import annotations

import importlib
import inspect

import pytest

#: package -> its `__all__`. A change here is a change of the public interface: say so in CHANGELOG.md.
PUBLIC: dict[str, list[str]] = {}


@pytest.mark.parametrize("package", PUBLIC)
def test_the_public_names_are_those_of_the_snapshot(package):
    assert sorted(importlib.import_module(package).__all__) == sorted(PUBLIC[package])


def test_there_are_about_sixty():
    assert len({name for names in PUBLIC.values() for name in names}) <= 65


@pytest.mark.parametrize(("package", "name"), [(package, name) for package, names in PUBLIC.items() for name in names])
def test_every_public_name_is_documented(package, name):
    thing = getattr(importlib.import_module(package), name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert inspect.getdoc(thing), f"{package}.{name} has no docstring"
        assert not {"block_bytes", "marginals"} & set(inspect.signature(thing).parameters)
