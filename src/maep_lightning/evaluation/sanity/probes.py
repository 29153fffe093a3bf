"""The probes of the sanity battery that attack, differentiate or repeat; each is a function of a case."""

import torch
from torch import Tensor, nn

from maep_lightning.attacks.autoattack import AutoAttackSettings, Component, run_component
from maep_lightning.attacks.bpda import StraightThrough
from maep_lightning.attacks.simple import simple_attack
from maep_lightning.attacks.target import Target
from maep_lightning.attacks.threat import LARGEST, Epsilon, Norm
from maep_lightning.evaluation.judging import TOLERANCE, confine, distance, judge
from maep_lightning.evaluation.ledger import Status
from maep_lightning.evaluation.rungs import CLEAN, UNDEFENDED
from maep_lightning.evaluation.sanity.findings import Case, Finding, Probe, Verdict
from maep_lightning.evaluation.sanity.plant import planted_weakness
from maep_lightning.evaluation.sanity.slopes import finite_differences, gradients

STEPS = 40
"""At most so many steps of APGD where probes compare attacks with each other: all of them are as short."""


def unbounded(case: Case) -> Finding:
    """S3: with the whole pixel range to itself the attack breaks everything."""
    correct = _correct(case)
    broken = _apgd(case, case.whole, Epsilon("1"), STEPS, "Linf") | ~correct
    if not bool(broken.all()) and _classes(case) >= 3:
        broken |= _apgd(case, case.whole, Epsilon("1"), STEPS, "Linf", component="apgd-dlr", rows=~broken)
    left = float((~broken).float().mean())
    numbers = {"accuracy": left, "chance": 1 / _classes(case)}
    text = f"{left:.1%} of the samples are left at Linf eps 1"
    if left > numbers["chance"]:
        return Finding(case.severity, f"{text}: gradients do not lead to what must exist", numbers)
    return Finding("warn" if left > 0 else "pass", text, numbers)


def monotone(case: Case) -> Finding:
    """S4: what breaks at a radius breaks at a larger one."""
    eps = float(case.plan.eps)
    radii = [eps / 2, eps, min(2 * eps, LARGEST[case.plan.norm])]
    broken = [_apgd(case, case.whole, Epsilon(radius), _steps(case)) for radius in radii]
    numbers = {
        f"broken_{name}": float(mask.sum()) for name, mask in zip(("half", "eps", "double"), broken, strict=True)
    }
    wrong = (broken[0] & ~broken[1]) | (broken[1] & ~broken[2])
    numbers["violations"] = float(wrong.sum())
    text = f"{int(wrong.sum())} of {len(wrong)} samples break at a radius and not at a larger one"
    return Finding(_graded(case, wrong, 0.01, 0.05), text, numbers)


def more_effort(case: Case) -> Finding:
    """S6: one step is no better than many, and neither twice the steps nor five starts break what survived."""
    steps, correct = case.plan.apgd_steps, _correct(case)
    broken = _apgd(case, case.whole, case.plan.eps, _steps(case))
    numbers = {"broken": float(broken.sum())}
    one_step = torch.zeros_like(broken)
    if case.plan.norm != "L1":
        with case.whole.guarded():
            attacked = simple_attack(case.whole, case.images, case.labels, "fgsm", float(case.plan.eps), case.plan.norm)
        one_step = _fooled(case, attacked, case.plan.eps, case.plan.norm) & correct & ~broken
        numbers["only_one_step"] = float(one_step.sum())
    survived = correct & ~broken
    name = "whitebox" if case.defended is not None else "undefended-whitebox"
    name = "fixed_coins" if case.random is not None else name
    if name in case.outcomes:
        survived = (case.outcomes[name].status[: len(correct)] == Status.ROBUST).to(correct.device)
    more = torch.zeros_like(broken)
    for start, length in enumerate([2 * steps, *[steps] * 5]):
        left = survived & ~more
        if not bool(left.any()):
            break
        more |= _apgd(case, case.whole, case.plan.eps, length, seed=start + 1, rows=left)
    numbers["more_effort"] = float(more.sum())
    text = (
        f"one step alone breaks {int(one_step.sum())}, and twice the steps and five starts break {int(more.sum())} of"
        f" {int(survived.sum())} survivors"
    )
    verdict = max((_graded(case, one_step, 0.0, 0.02), _graded(case, more, 0.0, 0.02)), key=_rank)
    return Finding(verdict, text if verdict == "pass" else f"{text}: the attack has not converged", numbers)


