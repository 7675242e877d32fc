"""`diml sweep`: a grid of trainings over seeds from one file, and one table of results."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Train every run of a file with every seed, one after the other, and write one table over seeds.

    What is finished is skipped, and what was begun goes on, so that the same command resumes after Ctrl-C or a crash.

    For instance:

    diml sweep benchmarks/grocery_training.yaml

    diml sweep benchmarks/grocery_training.yaml --table-only
    """

    file: Annotated[Path, tyro.conf.Positional]
    """YAML file with `base`, `runs`, `seeds`, `output` and perhaps `baseline`; docs/training.md has an example."""

    table_only: bool = False
    """Train nothing; make the table of what is finished."""

    progress: bool = True
    """Show progress bars and a line an epoch."""

    def run(self) -> int:
        """Train what is left, then print and write the table."""
        from rich.console import Console

        from diml.training.sweep import read_sweep, run_sweep
        from diml.training.sweep_table import collect_results, results_tables, write_results

        sweep, failed = read_sweep(self.file), {}
        if not self.table_only:
            try:
                failed = run_sweep(sweep, say=_say, progress=self.progress)
            except KeyboardInterrupt:
                _say(f"diml sweep: stopped, and saved; go on with: diml sweep {self.file}")
                return 130
        results, console = collect_results(sweep), Console()
        if not results.rows and not failed:
            raise ValueError(
                f"{self.file}: nothing is finished yet in {sweep.output}; leave --table-only away to train"
            )
        for table in results_tables(results):
            console.print(table)
        for title in results.missing:
            why = failed.get(title, "not finished with these settings")
            console.print(f"Missing: {title}: {why}", markup=False, highlight=False, soft_wrap=True)
        if results.rows:
            print("Written: " + ", ".join(str(path) for path in write_results(sweep.output, results, sweep.seeds)))
        return 1 if failed else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
