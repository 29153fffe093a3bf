"""Lightning callbacks: the bridge to evaluation, dashboards and files."""

from maep_lightning.callbacks.writer import PurifiedImageWriter

__all__ = ["PurifiedImageWriter"]