def full_gradient(case: Case) -> Finding:
    """S7: the exact gradient serves the attack no worse than the identity in its place."""
    if case.defended is None:
        return Finding("skip", "there is no purifier")
    *purifiers, last = case.defended.stages
    through = Target(*(StraightThrough(stage) for stage in purifiers), last, device=case.defended.device)
    exact = _apgd(case, case.defended, case.plan.eps, _steps(case))
    identity = _apgd(case, through, case.plan.eps, _steps(case))
    numbers = {
        "broken_full": float(exact.sum()),
        "broken_bpda": float(identity.sum()),
        "only_bpda": float((identity & ~exact).sum()),
    }
    text = (
        f"APGD breaks {int(exact.sum())} with the exact gradient and {int(identity.sum())} with the identity's,"
        f" {int((identity & ~exact).sum())} of them with that alone"
    )
    if {"bpda", "blind"} <= case.outcomes.keys():
        fell, stood = (case.outcomes[name].status for name in ("blind", "bpda"))
        alone = int(((fell == Status.CLEAN_WRONG) | (fell == Status.BROKEN))[stood == Status.ROBUST].sum())
        numbers["only_blind"] = float(alone)
        text += f"; {alone} samples of the whole fall to the blind attack and not to BPDA"
    if exact.sum() < identity.sum() - max(1, 0.02 * len(exact)):
        return Finding(case.severity, f"{text}: the purifier's gradient is obfuscated", numbers)
    return Finding("warn" if bool((identity & ~exact).any()) else "pass", text, numbers)


def determinism(case: Case) -> Finding:
    """S8: the logits of an image depend on nothing but the image, or the system is evaluated as stochastic."""
    if case.random is not None:
        text = f"randomised: judged by the majority of {case.random.draws} fresh draws"
        if "whitebox" in case.plan.kinds and case.plan.version == "standard":
            return Finding("fail", f"{text}; version standard does not apply to it: replace whitebox by eot")
        return Finding("pass", text)
    logits = []
    flipped = torch.arange(len(case.labels) - 1, -1, -1, device=case.images.device)
    with case.whole.guarded(), torch.no_grad():
        for seed in (1, 2):
            torch.manual_seed(seed)
            logits.append(case.whole(case.images))
        torch.manual_seed(1)
        reverse = case.whole(case.images[flipped])[flipped]
        torch.manual_seed(1)
        single = torch.cat([case.whole(image[None]) for image in case.images[:8]])
    scale = float(logits[0].abs().max().clamp(min=1e-6))
    numbers = {
        "repeat": float((logits[0] - logits[1]).abs().max()) / scale,
        "order": float((logits[0] - reverse).abs().max()) / scale,
        "batch_size": float((logits[0][:8] - single).abs().max()) / scale,
    }
    largest = max(numbers.values())
    rand = case.plan.version == "rand"
    if largest < 1e-4:
        kind = "bitwise" if largest == 0 else f"numerically (relative difference {largest:.1e})"
        if rand:
            return Finding("warn", f"deterministic {kind}: version standard is the attack for it, not rand", numbers)
        return Finding("pass", f"deterministic {kind}", numbers)
    what = "repetition" if numbers["repeat"] >= 1e-4 else "order or size of the batch"
    text = f"randomised: logits change with {what} (relative difference {largest:.1e})"
    return Finding("pass" if rand else "fail", text if rand else f"{text}; version standard does not apply", numbers)


def clean_twice(case: Case) -> Finding:
    """S9: the clean accuracy of the evaluation is that of a plain forward pass, as `test_step` makes it."""
    wrong, numbers = 0, {}
    # What a single draw says is no clean accuracy.
    defended = None if case.random is not None else case.defended
    for name, target in {UNDEFENDED: case.bare, CLEAN: defended}.items():
        if target is None or name not in case.outcomes:
            continue
        hidden = case.images
        with torch.no_grad():
            for stage in target.stages:
                hidden = stage(hidden)
        status = case.outcomes[name].status[: len(case.labels)]
        plain = (hidden.argmax(dim=1) == case.labels).cpu()
        numbers[f"plain_{name}"] = float(plain.float().mean())
        numbers[f"engine_{name}"] = float((status == Status.ROBUST).float().mean())
        wrong += int(((status == Status.ROBUST) != plain).sum())
    if wrong:
        # A single one may be a tie that the precision of convolutions decides.
        return Finding(
            "fail" if wrong > 1 else "warn",
            f"{wrong} clean predictions differ between the evaluation and a plain pass",
            numbers,
        )
    return Finding("pass", "the same predictions", numbers)


class _Recorder(Target):
    """Notes which samples had a misclassified iterate inside the ball during an attack on the whole batch."""

    def __init__(self, target: Target, images: Tensor, labels: Tensor, norm: Norm, eps: float) -> None:
        super().__init__(*target.stages, device=target.device)
        self.clean, self.labels, self.norm, self.eps = images, labels, norm, eps
        self.ever = torch.zeros_like(labels, dtype=torch.bool)

    def __call__(self, images: Tensor) -> Tensor:
        logits = super().__call__(images)
        if len(logits) == len(self.labels):
            inside = distance(images.detach(), self.clean, self.norm) <= self.eps + TOLERANCE
            self.ever |= inside & (logits.detach().argmax(dim=1) != self.labels)
        return logits


