"""`fit`, `validate`, `test` and `predict` through LightningCLI, with its traps closed."""

import os
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace
from jsonargparse.typing import register_type
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from maep_lightning import tasks  # noqa: F401 - so that its classes are known by their bare names
from maep_lightning.attacks.threat import Epsilon
from maep_lightning.callbacks import PurifiedImageWriter
from maep_lightning.cli.checkpoint import read_checkpoint
from maep_lightning.cli.entry import program_name
from maep_lightning.cli.errors import debugging, fail
from maep_lightning.cli.explain import explain, user_error
from maep_lightning.cli.record import RecordCallback
from maep_lightning.data import ImageDataModule  # noqa: F401 - the same

register_type(Epsilon, serializer=str, deserializer=Epsilon)

# jsonargparse announces the removal, in its version 5, of three calls that lightning 2.6 still makes.
_ANNOUNCED = r"(?s).*(JsonargparseDeprecationWarning|add_instantiator|instantiate_classes|skip_none)"


class MaepParser(LightningArgumentParser):
    """A parser that refuses abbreviations and explains mistakes in two lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Otherwise `--trainer.max_epoch` means `--trainer.max_epochs`, until another option begins like it.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Parse a file, and name it where it is no YAML."""
        try:
            with open(cfg_path, encoding="utf-8") as file:
                yaml.safe_load(file)
        except yaml.YAMLError as error:
            self.error(f"{cfg_path} is no YAML: {error}", error)
        parsed: Namespace = super().parse_path(cfg_path, *args, **kwargs)
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Leave with exit code 2 and the innermost cause; with JSONARGPARSE_DEBUG set, with a traceback."""
        if debugging() or not self.exit_on_error:
            super().error(message, ex)
        fail(*explain(message))


class MaepCLI(LightningCLI):
    """LightningCLI for any task and any data module, in which what the user asked for is what runs."""

    def __init__(self, args: list[str] | None = None) -> None:
        super().__init__(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RecordCallback,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                # Attacks need gradients in `test`.
                "inference_mode": False,
                "default_root_dir": "runs",
                "logger": {
                    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                    # The metrics of the HPARAMS tab are the accuracies that the tasks log, not a constant -1.
                    "init_args": {"save_dir": "runs", "default_hp_metric": False},
                },
            },
            seed_everything_default=0,
            parser_class=MaepParser,
            parser_kwargs={"prog": program_name()},
            # The tasks own their optimizers: parameter groups and warm-up need the model and the trainer.
            auto_configure_optimizers=False,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The number of classes is the data's; tasks without that argument are left alone."""
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Keep a checkpoint's hyper-parameters from overriding what the user asked for.

        Lightning parses them over the configuration and the command line, and even runs the checkpoint's class instead
        of the one that was named (its pull request 21116). Here they are only compared.

        Raises:
            SystemExit: Where the checkpoint is one of another task.
            ValueError: Where it is damaged, or none.
        """
        self._check_checkpoint(self.config[self.config.subcommand].get("ckpt_path"))

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Check the checkpoint that `last` stands for too, which only the trainer knows."""
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("ckpt_path") == "last":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there is none yet, which the trainer will say
                self._check_checkpoint(
                    self.trainer._checkpoint_connector._parse_ckpt_path(
                        TrainerFn(subcommand), "last", model_provided=True, model_connected=False
                    )
                )
        return kwargs

    def _check_checkpoint(self, path: Any) -> None:
        if not path or not Path(path).is_file():
            return
        config = self.config[self.config.subcommand]
        saved = read_checkpoint(path, config.get("weights_only") is not False).get("hyper_parameters", {})
        module, _, asked = config.model.class_path.rpartition(".")
        written = saved.get("_class_path", asked).rpartition(".")[2]
        if written not in [cls.__name__ for cls in getattr(import_module(module), asked).__mro__]:
            fail(
                f"{path} was written by {written}, but {asked} was asked for",
                "--ckpt_path goes on with the same task; weights pass to the next stage by an argument of its model",
            )
        for name, value in (config.model.get("init_args") or {}).items():
            if isinstance(saved.get(name), str | int | float) and str(saved[name]) != str(value):
                rank_zero_info(f"{name} is {value}, as asked for; {path} was written with {saved[name]}.")

    def before_instantiate_classes(self) -> None:
        """Name the saved configuration after the command, so that `test` does not overwrite that of `fit`."""
        self.save_config_kwargs["config_filename"] = f"{self.subcommand}.yaml"

    def before_predict(self) -> None:
        """Write the purified images to disk, also where no configuration asks for it, instead of keeping them all."""
        self.config_init.predict.return_predictions = False
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        folder = getattr(self.datamodule, "predict_folder", None)
        if folder and not any(isinstance(callback, BasePredictionWriter) for callback in callbacks):
            callbacks.append(PurifiedImageWriter())


def run(args: list[str] | None) -> None:
    """Run one of Lightning's commands.

    Args:
        args: Command and options; None takes them from `sys.argv`, which the extra processes of DDP need.

    Raises:
        SystemExit: With code 2 after a mistake of the user.
    """
    warnings.filterwarnings("ignore", message=_ANNOUNCED, category=DeprecationWarning)
    # Said of any model that could be sharded; ours refuses to be, beside that callback.
    warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback with a model that overrides")
    if args is not None:
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended to run from within")
    if debugging():
        os.environ["JSONARGPARSE_DEBUG"] = "true"  # jsonargparse takes no other spelling of it
    try:
        MaepCLI(args)
    except Exception as error:
        problem = user_error(error)
        if problem is None or debugging():
            raise
        fail(problem)
