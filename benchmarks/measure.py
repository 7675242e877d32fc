"""Shared by the benchmarks: flags, alternating timing, peak memory, facts about the machine, tables and JSON."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from diml.files import write_text

PACKAGES = (
    "diml", "torch", "numpy", "pytorch-metric-learning", "POT", "ott-jax", "jax", "maxsim-cpu", "faiss-cpu"
)  # fmt: skip

#: Progress is printed here, so that standard output has only the tables.
progress = Console(stderr=True)

#: A timed run lasts at least this long: shorter ones measure mainly the waking of threads.
LEAST_SECONDS = 0.05


def parser(description: str | None, *, runs: int | None = 5, warmup: int = 1) -> argparse.ArgumentParser:
    """A command line with the flags of every benchmark; `description` is the docstring of the module with its examples.

    `runs` and `warmup` are the defaults of their flags; with `runs=None` the benchmark has no timed runs.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if runs is not None:
        made.add_argument(
            "--runs", type=int, default=runs, help="timed runs per side, alternating; default: %(default)s"
        )
        made.add_argument("--warmup", type=int, default=warmup, help="untimed runs before them; default: %(default)s")
    made.add_argument("--threads", type=int, help="torch threads; default: chosen by torch")
    made.add_argument("--seed", type=int, default=0, help="random seed; default: %(default)s")
    made.add_argument("--json", type=Path, help="also write the numbers to this file")
    return made


def add_tolerance(made: argparse.ArgumentParser) -> None:
    """The flag of the marginal error at which a pair has converged on our side."""
    made.add_argument(
        "--tolerance", type=float, default=4e-6, help="marginal error at which ours stops; default: %(default)s"
    )


def read(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line and set the threads."""
    options = made.parse_args()
    for name, least in (("runs", 1), ("warmup", 0), ("threads", 1)):
        given = getattr(options, name, None)
        if given is not None and given < least:
            made.error(f"--{name}: need {least} or more, got {given}")
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


# ---- Time ------------------------------------------------------------------------------------------------------------


def missing(package: str | None, install: str) -> str | None:
    """Why another project cannot be measured on this machine, with what would change that; None where it can."""
    if package and importlib.util.find_spec(package) is None:
        return f"{package} is not installed: {install}"
    return None


def alternate(
    sides: Mapping[str, Callable[[], object]],
    runs: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each run of each side, alternating (A B A B ...), so that a slow period affects all sides equally.

    Work that takes less than `LEAST_SECONDS` is repeated within a run; the run counts with the mean.
    """
    for work in sides.values():
        for _ in range(warmup):
            work()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(runs):
        for name, work in sides.items():
            with progress.status(f"run {run + 1} of {runs}: {name}"):
                start, calls, spent = clock(), 0, 0.0
                while spent < LEAST_SECONDS:
                    work()
                    calls, spent = calls + 1, clock() - start
                seconds[name].append(spent / calls)
    return seconds


def spread(values: Sequence[float], factor: float = 1.0) -> dict[str, Any]:
    """Median, extremes and all values, times `factor` (1000 / queries turns seconds into milliseconds per query)."""
    scaled = [factor * value for value in values]
    return {"median": statistics.median(scaled), "low": min(scaled), "high": max(scaled), "values": scaled}


def ratios(slow: Sequence[float], fast: Sequence[float], factor: float = 1.0) -> dict[str, Any]:
    """How many times longer `slow` took than `fast`, run by run."""
    return spread([a / b for a, b in zip(slow, fast, strict=True)], factor)


def shown(found: Mapping[str, Any], digits: int = 3) -> str:
    """`spread` for a table: the median, and below it the smallest and the largest value."""
    median, low, high = (number(found[name], digits) for name in ("median", "low", "high"))
    return f"{median}\n{low}..{high}"


def number(value: float, digits: int = 3) -> str:
    """At least that many significant digits, and all digits before the decimal point."""
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


# ---- Memory ----------------------------------------------------------------------------------------------------------


def peak_gb() -> float:
    """Largest resident memory of this process since `forget_peak`, in 10^9 bytes.

    getrusage is the last resort: its maximum is inherited by child processes and cannot be reset.
    """
    return _status_gb("VmHWM")


def resident_gb() -> float:
    """Resident memory of this process now, in 10^9 bytes; the largest so far where the system does not report it."""
    return _status_gb("VmRSS")


def _status_gb(name: str) -> float:
    listing = Path("/proc/self/status")
    if listing.is_file():
        for line in listing.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def forget_peak() -> None:
    """Reset `peak_gb` to what is resident now, where the system allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def memory_above(work: Callable[[], object]) -> float:
    """Peak resident memory of `work()` above what was resident before it, in 10^6 bytes."""
    before = resident_gb()
    forget_peak()
    work()
    return 1000 * max(0.0, peak_gb() - before)


def in_own_process(script: str, arguments: Sequence[str], python: str | Path = sys.executable) -> Any:
    """Run `python script arguments...` and read what it prints as JSON."""
    done = subprocess.run([str(python), script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{python} {Path(script).name} {' '.join(arguments)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


# ---- Facts -----------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Processor, cores and threads."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def processor() -> str:
    """Name of the processor where the system reports it, else its architecture."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    """Versions of the packages that are measured, without those that are not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def kernel() -> dict[str, Any]:
    """Whether the compiled kernel is in use, and with which instruction set; see `diml.matching.native.info`."""
    from diml.matching import native

    return dict(native.info())


# ---- Results ---------------------------------------------------------------------------------------------------------


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> Table:
    """A table whose first column is text and whose other columns are numbers."""
    made = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
    for place, column in enumerate(columns):
        made.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def finish(name: str, options: argparse.Namespace, results: Sequence[Mapping[str, Any]], *tables: Table) -> None:
    """Print the tables and the machine, and write everything to `--json`."""
    console, used, where = Console(), kernel(), machine()
    for made in tables:
        console.print(made)
    state = used.get("dispatch") if used.get("available") else f"off ({used.get('reason')})"
    console.print(f"{where['processor']}, {where['threads']} threads on {where['cores']} cores; kernel: {state}")
    if options.json:
        plain = {key: value for key, value in vars(options).items() if key not in ("json", "measure")}
        document = {"benchmark": name, "options": plain, "seed": options.seed, "machine": where}
        document |= {"versions": versions(), "kernel": used, "results": list(results)}
        write_text(options.json, json.dumps(document, indent=1, default=str) + "\n")