def silent_success(case: Case) -> Finding:
    """S10: an attack that was at an adversarial image hands it over."""
    correct = _correct(case)
    images, labels = case.images[correct], case.labels[correct]
    if len(labels) == 0:
        return Finding("skip", "no sample is right when clean")
    recorder = _Recorder(case.whole, images, labels, case.plan.norm, float(case.plan.eps))
    settings = _settings(case, case.plan.eps, _steps(case), case.plan.norm)
    with recorder.guarded():
        attacked, _ = run_component(recorder, images, labels, "apgd-ce", settings, case.plan.seed)
    lost = recorder.ever & (judge(case.whole, attacked, labels).prediction == labels)
    text = f"{int(lost.sum())} of {len(labels)} samples were misclassified on the way and are not in the end"
    return Finding("fail" if bool(lost.any()) else "pass", text, {"lost": float(lost.sum())})


def self_test(case: Case) -> Finding:
    """S12: on a linear model the attack breaks exactly the images that theory says can be broken."""
    norm, eps = case.plan.norm, float(case.plan.eps)
    room = 0.49 - (eps if norm == "Linf" else 0.1)
    if norm == "L1" or (norm == "Linf" and room <= eps):
        return Finding("skip", f"no closed form for {norm} eps {case.plan.eps} inside [0, 1]")
    shape, device = case.images.shape[1:], case.images.device
    size, generator = case.images[0].numel(), torch.Generator().manual_seed(case.plan.seed)
    weight = (torch.randint(0, 2, (10, size), generator=generator) * 2 - 1).float()
    labels = torch.arange(40) % 10
    reach = 2 * eps / (1 if norm == "Linf" else (size / 2) ** 0.5)
    radius = torch.linspace(0, min(reach, room), 40)
    images = (0.5 + radius[:, None] * weight[labels]).view(-1, *shape)
    logits = (images.flatten(1).double() - 0.5) @ weight.double().T
    margin = logits.gather(1, labels[:, None]) - logits
    difference = (weight[labels][:, None] - weight[None]).double()
    dual = difference.abs().sum(-1) if norm == "Linf" else difference.norm(dim=-1)
    slack = (margin - eps * dual) / dual.clamp(min=1)
    slack = slack.scatter(1, labels[:, None], torch.inf).amin(dim=1)
    decided = slack.abs() > 0.02 * eps
    linear = nn.Linear(size, 10).requires_grad_(False)
    linear.weight.copy_(weight)
    linear.bias.copy_(-0.5 * weight.sum(1))
    target = Target(nn.Sequential(nn.Flatten(), linear).eval().to(device))
    known = Case(target, None, images.to(device), labels.to(device), case.plan, {})
    broken = _apgd(known, target, case.plan.eps, case.plan.apgd_steps)
    broken = (broken | _apgd(known, target, case.plan.eps, case.plan.apgd_steps, component="apgd-t")).cpu()
    wrong_from_the_start = ~_correct(known).cpu()
    missed = (slack < 0) & ~broken & decided & ~wrong_from_the_start
    invented = (slack > 0) & broken & decided
    numbers = {"points": 40.0, "missed": float(missed.sum()), "invented": float(invented.sum())}
    text = f"{int(missed.sum())} of {int(((slack < 0) & decided).sum())} breakable points of a linear model missed"
    if bool(invented.any()):
        return Finding("fail", f"{int(invented.sum())} provably robust points of a linear model were broken", numbers)
    if bool(missed.any()):
        return Finding("warn" if case.plan.settings.reduced else "fail", text, numbers)
    return Finding("pass", text, numbers)


def preconditions(case: Case) -> Finding:
    """S13: pixels in [0, 1], logits and no probabilities, evaluation mode, float32, labels that are classes."""
    problems = []
    with case.bare.guarded(), torch.no_grad():
        logits = case.bare(case.images)
    numbers = {"low": float(case.images.min()), "high": float(case.images.max())}
    sums = logits.sum(dim=1)
    if bool(((logits >= 0) & (logits <= 1)).all()) and bool(((sums - 1).abs() < 1e-4).all()):
        problems.append("softmax output: the classifier returns probabilities, not logits; remove its softmax")
    if numbers["low"] < 0 or numbers["high"] > 1:
        problems.append("normalised inputs: images leave [0, 1]; put the normalisation into the classifier")
    if int(case.labels.max()) >= logits.shape[1] or int(case.labels.min()) < 0:
        problems.append("labels are not classes of the classifier")
    for stage in case.whole.stages:
        if any(module.training for module in stage.modules()):
            problems.append(f"{type(stage).__name__} is in training mode")
    if problems:
        return Finding("fail", "; ".join(problems), numbers)
    accuracy = float((logits.argmax(dim=1) == case.labels).float().mean())
    numbers["accuracy"] = accuracy
    if len(case.labels) >= 32 and accuracy <= 2 / logits.shape[1]:
        text = f"the bare classifier is right on {accuracy:.0%} of the clean images: does it normalise by itself?"
        return Finding("warn", text, numbers)
    return Finding("pass", "pixels, logits, labels and modes are as they must be", numbers)


