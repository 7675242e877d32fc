"""Start-up: `import diml` against `import torch`, and `diml --help`, each in a process of its own.

    python benchmarks/startup.py --runs 15 --json runs/startup.json

"beyond torch" is the difference, run by run, of `import diml` and the `import torch` just before it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import measure

COMMANDS = {
    "python -c 'import torch'": ["-c", "import torch"],
    "python -c 'import diml'": ["-c", "import torch, diml"],
    "diml --help": ["-m", "diml", "--help"],
}


def main() -> None:
    made = measure.parser(__doc__, runs=9)
    options = measure.read(made)
    seconds = measure.alternate(
        {name: start(arguments) for name, arguments in COMMANDS.items()}, options.runs, options.warmup
    )
    torch_alone, with_diml, _ = seconds.values()
    seconds["import diml, beyond torch"] = [ours - its for its, ours in zip(torch_alone, with_diml, strict=True)]
    results = [{"command": name, "seconds": measure.spread(values)} for name, values in seconds.items()]
    rows = [[result["command"], measure.shown(result["seconds"])] for result in results]
    measure.finish("startup", options, results, measure.table("Seconds: median, min..max", ("", "seconds"), rows))


def start(arguments: list[str]) -> Callable[[], object]:
    """Run Python with these arguments."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
