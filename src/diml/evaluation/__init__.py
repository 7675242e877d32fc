"""Rankings, metrics and reports.

Read in this order: `rankings`, `metrics`, `intervals`, `report`, `protocol`.
"""

from diml.evaluation.metrics import METRICS, query_metrics
from diml.evaluation.protocol import evaluate_regions
from diml.evaluation.rankings import Ranking, rank
from diml.evaluation.report import Comparison, Report

__all__ = ["METRICS", "Comparison", "Ranking", "Report", "evaluate_regions", "query_metrics", "rank"]
