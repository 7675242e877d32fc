"""`diml doctor`: versions, kernel, devices and assets of this installation."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json as json_format
import os
import platform
from dataclasses import dataclass
from typing import Any, Final

#: Packages that every installation has.
NEEDED: Final = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors")


@dataclass(frozen=True, kw_only=True)
class DoctorCommand:
    """Show versions, the compiled kernel, threads, devices, optional packages, and weights and photos in the cache.

    Exits with status 1 where the compiled kernel is missing.

    For instance:

    diml doctor

    DIML_NATIVE=0 diml doctor

    diml doctor --json
    """

    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        """Collect, print, and advise."""
        found = examine()
        advice = advise(found)
        missing = int(found["kernel"]["reason"].startswith("not built"))
        if self.json:
            print(json_format.dumps(found | {"advice": advice}, indent=1))
            return missing
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(show_header=False, title="diml doctor")
        for section, values in found.items():
            for name, value in values.items():
                table.add_row(
                    section, name, ", ".join(map(str, value)) if isinstance(value, list) else escape(str(value))
                )
                section = ""
            table.add_section()
        Console().print(table)
        print("\n".join(f"! {line}" for line in advice) or "Nothing to fix; extras are only needed for what they add.")
        return missing


def examine() -> dict[str, dict[str, Any]]:
    """Facts by section, as plain values."""
    import torch

    from diml.assets import asset_status, cache_folder
    from diml.extras import EXTRAS
    from diml.matching import native

    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    extras = {
        extra: [name for name in modules if importlib.util.find_spec(name) is None] for extra, modules in EXTRAS.items()
    }
    assets = {status.asset.name: status.cached for status in asset_status()}
    return {
        "versions": {
            "diml": importlib.metadata.version("diml"),
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in NEEDED},
        },
        "kernel": native.info() | {"switch": os.environ.get("DIML_NATIVE", "not set")},
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "devices": ["cpu", *mps, *cuda]},
        "extras": {
            extra: f"not installed ({', '.join(names)}); optional: pip install 'diml[{extra}]'"
            if names
            else "installed"
            for extra, names in extras.items()
        },
        "assets": {"folder": str(cache_folder())}
        | {name: "in the cache" if cached else "fetched when needed" for name, cached in assets.items()},
    }


def advise(found: dict[str, dict[str, Any]]) -> list[str]:
    """What slows diml down on this machine, and the remedy."""
    kernel, machine = found["kernel"], found["machine"]
    advice = []
    if not kernel["available"]:
        remedy = "unset DIML_NATIVE" if kernel["switch"] == "0" else "install a C++ compiler, then reinstall diml"
        advice.append(f"kernel: {kernel['reason']}; matching on the CPU is 10 to 100 times slower; {remedy}")
    if kernel["threads"] < (machine["cores"] or 1) // 2:
        used = f"torch uses {kernel['threads']} of {machine['cores']} cores"
        advice.append(f"threads: {used}; raise OMP_NUM_THREADS, or torch.set_num_threads in your program")
    return advice


COMMAND = DoctorCommand
