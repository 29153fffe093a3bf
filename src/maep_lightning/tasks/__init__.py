"""LightningModules: classifier training, MAE pre-training, purification, white-box aware training and evaluation."""

from maep_lightning.tasks.adversarial import AdversarialFinetuning
from maep_lightning.tasks.classification import ClassifierTraining
from maep_lightning.tasks.collages import CollageFinetuning
from maep_lightning.tasks.evaluation import PurifierEvaluation
from maep_lightning.tasks.pretraining import MAEPretraining
from maep_lightning.tasks.purification import PurifierFinetuning

__all__ = [
    "AdversarialFinetuning",
    "ClassifierTraining",
    "CollageFinetuning",
    "MAEPretraining",
    "PurifierEvaluation",
    "PurifierFinetuning",
]
