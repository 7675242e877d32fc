"""Training: a configuration in, a folder with the best embedder out.

Read in this order: `config`, `parts`, `optim`, `steps`, `distributed`, `checkpoints`, `loop`; `logs` and `curves` write
down what happens, `stopping` is about Ctrl-C, `presets` has the authors' runs, `runs` reads run folders
back, `sweep` and `sweep_table` make a grid of runs and its table.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from diml.training.config import TrainConfig, read_config

if TYPE_CHECKING:
    from diml.training.checkpoints import read_checkpoint
    from diml.training.curves import draw_curves
    from diml.training.logs import read_records
    from diml.training.loop import TrainResult, train
    from diml.training.steps import NonFiniteError
    from diml.training.stopping import TrainingStopped

__all__ = [
    "NonFiniteError",
    "TrainConfig",
    "TrainResult",
    "TrainingStopped",
    "draw_curves",
    "read_checkpoint",
    "read_config",
    "read_records",
    "train",
]

#: Where each name lives; opened when first used, so that a configuration can be looked at without timm and matplotlib.
_FILE_OF = {
    "NonFiniteError": "steps",
    "TrainResult": "loop",
    "TrainingStopped": "stopping",
    "draw_curves": "curves",
    "read_checkpoint": "checkpoints",
    "read_records": "logs",
    "train": "loop",
}


def __getattr__(name: str) -> Any:
    if name not in _FILE_OF:
        raise AttributeError(f"module 'diml.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diml.training.{_FILE_OF[name]}"), name)
