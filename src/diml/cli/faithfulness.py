"""`diml faithfulness`: how far the explanations of a model can be trusted, in numbers."""

from __future__ import annotations

import json as json_format
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from diml.cli.options import DataFlags, DataOptions, MatcherFlags, MatcherOptions, ModelFlags, ModelOptions
from diml.cli.parsing import switch_off

if TYPE_CHECKING:
    from diml.data import DataSet
    from diml.faithfulness import FaithfulnessReport, Measures
    from diml.matching import Matcher
    from diml.models import Embedder

_STDOUT = Path("-")
Warps = tuple[Literal["identity", "crop", "flip", "shift", "rotation", "homography"], ...]
#: Options that are passed on as `Measures`.
_MEASURES = (
    "warps",
    "steps",
    "top",
    "grad_cam",
    "ledgers",
    "plan",
    "controls",
    "interaction",
    "gallery_removal",
    "occlusions",
    "seed",
)


@dataclass(frozen=True, kw_only=True)
class FaithfulnessCommand:
    """Measure how faithful explanations are, on random pairs of one class: whether the ledger sums to the score,
    regions of high credit matter to it more than other regions of the same spatial structure, matched regions matter
    together, mass and parts reach the true counterparts, the largest matches and the parts are stable under
    perturbations of the query, and occluded regions stay unmatched; and the same for random weights, as a control.

    For instance:

    diml faithfulness orl

    diml faithfulness grocery --data data --model runs/mine --grid 7 --pairs 200 --output runs/faithfulness

    diml faithfulness orl --epsilon 0.005 --warps flip shift --no-grad-cam --no-sanity --json -
    """

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Name of the data set; `diml datasets` lists them. Keypoints of cub200 are used if present."""

    data: DataFlags = DataOptions()

    model: ModelFlags = ModelOptions()

    pairs: int = 100
    """Number of random pairs of one class from the test images; each query once."""

    matcher: MatcherFlags = MatcherOptions()

    warps: Warps = ("identity", "crop", "flip", "shift", "rotation", "homography")
    """Known warps of a photo for the correspondence; `--warps` without a value omits it."""

    steps: int = 6
    """Steps of deletion and insertion; each takes about two embeddings for each order and pair."""

    top: int = 8
    """Number of largest entries of the ledger compared under noise and JPEG compression."""

    grad_cam: Annotated[
        bool,
        switch_off("Do not compare deletion with Grad-CAM, which needs the package grad-cam (diml[faithfulness])."),
    ] = True

    ledgers: tuple[Literal["credit", "whole", "parts"], ...] = ("credit", "parts")
    """Ledgers that deletion and insertion test: `credit`, contributions to the structural score; `whole`, to the whole
    score, pooled cosine included; `parts`, whole parts, which are measured in other ways as well."""

    plan: Literal["exact", "scored"] = "exact"
    """Plan of these ledgers: `exact`, as explanations show, or `scored`, the plan that ranks. The scores that are
    recorded are those that rank, whichever is chosen."""

    controls: Annotated[
        bool,
        switch_off(
            "Omit the controls: deletion and insertion compared with changes of the same spatial structure "
            "(credit or parts shifted on the torus, mirrored, rotated, reversed, those of another pair, and "
            "random connected regions)."
        ),
    ] = True

    interaction: Annotated[
        bool,
        switch_off(
            "Omit the deletion and insertion of matched regions of both images together, and of as many unmatched"
            " ones. With the default settings a pair takes about 240 embeddings, of which these and the controls "
            "account for 90 each."
        ),
    ] = True

    gallery_removal: Literal["shuffle", "blur"] = "shuffle"
    """How `--interaction` removes regions from the gallery image: `shuffle` its pixels, which then resemble nothing in
    the blurred query, or `blur`, as from the query: two blurred images resemble each other."""

    occlusions: tuple[Literal["sunglasses", "mask", "border", "noise", "clutter"], ...] = ("border", "clutter")
    """Occlusions drawn into the query, under which the mass of the occluded regions should stay unmatched (`--share
    auto` takes the place of 1). `sunglasses` and `mask` are placed for aligned faces; `clutter` is cut from an image of
    another class. `--occlusions` without a value omits them."""

    sanity: Annotated[
        bool, switch_off("Do not measure the same network with random weights, which doubles the time.")
    ] = True

    output: Path | None = None
    """Folder for faithfulness.json and a figure for each measure. An interrupted command continues when it is given
    again with the same folder and settings."""

    json: Path | None = None
    """Write all numbers here; `-` prints them to standard output instead of the tables."""

    seed: int = 0
    """Of pairs, warps, noise, random orders and weights, and of the bootstrap."""

    def run(self) -> int:
        """Measure, print, write."""
        from diml.faithfulness import faithfulness
        from diml.faithfulness.report import unfinished_name
        from diml.files import require_writable, require_writable_file

        measures = self._measures()
        if self.output is not None:  # known before the work, not after
            require_writable(self.output)
        if self.json is not None and self.json != _STDOUT:
            require_writable_file(self.json)
        dataset = self.data.open(self.dataset).require_classes()
        embedder = self.model.open()
        notice = self.matcher.notice(embedder.matcher)
        if notice is not None:
            print(notice, file=sys.stderr)
        matcher = self.matcher.for_model(embedder)
        found = faithfulness(
            embedder,
            dataset.test,
            matcher=matcher,
            pairs=self.pairs,
            measures=measures,
            sanity=self.sanity,
            unfinished=self.output,
            progress=True,
        )
        written = self._write(found, self._document(found, dataset, embedder, matcher))
        self._print(found, written)
        if self.output is not None:
            for name in found.measurements:
                (self.output / unfinished_name(name)).unlink(missing_ok=True)
        return 0

    def _measures(self) -> Measures:
        """What is measured; raises before a model is loaded."""
        from diml.faithfulness import Measures

        if self.pairs < 1:
            raise ValueError(f"pairs: need at least 1, got {self.pairs}")
        return Measures(**{name: getattr(self, name) for name in _MEASURES})

    def _document(
        self, found: FaithfulnessReport, dataset: DataSet, embedder: Embedder, matcher: Matcher
    ) -> dict[str, Any]:
        """All numbers, and how they were obtained."""
        from importlib.metadata import version

        own = {name: getattr(self, name) for name in ("pairs", "sanity", *_MEASURES)}
        filled = {"grid": embedder.grid, "device": self.model.device} | embedder.preprocess.resizing()
        config = {"dataset": dataset.name, "data": str(self.data.data or "data"), "protocol": dataset.protocol}
        return {
            "unit": "fraction",
            "config": config | self.model.settings() | filled | own | {"matcher": matcher.to_dict()},
            "versions": {name: version(name) for name in ("diml", "torch", "numpy", "pillow")},
            "machine": {"system": platform.platform(), "processor": platform.machine()},
            "networks": found.to_dict(),
        }

    def _write(self, found: FaithfulnessReport, document: dict[str, Any]) -> list[Path]:
        """Write the files that were asked for; JSON may go to standard output."""
        from diml.files import write_text

        text = json_format.dumps(document, indent=1, allow_nan=False) + "\n"
        written: list[Path] = []
        if self.json == _STDOUT:
            sys.stdout.write(text)
        elif self.json is not None:
            written.append(write_text(self.json, text))
        if self.output is not None:
            from diml.faithfulness.plots import write_plots

            written.append(write_text(self.output / "faithfulness.json", text))
            written += write_plots(found, self.output)
        return written

    def _print(self, found: FaithfulnessReport, written: list[Path]) -> None:
        """The tables; to standard error when JSON is printed."""
        from rich.console import Console

        from diml.faithfulness.tables import tables

        console = Console(stderr=self.json == _STDOUT, highlight=False)
        for name, measured in found.measurements.items():
            for table in tables(found, name):
                console.print(table)
            per_pair = measured.embeddings / max(1, found.pairs)
            console.print(f"{name}: {found.pairs} pairs, {per_pair:.0f} embeddings per pair", markup=False)
            if measured.unconverged_plans:
                console.print(
                    f"{name}: {measured.unconverged_plans} plans stopped at max_iterations; raise --max-iterations or "
                    "--epsilon",
                    markup=False,
                    soft_wrap=True,
                )
        if written:
            console.print("Written: " + ", ".join(str(path) for path in written), markup=False, soft_wrap=True)
        elif self.json is None:
            console.print("Add --output FOLDER for JSON and figures.", markup=False)


COMMAND = FaithfulnessCommand
