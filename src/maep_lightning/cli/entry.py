"""Entry point: answers what needs no torch at once, and hands the rest to LightningCLI.

Importing torch and lightning takes seconds. `--help`, `--version`, a mistyped command and the light verbs do without.
"""

import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import NamedTuple

from maep_lightning import __version__
from maep_lightning.cli.errors import fail, nearest


class LightVerb(NamedTuple):
    """A command outside LightningCLI: `module` has a `run(args: list[str]) -> None`."""

    help: str
    module: str


LIGHT_VERBS = {
    "configs": LightVerb("list the shipped configurations, or print one", "maep_lightning.cli.configs"),
    "verify": LightVerb("check a finished evaluation anew, from its files", "maep_lightning.cli.verify"),
}
HEAVY_VERBS = {
    "fit": "train one stage: classifier, pre-training, purification, LoRA",
    "validate": "one pass over the validation split",
    "test": "judge on the test split: clean accuracies, and the attack that the configuration names",
    "predict": "purify a folder of images",
}
USAGE = """usage: {prog} COMMAND [options]

Train a masked-autoencoder purifier, put it before a frozen classifier, measure what that is worth.

commands
{commands}

help
  {prog} COMMAND --help              every option (fit, validate, test, predict load torch first: some seconds)
  {prog} fit --model.help CLASS      the options of one task; the same with --data.help
  {prog} fit --config A --config B   later files win; a list is replaced unless written `callbacks+:`
  {prog} fit --config A --print_config   what would run, nothing is run
  {prog} --version                   versions, and which package owns the command `lightning`

`lightning`, `maep` and `python -m maep_lightning` are the same command.
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        args: The words after the program's name, by default those of `sys.argv`.

    Raises:
        SystemExit: With code 2 after a mistake of the user (one message, no traceback), with 0 after `--help`.
    """
    words = list(sys.argv[1:] if args is None else args)
    verb = words[0] if words else "--help"
    if verb in ("-h", "--help", "help"):
        print(_usage())
    elif verb == "--version":
        print(_versions())
    elif verb in LIGHT_VERBS:
        import_module(LIGHT_VERBS[verb].module).run(words[1:])
    elif verb in HEAVY_VERBS or verb.startswith("-"):
        import_module("maep_lightning.cli.lightning_cli").run(None if args is None else words)
    else:
        fail(f"there is no command {verb!r}", nearest(verb, [*HEAVY_VERBS, *LIGHT_VERBS]))


def program_name() -> str:
    """The name the user typed: `lightning` or `maep`; `maep` where the program was started in another way."""
    name = sys.argv[0].replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".exe")
    return name if name in ("lightning", "maep") else "maep"


def _usage() -> str:
    commands = HEAVY_VERBS | {name: verb.help for name, verb in LIGHT_VERBS.items()}
    width = max(map(len, commands))
    return USAGE.format(prog=program_name(), commands="\n".join(f"  {n:{width}}  {h}" for n, h in commands.items()))


def _versions() -> str:
    lines = [f"maep-lightning {__version__}", f"python {sys.version.split()[0]}"]
    for name in ("torch", "lightning", "jsonargparse", "timm", "pyautoattack"):
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} is not installed")
    owners = sorted({e.dist.name for e in metadata.entry_points(group="console_scripts", name="lightning") if e.dist})
    others = [owner for owner in owners if owner != "maep-lightning"]
    if others:
        lines.append(f"the command `lightning` is also claimed by {', '.join(others)}: type `maep`, always ours")
    else:
        lines.append("the command `lightning` belongs to maep-lightning")
    return "\n".join(lines)
