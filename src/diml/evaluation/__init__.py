"""Evaluation of retrieval: metrics, reports with intervals, tables.

Read in this order: `split`, `metrics`, `report`, `evaluate`, `tables`; `extra` has further
metrics, `postprocessor` re-ranks for open-metric-learning.
"""

from diml.evaluation.evaluate import DatasetEvaluation, evaluate_dataset, evaluate_regions
from diml.evaluation.extra import extra_metrics
from diml.evaluation.postprocessor import StructuralPostprocessor
from diml.evaluation.report import Report
from diml.evaluation.split import QueryGallerySplit

__all__ = [
    "DatasetEvaluation",
    "QueryGallerySplit",
    "Report",
    "StructuralPostprocessor",
    "evaluate_dataset",
    "evaluate_regions",
    "extra_metrics",
]
