"""The sanity battery: what would make a robust accuracy untrue, looked for with every evaluation.

Each check ends in pass, warn or fail with its numbers; one that does not apply is skipped. Passing is no proof.
References: Carlini et al. 2019, "On evaluating adversarial robustness"; Pintor et al. 2022, "Indicators of attack
failure".
"""

import json
from pathlib import Path

import torch

from maep_lightning.attacks.target import isolated_rng
from maep_lightning.evaluation.files import write_atomically
from maep_lightning.evaluation.ledger import Status
from maep_lightning.evaluation.plan import Manifest
from maep_lightning.evaluation.rungs import STRONGEST_FIRST, of_kinds
from maep_lightning.evaluation.sanity.findings import Case, Check, Finding, Probe, Sanity
from maep_lightning.evaluation.sanity.probes import PROBES

FILE = "sanity.json"


def battery(case: Case, strict: bool) -> Sanity:
    """Run every check.

    Args:
        case: What to check.
        strict: Whether a fail withholds the headline.
    """
    checks = []
    with torch.inference_mode(False):
        for (id_, name), probe in (PROBES | {("S5", "white-box at least as strong"): weaker_rungs}).items():
            finding = _run(probe, case)
            checks.append(Check(id_, name, finding.verdict, finding.detail, _plain(finding.numbers)))
    checks.sort(key=lambda check: int(check.id[1:]))
    return Sanity(len(case.labels), strict, tuple(checks))


def weaker_rungs(case: Case) -> Finding:
    """S5: no sample falls to a weaker attacker that stands against the white-box one."""
    strongest = of_kinds(case.outcomes, ("whitebox",)) or of_kinds(case.outcomes, ("eot",))
    knowing = {"whitebox", "eot", "fixed_coins"}
    weaker = of_kinds(case.outcomes, [kind for kind in STRONGEST_FIRST if kind not in knowing])
    if not strongest or not weaker:
        return Finding("skip", "needs the white-box rung, or eot, and a weaker one")
    name = " and ".join(strongest)
    rungs = [case.outcomes[rung] for rung in strongest]
    robust = torch.stack([rung.status == Status.ROBUST for rung in rungs]).all(dim=0)
    bad = (int(Status.BROKEN), int(Status.CLEAN_WRONG))
    fell = {
        name: robust & torch.isin(case.outcomes[name].status, torch.tensor(bad, dtype=torch.uint8)) for name in weaker
    }
    draws, counted = rungs[0].draws, [rung.right for rung in rungs if rung.right is not None]
    for weak, mask in fell.items():
        right = case.outcomes[weak].right
        if draws > 1 and right is not None and counted:
            # Of two estimates of one probability the difference stays below this in 99 of 100 cases with 64 draws.
            mask &= torch.stack(counted).amin(dim=0) - right > draws / 4
    numbers = {f"only_{name}": float(mask.sum()) for name, mask in fell.items()}
    union = torch.stack(list(fell.values())).any(dim=0)
    count, share = int(union.sum()), float(union.float().mean())
    if count == 0:
        return Finding("pass", f"every sample that {', '.join(weaker)} break falls to {name} too", numbers)
    named = ", ".join(f"{name} {int(mask.sum())}" for name, mask in fell.items() if mask.any())
    first = union.nonzero().squeeze(1)[:5].tolist()
    detail = f"{count} of {len(robust)} samples fall to a weaker attacker only ({named}; the first are {first})"
    hint = f": {name} is hindered by obfuscated gradients or a short budget"
    return Finding("fail" if count > 1 and share > 0.002 else "warn", detail + hint, numbers)


def write(sanity: Sanity, manifest: Manifest, ledger_hash: str, run_dir: Path) -> None:
    """Put it on file, bound to what it is about."""
    content = {"plan": manifest.hash, "ledger": ledger_hash} | sanity.to_json()
    write_atomically(run_dir / FILE, (json.dumps(content, indent=2) + "\n").encode())


def read(manifest: Manifest, ledger_hash: str, run_dir: Path, samples: int, strict: bool) -> Sanity | None:
    """That of an earlier call with the same plan, ledger and number of images, if there is one."""
    try:
        content = json.loads((run_dir / FILE).read_text())
        if (content["plan"], content["ledger"], content["samples"]) != (manifest.hash, ledger_hash, samples):
            return None
        return Sanity(content["samples"], strict, tuple(Check(**check) for check in content["checks"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run(probe: Probe, case: Case) -> Finding:
    """A finding whatever happens; with half of the images when the memory does not suffice."""
    try:
        with isolated_rng(case.plan.seed, case.images.device):
            return probe(case)
    except Exception as problem:
        if isinstance(problem, RuntimeError) and "out of memory" in str(problem).lower() and len(case.labels) > 1:
            return _run(probe, case.first(len(case.labels) // 2))
        return Finding("fail", f"could not be run ({type(problem).__name__}: {problem})".splitlines()[0])


def _plain(numbers: dict[str, float]) -> dict[str, float]:
    """Numbers that JSON can hold."""
    return {name: round(float(value), 8) if abs(float(value)) < 1e30 else 1e30 for name, value in numbers.items()}
