"""The documentation builds as a site without a warning, and its reference has every public name."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

from unit.test_public_names import PUBLIC

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))


def test_the_site_builds_and_every_link_in_it_has_a_target(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "api" / "matching" / "index.html").read_text()
    assert "structural_weight" in page
    assert "weight_q" in page


def test_every_public_name_is_in_the_reference() -> None:
    for page in PAGES:
        package = "diml" if page.stem == "diml" else f"diml.{page.stem}"
        module, text = importlib.import_module(package), page.read_text()
        listed = set(re.findall(r"\.(\w+)(?:\]|$)", text, re.MULTILINE))
        assert set(module.__all__) <= listed, f"{page}: lacks {set(module.__all__) - listed}"


def test_every_public_package_has_a_page() -> None:
    assert {"diml", *(f"diml.{page.stem}" for page in PAGES)} >= set(PUBLIC) - {"diml.distributed"}
