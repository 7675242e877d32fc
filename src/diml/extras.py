"""Optional dependencies: which extra installs which package, and an error that says so when one is missing."""

from __future__ import annotations

import importlib.util
from typing import Final

#: Extra of the package -> modules that it installs.
EXTRAS: Final[dict[str, tuple[str, ...]]] = {
    "train": ("pytorch_metric_learning", "sklearn", "threadpoolctl", "yaml"),
    "plot": ("matplotlib",),
    "tables": ("pandas", "tabulate"),
    "faithfulness": ("pytorch_grad_cam",),
    "search": ("lancedb", "pyarrow"),
    "milvus": ("pymilvus", "milvus_lite"),
    "web": ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "fastapi_swagger"),
    "heif": ("pillow_heif",),
    "hub": ("huggingface_hub",),
    "track": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "bninception": ("pretrainedmodels",),
}


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message has the command that installs it."""


def missing_extra(error: ImportError) -> MissingExtraError | None:
    """The error that names the extra, where `error` is about a module that an extra installs; else None."""
    if isinstance(error, MissingExtraError):
        return error
    top = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if top in modules:
            return MissingExtraError(f"{top} is not installed; pip install 'diml[{extra}]'", name=top)
    return None


def require(extra: str, purpose: str) -> None:
    """Raise MissingExtraError unless the modules of an extra can be imported.

    Args:
        extra: name in `EXTRAS`.
        purpose: what needs them, as the message begins: "training", "figures".
    """
    missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{purpose}: {', '.join(missing)} not installed; pip install 'diml[{extra}]'", name=missing[0]
        )
