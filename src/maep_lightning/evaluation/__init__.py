"""Measuring what a purifier is worth. No Lightning.

- what is to be measured: `plan`, `threats`; `ladder` makes of them `rungs`, and `expectation` those of coins
- what is looked at before: `inputs`, `normalization`, `framing`, `binding` (all brought together), `cost`, `on_file`
- the run: `engine`, with `judging` (what counts as broken), `workers`, `progress`
- what is kept: `ledger` (of one run), `cache` (across runs), `sources`, written by `files`
- what comes out: `summary` (counts), `results` (`results.json`), `sanity` (the battery), `report`
- what can be asked afterwards: `verify` (`maep verify`), `provenance`; `fingerprint` says what all of it is about
"""

from maep_lightning.evaluation.engine import evaluate
from maep_lightning.evaluation.plan import Plan
from maep_lightning.evaluation.results import Results, Subject

__all__ = ["Plan", "Results", "Subject", "evaluate"]
