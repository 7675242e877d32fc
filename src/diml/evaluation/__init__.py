"""Evaluation of retrieval: metrics, reports with intervals, tables.

Read in this order: `split`, `metrics`, `report`, `evaluate`, `tables`; `extra` has further
metrics.
"""

from diml.evaluation.evaluate import DatasetEvaluation, evaluate_dataset, evaluate_regions
from diml.evaluation.extra import extra_metrics
from diml.evaluation.report import Report
from diml.evaluation.split import QueryGallerySplit

__all__ = [
    "DatasetEvaluation",
    "QueryGallerySplit",
    "Report",
    "evaluate_dataset",
    "evaluate_regions",
    "extra_metrics",
]
