"""The threat ladder: the rungs of a plan, in the order in which a chunk climbs them."""

from dataclasses import asdict, replace
from functools import partial
from typing import Any

from maep_lightning.attacks.autoattack import LEAST_CLASSES
from maep_lightning.attacks.bpda import StraightThrough
from maep_lightning.attacks.coins import fix_coins
from maep_lightning.attacks.simple import NOISE_DRAWS, RECIPES, SIMPLE, Recipe
from maep_lightning.attacks.target import Target
from maep_lightning.evaluation.expectation import eot_attacks, eot_title, expectation_rung
from maep_lightning.evaluation.fingerprint import PACKAGES
from maep_lightning.evaluation.ledger import Ledger
from maep_lightning.evaluation.plan import Manifest, Plan
from maep_lightning.evaluation.rungs import (
    CLEAN,
    UNDEFENDED,
    UNDEFENDED_ATTACKED,
    Rung,
    attacks_rung,
    autoattack_rung,
    clean_rung,
    derived_seed,
    noise_rung,
    replay_rung,
)
from maep_lightning.evaluation.threats import ATTACKS, SIMPLE_TITLES, attacks_title


def ladder(
    plan: Plan,
    manifest: Manifest,
    classifier: Target,
    defended: Target | None,
    ledger: Ledger,
    surrogate: Target | None = None,
) -> list[Rung]:
    """The rungs of a plan.

    Args:
        plan: The plan.
        manifest: The plan bound to networks and data.
        classifier: The bare classifier.
        defended: The purifier before the classifier; None for no purifier.
        ledger: Where the blind rung finds the attacks on the classifier.
        surrogate: What the transfer rung attacks; needed for that one only.

    Raises:
        ValueError: If the transfer rung is asked for without a surrogate, or a rung for stochastic purifiers of a
            deterministic one.
    """
    values, settings = manifest.values, plan.settings
    classes = int(values["num_classes"])
    common = ("schema", "seed", "device", "precision", *(f"version_{name}" for name in PACKAGES))
    attack = ["norm", "eps", "version", "apgd_steps", "fab_steps", "square_queries", "targets", "attacks"]
    attack += ["eot_draws"] if plan.version == "rand" else []

    def by(*names: str) -> dict[str, Any]:
        return {name: values[name] for name in names}

    def of(*networks: str) -> dict[str, Any]:
        """What a result depends on that concerns these networks."""
        named = [f"{name}_{part}" for name in networks for part in ("weights", "architecture", "libraries", "chunk")]
        return by(*common, *(name for name in named if name in values))  # few have the latter two

    bare = of("classifier") | by("classifier_draws")
    bare_attack = bare | by(*attack)
    rungs = [clean_rung(UNDEFENDED, classifier, bare, cached=True)]
    source = autoattack_rung(UNDEFENDED_ATTACKED, classifier, settings, classes, bare_attack, UNDEFENDED, cached=True)
    if "blind" in plan.threats or (defended is None and "whitebox" in plan.threats):
        rungs.append(source)
    if defended is None:
        return rungs
    random = defended.draws > 1
    if not random and (asked := [name for name in ("eot", "fixed_coins") if name in plan.threats]):
        raise ValueError(
            f"{' and '.join(asked)} are attacks on a stochastic purifier, and this one is deterministic: two passes"
            " with different random numbers agree. Leave them out; whitebox is the attack for it."
        )
    whole = of("classifier", "purifier") | by("whole_draws")
    whole_attack = whole | by(*attack)
    averaged, expectation = replace(settings, version="rand"), whole_attack | by("eot_draws", "eot_steps")
    recipes = {"simple": {name: _fields(recipe) for name, recipe in SIMPLE.items()}}
    simple = by("norm", "eps") | recipes
    worst_of_simple = f"worst of {', '.join(SIMPLE_TITLES.values())}"
    rungs.append(clean_rung(CLEAN, defended, whole))

    build = partial(attacks_rung, judge=defended, settings=settings, num_classes=classes)

    def named(kind: str) -> list[Rung]:
        """The rungs of the attacks that a plan names one by one; blind ones are made once for every purifier."""
        found = []
        for text, threat in plan.named.items():
            if threat.kind != kind or not threat.attacks:
                continue
            attacks = tuple(part for name in threat.attacks for part in ATTACKS[name])
            if few := [name for name in attacks if classes < LEAST_CLASSES.get(name, 2)]:
                raise ValueError(f"{text}: {few[0]} needs {LEAST_CLASSES[few[0]]} classes, and there are {classes}.")
            title = attacks_title(threat.attacks, settings)
            further = {name: _fields(RECIPES[name]) for name in attacks if name in RECIPES and name not in SIMPLE}
            if kind == "whitebox":
                context = whole_attack | recipes | further
                found.append(build(text, defended, attacks=attacks, context=context, title=title))
                continue
            budgets = {} if set(attacks) <= set(RECIPES) else by(*attack)
            origin = of("classifier") | simple | further | budgets | {"threat": text}
            context = whole | origin
            blind = build(text, classifier, attacks=attacks, context=context, title=title, origin=origin, start="all")
            found.append(blind)
        return found

    if "noise" in plan.threats:
        rungs.append(noise_rung("noise", defended, settings, whole_attack | {"draws": NOISE_DRAWS}))
    if "transfer" in plan.threats:
        if surrogate is None:
            raise ValueError("The transfer threat needs a surrogate classifier: give its file, or leave it out.")
        origin = of("surrogate") | simple
        title = f"{worst_of_simple} on a surrogate"
        attacks, context = tuple(SIMPLE), whole | origin
        rungs.append(build("transfer", surrogate, attacks=attacks, context=context, title=title, origin=origin))
    if "blind" in plan.threats:
        rungs.append(replay_rung("blind", source, ledger, defended, whole_attack, CLEAN))
    rungs += named("blind")
    if "blind_worst" in plan.threats:
        origin = of("classifier") | simple
        title, attacks, context = worst_of_simple, tuple(SIMPLE), whole | origin
        rungs.append(build("blind_worst", classifier, attacks=attacks, context=context, title=title, origin=origin))
    if "square" in plan.threats:
        title = attacks_title(("square",), settings)
        rungs.append(build("square", defended, attacks=("square",), context=whole_attack, title=title))
    if "bpda" in plan.threats:
        *purifiers, last = defended.stages
        through = Target(*(StraightThrough(stage) for stage in purifiers), last, device=defended.device)
        if random:
            parts = averaged.components(classes)
            title = f"BPDA-identity {' + '.join(parts)} ({plan.apgd_steps} steps, {plan.eot_draws} draws)"
            rungs.append(expectation_rung("bpda", through, defended, parts, 0, averaged, expectation, title))
        else:
            gradient = tuple(part for part in settings.components(classes) if part.startswith("apgd"))
            title = f"BPDA-identity {attacks_title(gradient, settings)}"
            rungs.append(build("bpda", through, attacks=gradient, context=whole_attack, title=title))
    if "whitebox" in plan.threats:
        rungs.append(autoattack_rung("whitebox", defended, settings, classes, whole_attack, CLEAN))
    rungs += named("whitebox")
    if "eot" in plan.threats:
        title = eot_title(averaged, plan.eot_steps, classes, defended)
        attacks = eot_attacks(averaged, classes)
        rungs.append(expectation_rung("eot", defended, defended, attacks, plan.eot_steps, averaged, expectation, title))
    if "fixed_coins" in plan.threats:
        standard = replace(settings, version="standard")
        title = f"{standard.title(classes)}, coins fixed"
        rungs.append(
            autoattack_rung(
                "fixed_coins", fixed(defended, plan, classifier), standard, classes, whole_attack, CLEAN, start="all",
                title=title,
            )
        )  # fmt: skip
    return rungs


def _fields(recipe: Recipe) -> list[Any]:
    """What a result depends on; a field that recipes got later counts only where it is used."""
    values = list(asdict(recipe).values())
    return values if recipe.diversity else values[:-1]


def fixed(defended: Target, plan: Plan, classifier: Target) -> Target:
    """A stochastic system with its coins fixed by the plan's seed.

    Args:
        defended: The purifier before the classifier.
        plan: The plan.
        classifier: The bare classifier, whose draws say whether it is stochastic too.
    """
    seed = derived_seed(plan.seed, "coins")
    *purifiers, last = defended.stages
    judge = fix_coins(last, seed) if classifier.draws > 1 else last
    return Target(*(fix_coins(stage, seed) for stage in purifiers), judge, device=defended.device)
