"""Threat models by name, and the attacks that can be measured one by one."""

import difflib
from typing import Literal, NamedTuple, get_args

from maep_lightning.attacks.autoattack import AutoAttackSettings, Component
from maep_lightning.attacks.simple import RESTARTS, SIMPLE

Threat = Literal[
    "none", "noise", "transfer", "blind", "blind_worst", "square", "bpda", "whitebox", "eot", "fixed_coins"
]

DIVISIBLE = ("blind", "whitebox")
"""Threat models whose attacks may be named, as in `blind:fgsm`, in place of AutoAttack."""

ATTACKS: dict[str, tuple[str, ...]] = {
    "fgsm": ("fgsm",),
    "bim": ("bim",),
    "mi-fgsm": ("mi-fgsm",),
    "pgd": RESTARTS,
    "di-mi-fgsm": ("di-mi-fgsm",),
    **{component: (component,) for component in get_args(Component)},
}
"""What an attack is made of, by the name it is asked for."""

SIMPLE_TITLES = {
    "fgsm": "FGSM",
    "bim": "BIM",
    "mi-fgsm": "MI-FGSM",
    "pgd": f"PGD-{SIMPLE['pgd'].steps} x {len(RESTARTS)}",
}
"""What results call the attacks of `SIMPLE`."""

TITLES = SIMPLE_TITLES | {"di-mi-fgsm": "DI-MI-FGSM"}
"""The same for those of `RECIPES`, which know Linf and L2 only."""


class NamedThreat(NamedTuple):
    """A threat model, and the attacks that stand for it.

    Attributes:
        kind: The threat model.
        attacks: Keys of `ATTACKS`; empty for the attack that the threat model has by itself.
    """

    kind: str
    attacks: tuple[str, ...] = ()


def parse_threat(text: str) -> NamedThreat:
    """Read a threat model, such as `blind`, `blind:fgsm` or `whitebox:apgd-ce+apgd-t`.

    Args:
        text: `THREAT`, or `THREAT:ATTACK[+ATTACK...]` with one of `DIVISIBLE`: for each image the worst of the attacks.

    Raises:
        ValueError: If a name is unknown or given twice, or the threat model takes no attacks; the message lists what is
            known.
    """
    kind, colon, rest = text.partition(":")
    attacks = tuple(rest.split("+")) if colon else ()
    if kind not in get_args(Threat):
        raise ValueError(f"There is no threat model {text!r}; known: {_known(kind, get_args(Threat))}")
    if colon and kind not in DIVISIBLE:
        raise ValueError(f"{text!r}: attacks are named for {' and '.join(DIVISIBLE)} only; write {kind}.")
    for name in attacks:
        if name not in ATTACKS:
            raise ValueError(f"{text!r}: there is no attack {name!r}; known: {_known(name, tuple(ATTACKS))}")
    if twice := [name for name in ATTACKS if attacks.count(name) > 1]:
        raise ValueError(f"{text!r}: {' and '.join(twice)} named twice; name each attack once.")
    return NamedThreat(kind, attacks)


def attacks_title(attacks: tuple[str, ...], settings: AutoAttackSettings) -> str:
    """The name that results give to attacks, with their budgets.

    Args:
        attacks: Keys of `ATTACKS`.
        settings: Norm, radius and budgets.
    """
    budgets = {"square": f"{settings.square_queries} queries", "fab-t": f"{settings.fab_steps} steps"}
    titles = [TITLES.get(name) or f"{name} ({budgets.get(name, f'{settings.apgd_steps} steps')})" for name in attacks]
    return " + ".join(titles)


def _known(name: str, names: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"{', '.join(names)}.{f' Did you mean {close[0]}?' if close else ''}"
