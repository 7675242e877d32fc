"""Small images in a CSV data set, and settings for training runs that take seconds."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from diml.training import TrainConfig

#: Settings of all test runs: a network with some hundred thousand weights on images of 64 pixels.
SMALL: dict[str, Any] = {
    "dataset": "csv",
    "model": "test_resnet",
    "pretrained": False,
    "dim": 16,
    "size": 64,
    "grid": 2,
    "batch_size": 8,
    "epochs": 2,
    "lr": 1e-3,
    "rerank_at": 5,
    "validation_fraction": 0.3,
    "sampler_options": ("batches_per_epoch=4",),
    "checkpoint_every": 2,
    "device": "cpu",
}


def make_images(folder: Path, *, train: int = 10, test: int = 4, each: int = 4) -> Path:
    """Write a CSV file with images whose classes differ in colour and stripes; returns its path."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(train + test):
        colour, period = random.uniform(0, 255, 3), int(random.integers(3, 12))
        for shot in range(each):
            stripes = (np.arange(72)[:, None] + np.arange(80)[None] * random.uniform(0.5, 1)) % period < period / 2
            pixels = colour * (0.5 + 0.5 * stripes[..., None]) + random.normal(0, 20, (72, 80, 3))
            path = folder / f"class{number}" / f"{shot}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
            rows.append([path.relative_to(folder).as_posix(), f"class{number}", "train" if number < train else "test"])
    with (folder / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split"], *rows])
    return folder / "images.csv"


def small_config(images: Path, output: Path, **changes: Any) -> TrainConfig:
    """Settings of a run that takes seconds."""
    return TrainConfig(**(SMALL | {"data": images, "output": output} | changes))


def start(code: str, *arguments: object, processes: int = 1, threads: int = 1) -> subprocess.Popen[str]:
    """Run `code` in Python, under torchrun if there are several processes; all on the loopback interface."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    script = [sys.executable]
    if processes > 1:
        script += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-addr", "127.0.0.1"]
        script += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    path = Path(str(arguments[0])) / "script.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    words = [str(argument) for argument in arguments[1:]]
    return subprocess.Popen(
        [*script, str(path), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint: network, objective, optimizer, random streams."""
    return load_file(checkpoint / "model.safetensors") | load_file(checkpoint / "training.safetensors")
