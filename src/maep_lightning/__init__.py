"""Masked-autoencoder adversarial purification with PyTorch Lightning.

Importing this package imports neither torch nor lightning, so that the light commands answer at once.
"""

__version__ = "0.1.0"
