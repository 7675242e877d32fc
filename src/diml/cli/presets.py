"""`diml presets`: list the authors' training runs, or print the settings of one."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass
from typing import Annotated, Any

import tyro


@dataclass(frozen=True, kw_only=True)
class PresetsCommand:
    """List the authors' training runs, or print the settings of one as YAML.

    For instance:

    diml presets

    diml presets cub200/margin_b12_distance

    diml presets cub200/margin_b12_distance > margin.yaml, to edit it and run: diml train --config margin.yaml

    diml train --preset cub200/margin_b12_distance --data data
    """

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = None
    """Preset to print; by default all are listed."""

    json: bool = False
    """Print JSON instead of a table or YAML."""

    def run(self) -> int:
        """Print the list or the settings."""
        from diml.training.presets import NOTES, preset, preset_names

        if self.name is None:
            rows = [{"name": name, **preset(name), "note": NOTES.get(name)} for name in preset_names()]
            if self.json:
                print(json_format.dumps({"presets": rows}, indent=2))
            else:
                _print_table(rows)
            return 0
        settings = preset(self.name)
        if self.json:
            print(json_format.dumps(settings, indent=2))
        else:
            print(_as_yaml(settings, NOTES.get(self.name)), end="")
        return 0


COMMAND = PresetsCommand


def _as_yaml(settings: dict[str, Any], note: str | None) -> str:
    import textwrap

    import yaml

    comment = "".join(f"# {line}\n" for line in textwrap.wrap(note or "", 110))
    return comment + yaml.safe_dump(settings, sort_keys=False)


def _print_table(rows: list[dict[str, Any]]) -> None:
    """One row per run, as the data sets differ little; the notes have the differences."""
    from rich.console import Console
    from rich.table import Table

    from diml.training.presets import COMMON, EPOCHS, NOTES

    datasets = tuple(EPOCHS)
    table = Table()
    for column in ("RUN", "objective", "miner"):
        table.add_column(column, no_wrap=True)
    for row in rows[: len(rows) // len(datasets)]:
        run = row["name"].partition("/")[2]
        noted = any(f"{dataset}/{run}" in NOTES for dataset in datasets)
        table.add_row(run + " *" * noted, row["objective"], row["miner"])
    console = Console()
    epochs = ", ".join(f"{dataset} ({count} epochs)" for dataset, count in EPOCHS.items())
    console.print(f"The authors' runs, named DATASET/RUN. DATASET: {epochs}.")
    console.print(table)
    for note in dict.fromkeys(NOTES.values()):
        names = ", ".join(name for name, its in NOTES.items() if its == note)
        console.print(f"* {names}: {note}", highlight=False)
    console.print(
        f"All others: {COMMON['model']}, D = {COMMON['dim']}, batches of {COMMON['batch_size']} with "
        f"{COMMON['per_class']} images per class, {COMMON['optimizer']}, lr {COMMON['lr']:g}. Settings of a run: "
        "diml presets DATASET/RUN. Training: diml train --preset DATASET/RUN --data FOLDER"
    )
