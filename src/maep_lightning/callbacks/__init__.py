"""Lightning callbacks: the bridge to evaluation, dashboards and files."""

from maep_lightning.callbacks.dashboard import RobustnessDashboard
from maep_lightning.callbacks.images import PurificationGrid, purification_grid
from maep_lightning.callbacks.writer import PurifiedImageWriter

__all__ = ["PurificationGrid", "PurifiedImageWriter", "RobustnessDashboard", "purification_grid"]
