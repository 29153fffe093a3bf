"""Networks that bring their own code: TorchScript and exported programs, and callables by import path."""

import difflib
import hashlib
import importlib
import inspect
import re
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Self

import torch
from torch import Tensor, nn

from maep_lightning.models.weights import check_archive

_NOT_OURS = {"torch", *sys.stdlib_module_names}
"""Packages that hold neither a user's networks nor his code."""


class Program(nn.Module):
    """A TorchScript or exported program, which stays in evaluation mode.

    Args:
        program: Images to logits.
        digest: SHA-256 of its file: the code is no part of the printed structure that fingerprints are made of.
    """

    def __init__(self, program: nn.Module, digest: str) -> None:
        super().__init__()
        self.program = program
        self.digest = digest
        for module in self.modules():
            module.training = False

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` to logits `(B, K)`.

        Raises:
            ValueError: If the program was exported for another shape.
        """
        try:
            return self.program(images)  # type: ignore[no-any-return]
        except (AssertionError, RuntimeError) as error:
            reason = str(error).strip().rpartition("\n")[2]  # TorchScript tells it after its own traceback
            if isinstance(error, RuntimeError) and not re.search(
                r"\b(shape|size|dimension)s?\b", reason, re.IGNORECASE
            ):
                raise
            raise ValueError(
                f"The exported program does not take images {tuple(images.shape)}: {reason}. Export it with a dynamic"
                " batch; where only the size is another, add size=SIDE to classifier_name."
            ) from error

    def train(self, mode: bool = True) -> Self:
        """Nothing changes: exported programs have the mode in which they were exported, and refuse to be asked."""
        return self

    def extra_repr(self) -> str:
        """What the fingerprint of a run tells programs apart by."""
        return f"sha256={self.digest}"


class FunctionClassifier(nn.Module):
    """A plain function as a network.

    Args:
        function: Images to logits.

    Attributes:
        networks: Those that the function uses, so that they are frozen and moved with this one; one that is made only
            when the function is called is not among them.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        found = _networks_behind(function, set())
        inside = {id(part) for network in found for part in network.modules() if part is not network}
        self.networks = nn.ModuleList(network for network in found if id(network) not in inside)

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` to logits `(B, K)`."""
        return self.function(images)

    def extra_repr(self) -> str:
        """The function, by its name."""
        return repr(self.function)


def is_program(path: Path) -> bool:
    """Whether a file is a TorchScript or exported program, and not a state dict."""
    return _kind(path) is not None


def load_program(path: Path) -> nn.Module:
    """Load a TorchScript (`torch.jit.save`) or exported (`torch.export.save`) program. It runs the code in the file.

    Args:
        path: The file. An exported program must have been exported in evaluation mode and with a dynamic batch.

    Returns:
        Images to logits, as the program has them; on the CPU.

    Raises:
        ValueError: If the file is damaged or no program, or its weights are not in float32.
    """
    try:
        check_archive(path)
        if _kind(path) == "script":
            program: nn.Module = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
        else:
            program = torch.export.load(path).module()
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is no program that this torch can load: {error}") from error
    others = {str(tensor.dtype) for tensor in program.parameters() if tensor.dtype != torch.float32}
    if others:
        raise ValueError(
            f"{path} has weights in {', '.join(sorted(others))}, and attacks need float32: call .float() on the"
            " network, and export it again."
        )
    return Program(program, hashlib.sha256(path.read_bytes()).hexdigest())


class FunctionPurifier(FunctionClassifier):
    """A plain function from images to images as a network."""


def import_network(
    where: str, options: dict[str, Any], wrap: Callable[..., nn.Module] = FunctionClassifier
) -> nn.Module:
    """A classifier or purifier from an importable module.

    Args:
        where: `PACKAGE.MODULE:ATTRIBUTE`: a network, a function of images, or a function or class that is called with
            nothing but `options` and returns either.
        options: Keyword arguments.
        wrap: Makes a network of a function.

    Returns:
        The network. `source_sha256` is the digest of `where`, `options` and the files that define it, for
        fingerprints: neither a function's code, nor that of a `forward`, nor what an object keeps to itself is part of
        the printed structure.

    Raises:
        FileNotFoundError: If its code looks for a file that is not there.
        ValueError: If it cannot be imported, called, or is no such thing; if its code raises anything else; if a
            network is given options.
    """
    module_name, _, attribute = where.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"python:{where} names no attribute of a module; write python:PACKAGE.MODULE:FACTORY.")
    found = _attribute(where, module_name, attribute)
    names, given = {module_name, _module_of(found)}, sorted(options.items())
    if isinstance(found, type) or (callable(found) and not isinstance(found, nn.Module) and _binds(found, options)):
        found, options = _called(where, found, options), {}
    if not callable(found):
        raise ValueError(f"python:{where} is a {type(found).__name__}, neither a network nor a function.")
    if isinstance(found, nn.Module) and options:
        raise ValueError(f"python:{where} is a network that is made already, and takes no {', '.join(options)}.")
    network = found if isinstance(found, nn.Module) else wrap(partial(found, **options))
    used = network.networks if isinstance(network, FunctionClassifier) else network
    names |= {_module_of(part) for part in (found, *used.modules())}
    digest = _source_digest(f"{where} {given}", names)
    network.source_sha256 = digest  # type: ignore[assignment]  # no tensor: a plain attribute
    return network


def _attribute(where: str, module_name: str, attribute: str) -> Any:
    """What a module has under a name."""
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's file may raise anything
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise ValueError(
                f"python:{where} cannot be imported ({error}); install the package, or put its folder in PYTHONPATH."
            ) from error
        raise _failure(f"python:{where}: {module_name} fails when it is imported", error) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        close = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        place = f" ({file})" if (file := _file_of(module)) else ""
        raise ValueError(f"python:{where}: {module_name}{place} has no {attribute}.{hint}") from None
    except Exception as error:  # of a module that imports it only now
        raise _failure(f"python:{where}: {attribute} fails when it is imported", error) from error


def _called(where: str, make: Callable[..., Any], options: dict[str, Any]) -> Any:
    """What a function or class makes of options."""
    try:
        return make(**options)
    except Exception as error:  # a user's code may raise anything
        if isinstance(error, TypeError) and error.__traceback__ is not None and error.__traceback__.tb_next is None:
            # Raised by the call itself, and not by a line of what is called.
            raise ValueError(f"python:{where} cannot be called with {options or 'nothing'}: {error}") from error
        raise _failure(f"python:{where} fails when it is called with {options or 'nothing'}", error) from error


def _failure(what: str, error: Exception) -> Exception:
    """What became of a user's code, in one line; a missing file stays one, which studies may wait for."""
    text = f"{what}: {type(error).__name__}: {' '.join(str(error).split())}"
    return FileNotFoundError(text) if isinstance(error, FileNotFoundError) else ValueError(text)


