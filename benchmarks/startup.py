"""Start-up: `import diml` against `import torch`, `diml --help`, and a search from start to result, each in a process
of its own.

    python benchmarks/startup.py --runs 15 --json runs/startup.json
    python benchmarks/startup.py --search shop.index query.jpg

"beyond torch" is the difference, run by run, of a command and the `import torch` just before it. Wall-clock seconds
depend on what else the machine does; seconds of CPU time hardly do. Bytecode is written and used, as pip leaves it
for an installed package: an environment that forbids it (PYTHONDONTWRITEBYTECODE) would compile diml in every run.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable

import measure

COMMANDS = {
    "python -c 'import torch'": ["-c", "import torch"],
    "python -c 'import diml'": ["-c", "import torch, diml"],
    "diml --help": ["-m", "diml", "--help"],
}
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def main() -> None:
    made = measure.parser(__doc__, runs=9)
    made.add_argument("--search", nargs=2, metavar=("INDEX", "IMAGE"), help="also time `diml search INDEX IMAGE`")
    options = measure.read(made)
    commands = dict(COMMANDS)
    if options.search:
        index, image = options.search
        commands["diml search, --explain none"] = ["-m", "diml", "search", index, image, "--explain", "none"]
        commands["diml search"] = ["-m", "diml", "search", index, image]
    used: dict[str, list[float]] = {name: [] for name in commands}
    sides = {name: start(arguments, used[name]) for name, arguments in commands.items()}
    seconds = measure.alternate(sides, options.runs, options.warmup)
    used = {name: values[options.warmup :] for name, values in used.items()}
    results = []
    for name in commands:
        results.append({"command": name, "seconds": measure.spread(seconds[name]), "cpu": measure.spread(used[name])})
        if "diml" in name and name != "diml --help":
            results.append({"command": f"{name}, beyond torch"} | beyond(name, seconds, used))
    rows = [[one["command"], measure.shown(one["seconds"]), measure.shown(one["cpu"])] for one in results]
    table = measure.table("Seconds: median, min..max", ("", "wall clock", "CPU time"), rows)
    measure.finish("startup", options, results, table)


def beyond(name: str, seconds: dict[str, list[float]], used: dict[str, list[float]]) -> dict[str, object]:
    """Seconds of a command minus those of `import torch`, run by run."""
    torch_alone = next(iter(COMMANDS))
    return {
        kind: measure.spread([ours - its for its, ours in zip(values[torch_alone], values[name], strict=True)])
        for kind, values in (("seconds", seconds), ("cpu", used))
    }


def start(arguments: list[str], used: list[float]) -> Callable[[], object]:
    """Run Python with these arguments; `used` gets the CPU seconds of each run."""

    def run() -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=_ENVIRONMENT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    return run


if __name__ == "__main__":
    main()
