"""TensorBoard's first look at a purifier: clean and robust accuracy in one chart, while it trains."""

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from maep_lightning.callbacks.monitoring import PurifierMonitor, Watched

LAYOUT = {
    "Robustness": {
        "accuracy on monitored validation images: clean, purified, and under each threat model": [
            "Multiline",
            [r"monitor/acc_(clean|purified)$", r"monitor/.+/acc$"],
        ]
    }
}
# TensorBoard keeps only the last layout of a writer.
_WRITERS_WITH_LAYOUT: WeakSet[Any] = WeakSet()


class RobustnessDashboard(PurifierMonitor):
    """Watches accuracy, clean and attacked, on a few validation images while a purifier is trained.

    The figures are for steering, not for reporting: few images and a weak attack. They lie under `monitor/`, so that
    nobody takes them for those of the whole split. With PGD of 10 steps at 8/255 they are

    - `monitor/acc_clean`: the bare classifier on clean images, constant;
    - `monitor/acc_purified`: the classifier behind the purifier on clean images;
    - `monitor/undefended_pgd10/Linf_8-255/acc`: the bare classifier on images attacked against it, constant;
    - `monitor/blind_pgd10/Linf_8-255/acc`: the same images, purified; the adversary knows nothing of the purifier;
    - `monitor/whitebox_pgd10/Linf_8-255/acc`: images attacked anew through purifier and classifier.

    They go to every logger, and other callbacks may monitor them. TensorBoard gets one custom-scalars chart of all, and
    the hyper-parameters of the task and its data with these figures in the HPARAMS tab, which needs
    `TensorBoardLogger(default_hp_metric=False)`.

    Args:
        num_images: Number of validation images.
        whitebox: Whether the white-box attack is run, by far the dearest part.
        **options: As in `PurifierMonitor`.
    """

    needs_classifier = True

    def __init__(self, num_images: int = 128, whitebox: bool = True, **options: Any) -> None:
        super().__init__(num_images, **options)
        self.whitebox = whitebox
        self._described = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attack the images, and give TensorBoard the chart."""
        super().on_fit_start(trainer, pl_module)
        self._described = False
        if self._watched is not None and trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger) and logger.experiment not in _WRITERS_WITH_LAYOUT:
                    logger.experiment.add_custom_scalars(LAYOUT)
                    _WRITERS_WITH_LAYOUT.add(logger.experiment)

    def observe(self, trainer: Trainer, pl_module: LightningModule, watched: Watched) -> dict[str, float]:
        """Measure and log the accuracies.

        Args:
            trainer: The trainer.
            pl_module: The task.
            watched: The networks and images.

        Returns:
            Tag to accuracy, a fraction.
        """
        metrics = self._accuracies(watched)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and not self._described:
                logger.log_hyperparams(self._hyperparameters(trainer, pl_module), metrics, trainer.global_step)
            else:
                logger.log_metrics(metrics, trainer.global_step)
        self._described = True
        return metrics

    def _accuracies(self, watched: Watched) -> dict[str, float]:
        purifier, classifier, images, labels, attacked = watched
        assert classifier is not None
        defended = nn.Sequential(purifier, classifier)

        def accuracy(model: Callable[[Tensor], Tensor], inputs: Tensor) -> float:
            return (model(inputs).argmax(1) == labels).double().mean().item()

        threats = {
            "undefended": accuracy(classifier, attacked),
            "blind": accuracy(defended, attacked),
        }
        if self.whitebox:
            threats["whitebox"] = accuracy(defended, self.attack(defended, images, labels))
        return {
            "monitor/acc_clean": accuracy(classifier, images),
            "monitor/acc_purified": accuracy(defended, images),
            **{f"monitor/{name}_pgd{self.steps}/{self.threat}/acc": value for name, value in threats.items()},
        }

    def _hyperparameters(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        data = getattr(getattr(trainer, "datamodule", None), "hparams", {})
        everything = {**pl_module.hparams, **{f"data/{name}": value for name, value in data.items()}}
        # LightningCLI's own bookkeeping, such as `_class_path`, is no hyper-parameter.
        return {name: value for name, value in everything.items() if not name.split("/")[-1].startswith("_")}
