"""`diml sweep`: train several combinations of settings, each with several seeds, and tabulate the results."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from diml.cli import errors
from diml.cli.parsing import switch_off


@dataclass(frozen=True, kw_only=True)
class SweepCommand:
    """Train every combination of settings in a file with every seed, one after the other, and tabulate the results.

    Finished runs are skipped and unfinished ones resumed, so the same command continues after Ctrl-C or a crash.

    For instance:

    diml sweep benchmarks/grocery_training.yaml

    diml sweep benchmarks/grocery_training.yaml --table-only
    """

    file: Annotated[Path, tyro.conf.Positional]
    """YAML file with `base`, `runs`, `seeds`, `output` and optionally `baseline`; docs/training.md has an example."""

    table_only: bool = False
    """Only tabulate the finished runs."""

    progress: Annotated[bool, switch_off("Show no progress bars, and no line per epoch.")] = True

    def run(self) -> int:
        """Train the remaining runs, then print and write the table."""
        from rich.console import Console

        from diml.training.sweep import collect_results, read_sweep, results_tables, run_sweep, write_results

        sweep, failed = read_sweep(self.file), {}
        if not self.table_only:
            try:
                failed = run_sweep(sweep, say=_say, describe=_described, progress=self.progress)
            except KeyboardInterrupt:
                _say(f"diml sweep: stopped; every checkpoint is whole. Resume with: diml sweep {self.file}")
                return 130
        results, console = collect_results(sweep), Console()
        if not results.rows and not failed:
            raise ValueError(f"{self.file}: no run in {sweep.output} is finished yet; omit --table-only to train")
        for table in results_tables(results):
            console.print(table)
        for title in results.missing:
            why = failed.get(title, "not finished with these settings")
            console.print(f"Missing: {title}: {why}", markup=False, highlight=False, soft_wrap=True)
        if results.rows:
            print("Written: " + ", ".join(str(path) for path in write_results(sweep.output, results, sweep.seeds)))
        return 1 if failed else 0


COMMAND = SweepCommand


def _described(error: Exception) -> str:
    """The line for an error of a run, as for that of a command; the traceback of a bug is printed above it."""
    line = errors.explained(error)
    if line is None or os.environ.get("DIML_TRACEBACK"):
        _say(errors.traceback_of(error))
    return errors.bug_report(error) if line is None else line


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
