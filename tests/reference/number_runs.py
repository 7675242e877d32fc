"""Run all cases of `number_cases` through the functions of one API, with the compiled kernel and without, and in teams.

A script that has such functions calls `main`; each way runs in a process of its own, as the kernel is chosen when
diml is imported. Knows nothing of diml.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reference.number_cases import CASES, METRICS_PARTS, compare, inputs_hashes, numbers, team_cases

#: Way -> its environment.
WAYS = {"native": {"DIML_NATIVE": "1"}, "torch": {"DIML_NATIVE": "0"}}
#: Threads and processes; and threads that wait do so asleep, as others may want the processor.
THREADS, TEAM = 2, 2
THREADING = {"OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "PASSIVE"}
TEAM_GROUP = "evaluate_in_team"

#: Where all of these are alike, numbers are the same bit by bit.
DECISIVE = ("torch", "cpu", "capability", "dispatch", "numpy", "scikit-learn", "pytorch-metric-learning")
#: Written in place of numbers without the kernel, where they are those with it to the last bit.
AS_NATIVE = "as native"

Adapter = Callable[..., Any]


def main(adapters: Mapping[str, Adapter], about: Callable[[], dict[str, Any]]) -> None:
    """Entry of a script with adapters: `SCRIPT OUT.json` runs everything, `SCRIPT --way OUT.json` one way of it.

    Args:
        adapters: group -> function that takes a case; all of `CASES`, and `TEAM_GROUP`, which works in a process group.
        about: what the API says of itself: `dispatch`, the instruction set of the kernel or None, and whatever else.
    """
    out = Path(sys.argv[-1])
    if sys.argv[1] == "--way":
        out.write_text(json.dumps(one_way(adapters, about)))
    else:
        out.write_text(as_text(collect(Path(sys.argv[0]))))


def one_way(adapters: Mapping[str, Adapter], about: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Numbers of this process: of all cases, or, in a team, of those that teams share."""
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")  # some cases stop early on purpose
    if os.environ.get("WORLD_SIZE", "1") == "1":
        groups = {group: cases() for group, cases in CASES.items()}
        return {"machine": machine() | about(), "numbers": _numbers(adapters, groups)}
    torch.distributed.init_process_group("gloo")
    try:
        return {"numbers": _numbers(adapters, {TEAM_GROUP: team_cases()})}
    finally:
        torch.distributed.destroy_process_group()


def _numbers(adapters: Mapping[str, Adapter], groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        f"{group}: {name}": numbers(adapters[group](**case))
        for group, cases in groups.items()
        for name, case in cases.items()
    }


def collect(script: Path) -> dict[str, Any]:
    """Run a script with adapters in every way; AssertionError where a team does not find what one process finds.

    Returns:
        `machine`, `inputs` (hashes) and `numbers`: way -> case -> its numbers.
    """
    found: dict[str, Any] = {"machine": {}, "inputs": inputs_hashes(), "numbers": {}}
    for way, settings in WAYS.items():
        (alone,) = _run(script, [settings])
        found["machine"] = alone["machine"] | {k: v for k, v in found["machine"].items() if v is not None}
        found["numbers"][way] = alone["numbers"]
        port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(TEAM)}
        team = _run(script, [settings | port | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(TEAM)])
        assert all(member == team[0] for member in team), "members of a team disagree"
        for name, part in team[0]["numbers"].items():
            _check_team(alone["numbers"][name.replace(TEAM_GROUP, "evaluate")], part, f"{way}, {name}")
        found["numbers"][way] |= team[0]["numbers"]
    return found


def _check_team(alone: dict[str, Any], team: dict[str, Any], where: str) -> None:
    """AssertionError where a team ranks or counts otherwise than one process.

    Metrics of a query may differ in the last bit, as they are sums over a table that is as wide as the largest class of
    those queries that are measured together. Where they do, a line on standard error says so.
    """
    for name in alone:
        found = compare(alone[name], team[name], name not in METRICS_PARTS, where=f"{where}/{name}", close=1e-14)
        assert not found, found
    if last_bits := compare(alone, team, True, where=where):
        print(f"one process and {TEAM} differ in last bits: {last_bits}", file=sys.stderr)


def _run(script: Path, environments: list[dict[str, str]]) -> list[dict[str, Any]]:
    """What so many processes of a script, side by side, wrote."""
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / f"{i}.json" for i in range(len(environments))]
        processes = [
            subprocess.Popen(
                [sys.executable, str(script), "--way", str(place)], env=os.environ | THREADING | environment
            )
            for place, environment in zip(places, environments, strict=True)
        ]
        assert [process.wait() for process in processes] == [0] * len(processes), script
        return [json.loads(place.read_text()) for place in places]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def machine() -> dict[str, Any]:
    """What can decide about the last bit of a number."""
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cpu": _cpu(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _cpu() -> str:
    """Model of the processor by name and numbers (its name alone is vague on virtual machines)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    parts = ", ".join(f"{name} {said[name]}" for name in ("cpu family", "model", "stepping") if name in said)
    return f"{said.get('model name', platform.machine())}, {parts}"


def same_machine(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two `machine` blocks are alike in all that is `DECISIVE`."""
    return all(recorded.get(name) == now.get(name) for name in DECISIVE)


def as_text(record: Mapping[str, Any]) -> str:
    """A record as JSON with a line a case; `read` is the way back."""
    ways = []
    native = record["numbers"]["native"]
    for way, cases in record["numbers"].items():
        if way != "native":
            cases = {name: AS_NATIVE if part == native[name] else part for name, part in cases.items()}
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(part)}" for name, part in cases.items())
        ways.append(f"{json.dumps(way)}: {{\n{lines}\n}}")
    head = "".join(f"{json.dumps(name)}: {json.dumps(record[name])},\n" for name in ("machine", "inputs"))
    return f'{{\n{head}"numbers": {{\n' + ",\n".join(ways) + "\n}\n}\n"


def read(place: Path) -> dict[str, Any]:
    """A record as `collect` gave it."""
    record: dict[str, Any] = json.loads(place.read_text())
    native = record["numbers"]["native"]
    for cases in record["numbers"].values():
        cases.update({name: native[name] for name, part in cases.items() if part == AS_NATIVE})
    return record
