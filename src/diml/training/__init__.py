"""Training: a configuration in, a folder with the best embedder out.

Read in this order: `config` (settings) and `presets` (the authors' runs), `split` (images), `components` (network,
objective, sampler), `optim`, `embedding`, `steps`, `loop`. `runs` handles the folder of a run, `checkpoints` and
`randomness` make it resumable, `logs` and `curves` record it, `interrupts` handles Ctrl-C, and `sweep` trains several
combinations of settings.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from diml.extras import require

if TYPE_CHECKING:
    from diml.training.config import TrainConfig, read_config
    from diml.training.loop import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "read_config", "train"]

#: Module of each name; imported on first use, so that presets and configurations can be read without timm.
_MODULE_OF = {
    "TrainConfig": "config",
    "TrainResult": "loop",
    "read_config": "config",
    "train": "loop",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'diml.training' has no attribute {name!r}")
    require("train", "training")
    return getattr(importlib.import_module(f"diml.training.{_MODULE_OF[name]}"), name)
