"""Measuring what a purifier is worth: plan, ledger, engine, summary and report. No Lightning."""

from maep_lightning.evaluation.engine import evaluate
from maep_lightning.evaluation.plan import Plan
from maep_lightning.evaluation.results import Results, Subject

__all__ = ["Plan", "Results", "Subject", "evaluate"]
