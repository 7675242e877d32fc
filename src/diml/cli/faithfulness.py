"""`diml faithfulness`: how far the explanations of a model can be trusted, in numbers."""

from __future__ import annotations

import json as json_format
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from diml.cli.evaluate import open_dataset, open_embedder

if TYPE_CHECKING:
    from diml.data import DataSet
    from diml.faithfulness import Judgement, Measures
    from diml.models import Embedder

_STDOUT = Path("-")
Warps = tuple[Literal["identity", "crop", "flip", "shift", "rotation", "homography"], ...]


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """Measure how faithful explanations are, on pairs of one class by chance: whether the ledger sums to the score,
    whether regions of high credit matter to it, whether mass lands where it belongs, whether the largest matches stay
    when the query is disturbed; and the same with random weights, of which nothing should be left.

    For instance:

    diml faithfulness orl

    diml faithfulness grocery --data data --model runs/mine --grid 7 --pairs 200 --output runs/faithfulness

    diml faithfulness orl --epsilon 0.005 --warps flip shift --no-grad-cam --no-sanity --json -
    """

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Name of the data set; `diml datasets` lists them. Of cub200 the locations of parts are used where they are."""

    data: Path = Path("data")
    """Folder that has the data set inside; for `folder` and `csv`, that folder or file itself."""

    protocol: str | None = None
    """Which of the data set's protocols; its first one when omitted. Pairs are of its test images."""

    model: str = "mobilenetv2_100"
    """A timm name, the folder of a run or of a saved embedder, or a checkpoint file of the released code."""

    architecture: str | None = None
    """Backbone of a checkpoint file, for instance resnet50."""

    pairs: int = 100
    """How many pairs of one class, by chance; each query once."""

    grid: int | None = None
    """Regions a side: G x G, 1 to 14; by default as the model was saved, else 4."""

    resize: Literal["crop", "square"] | None = None
    """`crop`: short side to 256, centre 224; `square`: all of it to 224 x 224. By default the model's own."""

    marginals: Literal["cross_correlation", "uniform"] = "cross_correlation"
    """Mass of each region: by its agreement with the other image, or the same for all."""

    epsilon: float = 0.05
    """Entropy of the transport plan, in units of cosine; smaller is sharper and takes more iterations."""

    tolerance: float = 4e-6
    """Marginal error at which the plan is done."""

    max_iterations: int = 5000
    """Iterations after which an unfinished plan is taken as it is, and counted."""

    warps: Warps = ("identity", "crop", "flip", "shift", "rotation", "homography")
    """Known warps of one photo for the correspondence."""

    sharpen: float = 10.0
    """Factor of the sharper plan for showing that the correspondence is measured of too (`diml explain --sharpen`)."""

    steps: int = 6
    """Steps of deletion and insertion; each costs two embeddings for each order and pair."""

    top: int = 8
    """Largest entries of the ledger that must stay the same under noise and JPEG."""

    grad_cam: bool = True
    """Hold deletion against Grad-CAM too; needs the package grad-cam (diml[faithfulness])."""

    sanity: bool = True
    """Measure the same network with random weights as well; takes as long again."""

    output: Path | None = None
    """Folder for faithfulness.json and one image a measure."""

    json: Path | None = None
    """Write all numbers here; `-` prints them to standard output in place of the tables."""

    device: str = "cpu"
    """Where to compute, for instance cuda."""

    seed: int = 0
    """Of the pairs, warps, noise, random orders and weights, and the bootstrap."""

    def run(self) -> int:
        """Measure, print, write."""
        from diml.faithfulness import faithfulness

        measures = self._measures()
        dataset = open_dataset(self.dataset, self.data, self.protocol)
        embedder = self._embedder()
        found = faithfulness(
            embedder,
            dataset.test,
            pairs=self.pairs,
            measures=measures,
            sanity=self.sanity,
            progress=True,
            marginals=self.marginals,
            epsilon=self.epsilon,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )
        written = self._write(found, self._document(found, dataset, embedder))
        self._print(found, written)
        return 0

    def _measures(self) -> Measures:
        """What is measured; refused here before a model is loaded."""
        from diml.faithfulness import Measures

        if self.pairs < 1:
            raise ValueError(f"pairs: need at least 1, got {self.pairs}")
        names = ("warps", "steps", "top", "sharpen", "grad_cam", "seed")
        return Measures(**{name: getattr(self, name) for name in names})

    def _embedder(self) -> Embedder:
        return open_embedder(self.model, self.grid, self.resize, architecture=self.architecture).to(self.device)

    def _document(self, found: Judgement, dataset: DataSet, embedder: Embedder) -> dict[str, Any]:
        """All numbers with how they were found."""
        from importlib.metadata import version

        plain: dict[str, Any] = json_format.loads(json_format.dumps(vars(replace(self)), default=str))
        filled = {"protocol": dataset.protocol, "grid": embedder.grid, "resize": embedder.preprocess.mode}
        return {
            "unit": "fraction",
            "config": plain | filled,
            "versions": {name: version(name) for name in ("diml", "torch", "numpy", "pillow")},
            "machine": {"system": platform.platform(), "processor": platform.machine()},
            "studies": found.to_dict(),
        }

    def _write(self, found: Judgement, document: dict[str, Any]) -> list[Path]:
        """Files that were asked for; JSON may go to standard output."""
        from diml.faithfulness import write_plots
        from diml.files import write_text

        text = json_format.dumps(document, indent=1, allow_nan=False) + "\n"
        written: list[Path] = []
        if self.json == _STDOUT:
            sys.stdout.write(text)
        elif self.json is not None:
            written.append(write_text(self.json, text))
        if self.output is not None:
            written.append(write_text(self.output / "faithfulness.json", text))
            written += write_plots(found, self.output)
        return written

    def _print(self, found: Judgement, written: list[Path]) -> None:
        """The tables; to standard error when JSON goes to output."""
        from rich.console import Console

        from diml.faithfulness import tables

        console = Console(stderr=self.json == _STDOUT, highlight=False)
        for name, study in found.studies.items():
            for table in tables(found, name):
                console.print(table)
            if study.unfinished:
                console.print(
                    f"{name}: {study.unfinished} plans stopped above the tolerance; raise --max-iterations or "
                    "--epsilon",
                    markup=False,
                    soft_wrap=True,
                )
        if written:
            console.print("Written: " + ", ".join(str(path) for path in written), markup=False, soft_wrap=True)
        elif self.json is None:
            console.print("Add --output FOLDER for JSON and images.", markup=False)
