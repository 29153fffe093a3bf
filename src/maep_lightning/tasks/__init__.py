"""LightningModules: classifier training, MAE pre-training, purification and evaluation."""

from maep_lightning.tasks.classification import ClassifierTraining
from maep_lightning.tasks.evaluation import PurifierEvaluation
from maep_lightning.tasks.pretraining import MAEPretraining
from maep_lightning.tasks.purification import PurifierFinetuning

__all__ = ["ClassifierTraining", "MAEPretraining", "PurifierEvaluation", "PurifierFinetuning"]
