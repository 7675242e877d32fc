"""`diml export-onnx`: a model as an ONNX file."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from diml.cli.options import ModelFlags, ModelOptions


@dataclass(frozen=True, kw_only=True)
class ExportOnnxCommand:
    """Write a model, from normalised images to pooled vectors and regions, to an ONNX file, whose metadata state the
    preprocessing. onnxruntime computes it, and the file gets its name only if it agrees with torch to 1e-4.

    For instance:

    diml export-onnx embedder.onnx

    diml export-onnx embedder.onnx --model runs/mine --grid 7
    """

    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.onnx")]
    """The file, which is replaced if it exists."""

    model: ModelFlags = ModelOptions()

    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> int:
        """Write the file and print what was checked."""
        embedder = self.model.open()
        difference = embedder.export_onnx(self.output)
        size = self.output.stat().st_size
        if self.json:
            facts = {"output": str(self.output), "difference": difference, "bytes": size}
            print(json_format.dumps(facts | {"fingerprint": embedder.fingerprint()}, indent=1))
            return 0
        print(f"{self.output}: {size / 1e6:,.1f} MB, differs from torch by {difference:.0e} at most")
        return 0


COMMAND = ExportOnnxCommand