def fidelity(case: Case) -> Finding:
    """S14: what the purifier costs on clean images; a figure to read, no verdict."""
    defended = case.random or case.defended
    if defended is None:
        return Finding("skip", "there is no purifier")
    bare, whole = _correct(case, case.bare), _correct(case, defended)
    purified = defended.purify(case.images)
    numbers = {"accuracy_bare": float(bare.float().mean()), "accuracy_purified": float(whole.float().mean())}
    text = f"clean accuracy {numbers['accuracy_bare']:.1%} bare, {numbers['accuracy_purified']:.1%} purified"
    if purified.shape == case.images.shape:
        numbers["mse"] = float((purified - case.images).square().mean())
        text += f", mean squared error {numbers['mse']:.2e}"
    return Finding("pass", text, numbers)


PROBES: dict[tuple[str, str], Probe] = {
    ("S1", "gradients finite and not zero"): gradients,
    ("S2", "gradients against finite differences"): finite_differences,
    ("S3", "unbounded attack breaks all"): unbounded,
    ("S4", "monotone in eps"): monotone,
    ("S6", "more effort breaks no more"): more_effort,
    ("S7", "exact gradient no weaker than BPDA"): full_gradient,
    ("S8", "deterministic"): determinism,
    ("S9", "clean accuracy twice"): clean_twice,
    ("S10", "no success lost on the way"): silent_success,
    ("S11", "planted weakness found"): planted_weakness,
    ("S12", "attack against a closed form"): self_test,
    ("S13", "preconditions"): preconditions,
    ("S14", "what the purifier costs"): fidelity,
}


def _rank(verdict: Verdict) -> int:
    return ("skip", "pass", "warn", "fail").index(verdict)


def _graded(case: Case, wrong: Tensor, warn: float, fail: float) -> Verdict:
    """By the share of samples; a single one is never more than a warning."""
    share, count = float(wrong.float().mean()), int(wrong.sum())
    if share > fail and count > 1:
        return case.severity
    return "warn" if count and share > warn else "pass"


def _classes(case: Case) -> int:
    with case.whole.guarded():
        return case.whole.num_classes(case.images)


def _steps(case: Case) -> int:
    return min(STEPS, case.plan.apgd_steps)


def _correct(case: Case, target: Target | None = None) -> Tensor:
    return judge(target or case.whole, case.images, case.labels).prediction == case.labels


def _settings(case: Case, eps: Epsilon, steps: int, norm: Norm) -> AutoAttackSettings:
    """The plan's, without expectation over draws: the probes are about gradients, not about coins."""
    return AutoAttackSettings(eps=eps, norm=norm, apgd_steps=steps, targets=case.plan.targets)


def _apgd(
    case: Case,
    target: Target,
    eps: Epsilon,
    steps: int,
    norm: Norm | None = None,
    component: Component = "apgd-ce",
    seed: int = 0,
    rows: Tensor | None = None,
) -> Tensor:
    """Which samples `(m,)` APGD breaks, confirmed by the exact model, of those that are right when clean."""
    norm = norm or case.plan.norm
    key = (target, float(eps), steps, norm, component, seed)
    if rows is None and key in case.memory:
        return case.memory[key].clone()
    judged = case.whole if target is not case.bare else case.bare
    open_ = _correct(case, judged) if rows is None else rows & _correct(case, judged)
    broken = torch.zeros_like(open_)
    if not bool(open_.any()):
        return broken
    images, labels = case.images[open_], case.labels[open_]
    with target.guarded():
        attacked, _ = run_component(
            target, images, labels, component, _settings(case, eps, steps, norm), case.plan.seed + seed
        )
    confined, inside = confine(attacked, images, norm, float(eps))
    verdict = judge(judged, confined, labels)
    broken[open_] = inside & verdict.finite & (verdict.prediction != labels)
    if rows is None:
        case.memory[key] = broken.clone()
    return broken


def _fooled(case: Case, attacked: Tensor, eps: Epsilon, norm: Norm) -> Tensor:
    confined, inside = confine(attacked, case.images, norm, float(eps))
    verdict = judge(case.whole, confined, case.labels)
    return inside & verdict.finite & (verdict.prediction != case.labels)
