"""What jsonargparse and Lightning report, said in two lines: the innermost cause and the nearest valid names."""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from maep_lightning.cli.errors import nearest

_REJECTED = re.compile(r"Problem with given class_path '([^']+)':\s*Option '([^']+)' is not accepted")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)|Problem with given class_path '([^']+)':\s*No module")
_NO_OPTION = re.compile(
    r"unrecognized arguments: (\S+)|does not accept option '([^']+)'|Option '([^']+)' is not accepted"
)
_MISSING = re.compile(r"arguments are required: (?:\w+\.)?(.+)")
_KEY = re.compile(r'Parser key "([^"]+)"')
_SCAFFOLD = re.compile(
    r"Problem with given class_path|Does not validate against|Subtypes|Errors$|Given value|Subclass types"
    r"|a (class path|dict)|Expected a path but|Not a valid subclass|Expected a <class 'NoneType'>|$"
)
# Modules whose ValueErrors and OSErrors name the setting or the file that is wrong.
_WRITTEN_FOR_PEOPLE = ("maep_lightning.", "lightning.pytorch.trainer.connectors.", "lightning.fabric.plugins.io.")
_BASES = {"model": LightningModule, "data": LightningDataModule, "callbacks": Callback, "logger": Logger}
_MISSING_HINTS = {
    "model": "give a configuration, --config FILE (the command `configs` lists them), or --model CLASS",
    "data": "give a configuration, --config FILE, or --data ImageDataModule --data.dataset NAME",
}


def explain(message: str) -> tuple[str, str]:
    """Shorten a message of the parser.

    Args:
        message: As jsonargparse wrote it, often a nested list of every type that was tried.

    Returns:
        The problem, and what to do about it (may be empty).
    """
    keys = _KEY.findall(message)
    where = f"{'.'.join(keys)}: " if keys else ""
    if rejected := _REJECTED.findall(message):
        class_path, name = rejected[-1]
        return f"{where}{_last(class_path)} has no option {name!r}", nearest(name, _parameters(class_path))
    if missing := _MISSING.search(message):
        return f"{missing[1]} is missing", _MISSING_HINTS.get(missing[1], "")
    if unknown := _NO_OPTION.search(message):
        name = next(filter(None, unknown.groups())).lstrip("-").split("=")[0]
        return f"there is no option {name!r}", nearest(name, _options())
    if absent := _NO_CLASS.search(message):
        name = next(filter(None, absent.groups()))
        if name.endswith((".yaml", ".yml", ".json")):
            return f"{where}there is no file {name}", ""
        return f"{where}there is no class {name}", nearest(_last(name), _classes(where))
    lines = [_KEY.sub("", line).strip(" -:") for line in message.splitlines()]
    cause = "; ".join(dict.fromkeys(line for line in lines if not _SCAFFOLD.match(line))) or message
    given = re.search(r"Given value: (?:NestedArg.*val='?)?(.+?)(?:'?\))?$", message)
    if (
        given
        and "Got value" not in cause
        and not re.search(rf"\b{re.escape(given[1])}\b", cause)
        and len(given[1]) < 80
    ):
        cause += f", got {given[1]}"
    return where + re.sub(r"(?:an? )?<class '([^']+)'>", r"\1", cause).replace(". Got value:", ", got"), ""


def user_error(error: BaseException) -> str | None:
    """The message of an exception that a change of the command or of a file mends.

    Args:
        error: What a command raised.

    Returns:
        The message, or None where the traceback is needed: everything but a wrong use of Lightning, a file that cannot
        be read, and a ValueError or OSError raised by this package, by Lightning's check of the trainer's arguments or
        by what opens its checkpoints.
    """
    while _raised_in(error).startswith("jsonargparse.") and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, MisconfigurationException) or (
        isinstance(error, ValueError | OSError) and _raised_in(error).startswith(_WRITTEN_FOR_PEOPLE)
    ):
        return str(error)
    return None


def _raised_in(error: BaseException) -> str:
    trace, module = error.__traceback__, ""
    while trace is not None:
        module, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return module


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    cls = getattr(import_module(module), name)
    return [
        parameter.name
        for base in cls.__mro__
        if "__init__" in vars(base) and base is not object
        for parameter in list(inspect.signature(base.__init__).parameters.values())[1:]
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _options() -> list[str]:
    verbs = (Trainer.fit, Trainer.validate, Trainer.test, Trainer.predict)
    run = {name for verb in verbs for name in inspect.signature(verb).parameters}
    run -= {"self", "model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}
    trainer = [f"trainer.{name}" for name in inspect.signature(Trainer).parameters]
    return ["config", "print_config", "seed_everything", "model", "data", *run, *trainer]


def _classes(where: str) -> list[str]:
    base = next((base for key, base in _BASES.items() if key in where), None)
    known = list(_subclasses(base)) if base else [name for each in _BASES.values() for name in _subclasses(each)]
    ours = [cls for cls in known if cls.__module__.startswith("maep_lightning.")]
    return [cls.__name__ for cls in (ours if base in (LightningModule, LightningDataModule) else known)]


def _subclasses(base: type[Any]) -> Iterator[type[Any]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)
