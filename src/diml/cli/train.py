"""`diml train`: train an embedder, choose its best epoch, test it once."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import tyro

from diml.training.config import FIELDS, TrainConfig, checked_values, read_config

if TYPE_CHECKING:
    from diml.training import TrainResult


@dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """Train an embedder on a data set; a run is a folder, and `diml evaluate` takes it as a model.

    For instance:

    diml train orl --objective margin --batch-size 16 --epochs 5 --lr 1e-5 --output runs/orl-margin

    diml train grocery --data data --objective multisimilarity --similarity structural --size 160

    diml train --preset cub200/margin_b12_distance --data data

    diml train --resume --output runs/orl-margin

    torchrun --nproc-per-node 2 -m diml train orl --objective margin --batch-size 16
    """

    dataset: Annotated[str, tyro.conf.Positional]
    """Name of the data set; `diml datasets` lists them."""

    preset: str | None = None
    """Start from a run of the authors, by name (`diml presets`); flags and --config go before it."""

    config: Path | None = None
    """YAML file with any of these settings; flags go before it, and it goes before --preset."""

    resume: bool = False
    """Go on with the run in --output, whose settings need not be said again."""

    progress: bool = True
    """Show a progress bar and a line an epoch."""

    def run(self) -> int:
        """Train, then print the table of the test."""
        from diml.training import TrainingStopped, train

        assert isinstance(self, _Filled) or not (self.preset or self.config), "parse() looks at these"
        settings = TrainConfig(**{name: getattr(self, name) for name in FIELDS})
        try:
            result = train(settings, resume=self.resume, progress=self.progress)
        except TrainingStopped as stopped:
            if _prints():
                print(f"diml train: {stopped}", file=sys.stderr)
            return 130
        if _prints():
            _print_result(settings, result)
        return 0


class _Filled:
    """Marks a `Train` whose defaults come from --preset, --config or --resume."""


def parse(words: Sequence[str]) -> Train:
    """Parse the words after `diml train`: flags go before --config, that before --preset, that before defaults.

    Raises:
        ValueError, FileNotFoundError: no such preset, file or run; an unknown key; a value of another type.
        SystemExit: from the parser: 0 after --help, 2 for wrong options.
    """
    return tyro.cli(_with_defaults(_given_defaults(words)), prog="diml train", args=list(words))


def _given_defaults(words: Sequence[str]) -> dict[str, Any]:
    """Settings that the run to be resumed, a preset or a file has."""
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("--preset", "--config", "--output"):
        known.add_argument(name)
    known.add_argument("--resume", action="store_true")
    try:
        given, rest = known.parse_known_args(list(words))
    except argparse.ArgumentError:  # a flag without its value: the real parser says it better
        return {}
    values: dict[str, Any] = {}
    if given.resume and not {"-h", "--help"} & set(words):
        named = given.preset or given.config or any(not word.startswith("-") for word in rest)
        values |= _settings_of_run(given.output, named=bool(named))
    if given.preset:
        from diml.training.presets import preset

        values |= checked_values(preset(given.preset), f"preset {given.preset}")
    if given.config:
        values |= read_config(given.config)
    return values


def _settings_of_run(output: str | None, *, named: bool) -> dict[str, Any]:
    """Settings of the run to be resumed; none without --output, when the words may name its data set instead."""
    if output is not None:
        path = Path(output) / "config.yaml"
        if not path.is_file():
            raise FileNotFoundError(
                f"output: no run to resume in {output} (no {path.name}); leave --resume away to begin one"
            )
        return read_config(path)
    if not named:
        raise ValueError("output: --resume needs the folder of the run, got none; say --resume --output FOLDER")
    return {}


def _with_defaults(values: Mapping[str, Any]) -> type[Train]:
    """`Train` with other defaults, which its help shows."""
    hints = get_type_hints(Train, include_extras=True)
    fields = [(name, hints[name], dataclasses.field(default=value)) for name, value in values.items()]
    namespace = {"__doc__": Train.__doc__}
    made: type[Train] = dataclasses.make_dataclass(
        "Train", fields, bases=(Train, _Filled), frozen=True, kw_only=True, namespace=namespace
    )
    return made


def _prints() -> bool:
    """Whether this process is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


def _print_result(config: TrainConfig, result: TrainResult) -> None:
    from rich.console import Console

    from diml.evaluation.tables import difference_table, report_table

    console = Console()
    reports = {result.folder.name: result.test}
    title = f"{config.dataset}, test: {len(result.test.queries)} queries, {result.test.gallery_size} gallery images"
    console.print(report_table(reports, title))
    differences = difference_table(reports)
    if differences is not None:
        console.print(differences)
    if result.best_epoch is not None and result.best_value is not None:
        chosen = f"Best epoch: {result.best_epoch}, by {config.select_on} {config.metric} {100 * result.best_value:.2f}"
        print(f"{chosen} (K = {config.select_rerank})")
    if result.left_out:
        print(f"Left out as they were not finite: {result.left_out} steps")
    print(f"Run: {result.folder}")
