"""Rankings, metrics and reports.

Read in this order: `rankings`, `metrics`, `intervals`, `report`, `protocol`, `dataset`, `tables`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from diml.evaluation.metrics import METRICS, query_metrics
from diml.evaluation.protocol import evaluate_regions
from diml.evaluation.report import Comparison, Report
from diml.matching.retrieval import Ranking, rank

if TYPE_CHECKING:
    from diml.evaluation.dataset import DatasetEvaluation, evaluate_dataset

__all__ = [
    "METRICS",
    "Comparison",
    "DatasetEvaluation",
    "Ranking",
    "Report",
    "evaluate_dataset",
    "evaluate_regions",
    "query_metrics",
    "rank",
]


def __getattr__(name: str) -> Any:
    # needs the packages of images and models, which evaluating ready-made regions does not
    if name in ("DatasetEvaluation", "evaluate_dataset"):
        return getattr(importlib.import_module("diml.evaluation.dataset"), name)
    raise AttributeError(f"module 'diml.evaluation' has no attribute {name!r}")
