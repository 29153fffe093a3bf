"""The `lightning` and `maep` commands."""

from maep_lightning.cli.entry import main

__all__ = ["main"]
