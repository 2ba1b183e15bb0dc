"""Data set readers, retrieval measures, reports."""

from pipeline.evaluation.dataset import Dataset, EvaluationQuery, read_dataset
from pipeline.evaluation.report import EvaluationReport, Figures, QueryOutcome
from pipeline.evaluation.runner import run_evaluation

__all__ = [
    "Dataset",
    "EvaluationQuery",
    "EvaluationReport",
    "Figures",
    "QueryOutcome",
    "read_dataset",
    "run_evaluation",
]
