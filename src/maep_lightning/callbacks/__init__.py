"""Lightning callbacks: the bridge to evaluation, dashboards and files."""

from maep_lightning.callbacks.autoattack import AutoAttackCallback
from maep_lightning.callbacks.dashboard import RobustnessDashboard
from maep_lightning.callbacks.export import ExportWeights
from maep_lightning.callbacks.images import PurificationGrid, purification_grid
from maep_lightning.callbacks.writer import PurifiedImageWriter

__all__ = [
    "AutoAttackCallback",
    "ExportWeights",
    "PurificationGrid",
    "PurifiedImageWriter",
    "RobustnessDashboard",
    "purification_grid",
]
