"""What heavy packages load but diml does not use is loaded when somebody uses it, and nothing is missing then."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from diml.lean_imports import import_lancedb, import_timm

timm = import_timm()
assert "torch._dynamo" not in sys.modules and "torch._dynamo.utils" not in sys.modules
assert "wandb" not in sys.modules
assert timm.utils.summary.wandb.Image.__module__.startswith("wandb.")
assert sys.modules["wandb"].Image is timm.utils.summary.wandb.Image
assert timm.create_model("test_resnet", pretrained=False) is not None
assert import_timm() is sys.modules["timm"]

import torch, torchvision
roi_align = torchvision.ops.roi_align
found = roi_align(torch.rand(1, 3, 8, 8), [torch.tensor([[0.0, 0.0, 4.0, 4.0]])], 2)
assert found.shape == (1, 3, 2, 2)
assert torch.compiler.disable.__module__ == "torch.compiler"

disabled = timm.layers.disable_compiler(lambda value: value + 1)
assert disabled(1) == 2
assert "torch._dynamo" in sys.modules
from torch._dynamo.utils import is_compile_supported

import_lancedb()
client = sys.modules["lance_namespace_urllib3_client"]
assert "lance_namespace_urllib3_client.api" not in sys.modules
from lance_namespace_urllib3_client import TableApi
assert TableApi.__module__ == "lance_namespace_urllib3_client.api.table_api"
assert client.__version__ and client is sys.modules["lance_namespace_urllib3_client"]
"""


@pytest.mark.slow
def test_they_are_loaded_when_they_are_used():
    pytest.importorskip("lancedb")
    pytest.importorskip("lance_namespace_urllib3_client")
    pytest.importorskip("wandb")
    subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], check=True)


def test_search_loads_neither_the_compiler_nor_a_client_of_servers():
    pytest.importorskip("lancedb")
    told = "import sys, diml.search, diml.cli.search; print([n for n in sys.modules if n in NAMES])"
    names = "NAMES = ('torch._dynamo', 'torchvision', 'sklearn', 'matplotlib', 'lancedb', 'pandas', 'timm'); "
    run = subprocess.run([sys.executable, "-c", names + told], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"
