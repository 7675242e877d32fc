"""`diml train`: train an embedder, select its best epoch, test it once."""

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

from diml.cli.output import print_reports
from diml.cli.parsing import parse_words
from diml.matching import Matcher
from diml.training.config import (
    FIELDS,
    TrainConfig,
    checked_settings,
    field_values,
    merge_recipe,
    read_config,
)

if TYPE_CHECKING:
    from diml.training import TrainResult


@dataclass(frozen=True, kw_only=True)
class TrainCommand(TrainConfig):
    """Train an embedder on a data set. A run is a folder, which all other commands accept as a model.

    For instance:

    diml train orl --frozen-backbone --output runs/orl-head

    diml train orl --objective margin --batch-size 16 --epochs 5 --lr 1e-5 --output runs/orl-margin

    diml train grocery --data data --objective multisimilarity --similarity structural --epsilon 0.02 --size 160

    diml train --preset cub200/margin_b12_distance --data data

    diml train --resume --output runs/orl-margin

    torchrun --nproc-per-node 2 -m diml train orl --objective margin --batch-size 16
    """

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Name of the data set; `diml datasets` lists them."""

    matcher: Annotated[Matcher, tyro.conf.OmitArgPrefixes] = Matcher()
    """Matching settings of structural objectives, validation and test; saved with the embedder."""

    preset: str | None = None
    """Start from one of the authors' runs, by name (`diml presets`); flags and --config override it."""

    config: Path | None = None
    """YAML file with any of these settings; it overrides --preset, and flags override it."""

    resume: bool = False
    """Continue the run in --output; its settings need not be repeated."""

    progress: bool = True
    """Show a progress bar and one line per epoch."""

    def run(self) -> int:
        """Train, then print the test results."""
        from diml.training import train
        from diml.training.interrupts import TrainingStopped

        assert isinstance(self, _WithDefaults) or not (self.preset or self.config), "parse() handles these"
        settings = TrainConfig(**{name: getattr(self, name) for name in FIELDS})
        try:
            result = train(settings, resume=self.resume, progress=self.progress)
        except TrainingStopped as stopped:
            if _prints():
                print(f"diml train: {stopped}", file=sys.stderr)
            return 130
        if _prints():
            print_result(settings, result)
        return 0


COMMAND = TrainCommand


class _WithDefaults:
    """Marks a `TrainCommand` whose defaults come from --preset, --config or --resume."""


def parse(words: Sequence[str]) -> TrainCommand:
    """Parse the words after `diml train`: flags override --config, which overrides --preset, which overrides defaults.

    Raises:
        ValueError, FileNotFoundError: no such preset, file or run; an unknown key; a value of another type.
        SystemExit: from the parser: 0 after --help, 2 for invalid options.
    """
    return parse_words(_with_defaults(_given_defaults(words)), "train", words, pairs=True)


def _given_defaults(words: Sequence[str]) -> dict[str, Any]:
    """Settings of the run to resume, the preset and the file."""
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("--preset", "--config", "--output"):
        known.add_argument(name)
    known.add_argument("--resume", action="store_true")
    known.add_argument("--frozen-backbone", action=argparse.BooleanOptionalAction)
    try:
        given, rest = known.parse_known_args(list(words))
    except argparse.ArgumentError:  # a flag without its value: the real parser has the better message
        return {}
    settings: list[Mapping[str, Any]] = []
    frozen: bool | None = given.frozen_backbone
    if given.resume and not {"-h", "--help"} & set(words):
        named = given.preset or given.config or any(not word.startswith("-") for word in rest)
        settings.append(_settings_of_run(given.output, named=bool(named)))
    if given.preset:
        from diml.training.presets import preset

        settings.append(checked_settings(preset(given.preset), f"preset {given.preset}"))
    if given.config:
        settings.append(read_config(given.config))
    if frozen is not None:
        settings.append({"frozen_backbone": frozen})
    return field_values(merge_recipe(*settings))


def _settings_of_run(output: str | None, *, named: bool) -> dict[str, Any]:
    """Settings of the run to resume; none without --output if the words name its data set instead."""
    if output is not None:
        path = Path(output) / "config.yaml"
        if not path.is_file():
            raise FileNotFoundError(
                f"output: no run to resume in {output} (no {path.name}); omit --resume to start one"
            )
        return read_config(path)
    if not named:
        raise ValueError("output: --resume needs the folder of the run, got none; use --resume --output FOLDER")
    return {}


def _with_defaults(values: Mapping[str, Any]) -> type[TrainCommand]:
    """`TrainCommand` with other defaults, which its help shows."""
    hints = get_type_hints(TrainCommand, include_extras=True)
    fields = [(name, hints[name], dataclasses.field(default=value)) for name, value in values.items()]
    namespace = {"__doc__": TrainCommand.__doc__}
    made: type[TrainCommand] = dataclasses.make_dataclass(
        "TrainCommand", fields, bases=(TrainCommand, _WithDefaults), frozen=True, kw_only=True, namespace=namespace
    )
    return made


def _prints() -> bool:
    """Whether this process is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


def print_result(config: TrainConfig, result: TrainResult, *, table: bool = True) -> None:
    """Print the test, what training has changed, and the epoch that was kept."""
    from diml.training.baseline import gain_lines, reports_of_test

    if table:
        reports = reports_of_test(result.folder.name, result.test, result.frozen)
        print_reports(f"{config.dataset}, test", reports)
    for line in gain_lines(config, result.test, result.frozen):
        print(line)
    if result.best_epoch is not None and result.best_value is not None:
        value = f"{config.select_on} {config.metric} {100 * result.best_value:.2f}"
        print(f"Best epoch: {result.best_epoch}, selected by {value} (K = {config.select_rerank_at})")
    if result.skipped_steps:
        print(f"Steps skipped (not finite, or no readable image): {result.skipped_steps}")
    print(f"Run: {result.folder}")