def _networks_behind(thing: Any, seen: set[int]) -> list[nn.Module]:
    """Networks that a callable holds or names: in its closure, its globals, its object, and functions it calls."""
    if id(thing) in seen:
        return []
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        return [thing]
    held: list[Any] = []
    if isinstance(thing, partial):
        held = [thing.func, *thing.args, *thing.keywords.values()]
    elif isinstance(thing, MethodType):
        held = [thing.__self__, thing.__func__]
    elif isinstance(thing, (list, tuple)):
        held = list(thing)
    elif isinstance(thing, dict):
        held = list(thing.values())
    elif isinstance(thing, (type, ModuleType)) or _module_of(thing).partition(".")[0] in _NOT_OURS:
        pass
    elif isinstance(thing, FunctionType):
        held = [*_used(thing), thing.__defaults__, thing.__kwdefaults__]
    else:
        held = [*getattr(thing, "__dict__", {}).values(), type(thing).__call__ if callable(thing) else None]
    return [network for part in held for network in _networks_behind(part, seen)]


def _used(function: FunctionType) -> list[Any]:
    """What a function has in its closure, and what its code names of its globals and of the modules among them."""
    codes, used = [function.__code__], [function.__dict__.get("__wrapped__")]
    for code in codes:  # which grows by the functions inside
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    names = dict.fromkeys(name for code in codes for name in code.co_names)  # in order, as fingerprints need it
    for value in [function.__globals__.get(name) for name in names]:
        used += [vars(value).get(name) for name in names] if isinstance(value, ModuleType) else [value]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty cell
            used.append(cell.cell_contents)
    return used


def _module_of(thing: Any) -> str:
    """Name of the module that defines a function, a class, or the class of an object."""
    return str(getattr(thing, "__module__", type(thing).__module__))


def _source_digest(text: str, names: set[str]) -> str:
    """Short SHA-256 of a text and of the files of modules by name.

    Files of torch, whose version a fingerprint has, and of Python are left out.
    """
    digest = hashlib.sha256(text.encode() + b"\n")
    for name in sorted(names):
        file = Path(_file_of(sys.modules.get(name)))
        if name.partition(".")[0] not in _NOT_OURS and file.is_file():
            digest.update(name.encode() + b"\n" + file.read_bytes())
    return digest.hexdigest()[:16]


def _file_of(module: ModuleType | None) -> str:
    return getattr(module, "__file__", None) or ""


def _binds(function: Callable[..., Any], options: dict[str, Any]) -> bool:
    """Whether a function needs no further argument, such as images."""
    try:
        inspect.signature(function).bind(**options)
    except (TypeError, ValueError):  # ValueError: of a function in C that does not tell its parameters
        return False
    return True


def _kind(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [name.partition("/")[2] or name for name in archive.namelist()]
    except Exception:  # no archive, or a damaged one, for which zipfile has several; who reads the file next says so
        return None
    if any(name.startswith("code/") for name in inside):
        return "script"
    # serialized_exported_program.json at the top in older releases of torch, models/NAME.json in newer ones.
    return "export" if any(name.endswith(".json") for name in inside) else None
