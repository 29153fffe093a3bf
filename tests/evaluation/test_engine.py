from contextlib import nullcontext

import pytest
import torch
from torch import nn

from maep_lightning.attacks.target import Target
from maep_lightning.evaluation import Plan, evaluate
from maep_lightning.evaluation.ledger import Ledger, LedgerError, Status
from maep_lightning.evaluation.plan import Manifest, PlanChangedError
from maep_lightning.evaluation.rungs import unit_seed

pytestmark = pytest.mark.usefixtures("_no_figure")


def run(linear, folder, case=None, samples=24, chunk_size=8, purified=True, **changes):
    classifier, purifier, images, labels = case or linear.build(samples)
    options = {"progress": False, "sanity": 0} | {name: changes.pop(name) for name in ("cache_dir",) if name in changes}
    plan = linear.plan(chunk_size, **changes)
    return evaluate(classifier, purifier if purified else None, images, labels, plan, folder, **options)


@pytest.mark.oracle
def test_evaluate__linear_classifier_has_its_closed_form_robustness(linear, tmp_path):
    classifier, purifier, images, labels = linear.build(400)
    results = run(linear, tmp_path, (classifier, purifier, images, labels), chunk_size=200, apgd_steps=20)
    assert results.complete
    for name, mirrored in {"undefended-whitebox": False, "whitebox": True}.items():
        robust = results.outcomes[name].status == Status.ROBUST
        expected = linear.closed_form(classifier, images, labels, mirrored)
        assert int((robust != expected).sum()) == 0
    assert 20 < int(expected.sum()) < 380
    assert results.row("whitebox")["acc_robust"] == int(expected.sum()) / 400


@pytest.mark.oracle
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("version", ["standard", "rand"])
def test_evaluate__bitwise_run_standard_evaluation(linear, tmp_path, monkeypatch, norm, version):
    from pyautoattack import AutoAttack, checks

    monkeypatch.setattr(checks, "check_dynamic", lambda *args, **kwargs: None)
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(75, 16), nn.ReLU(), nn.Linear(16, 10)).eval()
    images = torch.rand(16, 3, 5, 5)
    with torch.no_grad():
        labels = classifier(images).argmax(1)
    eps = {"Linf": "8/255", "L2": "0.15", "L1": "0.8"}[norm]
    # One target and one query less than published would already be another attack, so the oracle gets them too.
    changes = {"eps": eps, "norm": norm, "version": version, "apgd_steps": 100, "fab_steps": 100, "targets": 1}
    results = run(
        linear,
        tmp_path,
        (classifier, None, images, labels),
        chunk_size=16,
        purified=False,
        square_queries=40,
        **changes,
    )
    suite = AutoAttack(classifier, norm=norm, eps=float(results.plan.eps), version=version)
    suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = 1
    suite.square.n_queries = 40
    seeds = iter([unit_seed(0, "undefended-whitebox", name, 0) for name in suite.attacks_to_run])
    monkeypatch.setattr(suite, "get_seed", lambda: next(seeds))
    expected, predicted = suite.run_standard_evaluation(images, labels, batch_size=16)
    stored = images.clone()
    for name in suite.attacks_to_run:
        unit = Ledger(tmp_path / "ledger").read("undefended-whitebox", name, 0)
        if unit is not None:
            stored[unit.indices[unit.status == Status.BROKEN]] = unit.adversarial
    # The engine brings images that leave [0, 1] or the ball by rounding back into them; L1 projections do leave.
    assert torch.equal(stored, expected) if norm != "L1" else torch.allclose(stored, expected, atol=1e-7, rtol=0)
    assert torch.equal(results.outcomes["undefended-whitebox"].status == Status.ROBUST, predicted == labels)
    assert 0 < results.outcomes["undefended-whitebox"].count(Status.BROKEN) < 16


def test_evaluate__blind_is_the_accuracy_on_images_made_for_the_bare_classifier(linear, tmp_path):
    classifier, purifier, images, labels = linear.build(24)
    results = run(linear, tmp_path, (classifier, purifier, images, labels))
    attacked, ledger = images.clone(), Ledger(tmp_path / "ledger")
    for chunk in range(3):
        for attack in ("apgd-ce", "apgd-t", "fab-t", "square"):
            unit = ledger.read("undefended-whitebox", attack, chunk)
            if unit is not None:
                attacked[unit.indices[unit.status == Status.BROKEN]] = unit.adversarial
    with torch.no_grad():
        right = classifier(purifier(attacked)).argmax(1) == labels
    assert torch.equal(results.outcomes["blind"].status == Status.ROBUST, right)
    assert (attacked - images).abs().max() <= linear.EPS + 1e-6


def test_evaluate__worst_is_per_sample(linear, tmp_path):
    outcomes = run(linear, tmp_path).outcomes
    right = [outcomes[name].status == Status.ROBUST for name in ("none", "blind", "whitebox")]
    assert torch.equal(outcomes["worst"].status == Status.ROBUST, right[0] & right[1] & right[2])


def test_evaluate__uint8_images_are_the_same_as_their_fractions(linear, tmp_path):
    classifier, purifier, images, labels = linear.build(8)
    pixels = (images * 255).byte()
    first = run(linear, tmp_path / "a", (classifier, purifier, pixels, labels))
    second = run(linear, tmp_path / "b", (classifier, purifier, pixels.float() / 255, labels))
    for name in first.outcomes:
        assert torch.equal(first.outcomes[name].status, second.outcomes[name].status)


def test_evaluate__no_purifier_leaves_the_undefended_rows(linear, tmp_path):
    results = run(linear, tmp_path, purified=False)
    assert [(row["purifier"], row["threat"]) for row in results.rows] == [(None, "none"), (None, "whitebox")]


@pytest.mark.parametrize("threat", ["square", "noise", "blind_worst", "blind:fgsm", "whitebox:apgd-ce", "eot"])
def test_evaluate__threats_that_need_a_purifier_are_refused_without_one(linear, tmp_path, threat):
    """They would have no row, and what was not measured would not be missed."""
    with pytest.raises(ValueError, match=f"^{threat} and bpda are measured .* behind a purifier, and there is none"):
        run(linear, tmp_path, purified=False, threats=("none", threat, "bpda", "whitebox"))
    assert list(tmp_path.iterdir()) == []


def test_evaluate__second_call_makes_nothing_and_finds_the_same(linear, tmp_path, monkeypatch):
    first = run(linear, tmp_path)
    monkeypatch.setattr("maep_lightning.evaluation.engine._Engine._make", None)
    assert run(linear, tmp_path).ledger_hash == first.ledger_hash


def test_evaluate__blind_attacks_of_another_purifier_come_from_the_cache(linear, tmp_path):
    classifier, purifier, images, labels = linear.build(16)
    first = run(linear, tmp_path / "a", (classifier, purifier, images, labels), cache_dir=tmp_path / "cache")
    gentle = nn.AvgPool2d(3, stride=1, padding=1).eval()
    case = (classifier, gentle, images, labels)
    cached = run(linear, tmp_path / "b", case, cache_dir=tmp_path / "cache", threats=("none", "blind"))
    fresh = run(linear, tmp_path / "c", case, threats=("none", "blind"))
    assert cached.ledger_hash == fresh.ledger_hash
    assert cached.row("whitebox", defended=False) | {"seconds": 0} == first.row("whitebox", defended=False) | {
        "seconds": 0
    }
    timed = [line for path in (tmp_path / "b" / "timings").glob("*") for line in path.read_text().splitlines()]
    assert not [line for line in timed if "undefended-whitebox" in line]


def test_evaluate__cache_is_not_used_for_another_classifier(linear, tmp_path):
    classifier, purifier, images, labels = linear.build(8)
    run(linear, tmp_path / "a", (classifier, purifier, images, labels), cache_dir=tmp_path / "cache")
    other = linear.Linear(seed=5).eval()
    case = (other, purifier, images, labels)
    cached = run(linear, tmp_path / "b", case, cache_dir=tmp_path / "cache")
    assert cached.ledger_hash == run(linear, tmp_path / "c", case).ledger_hash


@pytest.mark.faults
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"eps": "4/255"}, "eps: was '2/255', is '4/255'"),
        ({"norm": "L2"}, "norm: was 'Linf', is 'L2'"),
        ({"seed": 1}, "seed: was 0, is 1"),
        ({"chunk_size": 4}, "chunk_size: was 8, is 4"),
        ({"square_queries": 6}, "square_queries: was 5, is 6"),
        ({"threats": ("none", "blind")}, "threats: was"),
    ],
)
def test_evaluate__changed_plan_is_refused_by_name(linear, tmp_path, change, field):
    run(linear, tmp_path, samples=8)
    with pytest.raises(PlanChangedError, match=field):
        run(linear, tmp_path, samples=8, **change)


@pytest.mark.faults
@pytest.mark.parametrize("field", ["classifier_weights", "purifier_architecture", "images", "labels"])
def test_evaluate__changed_weight_pixel_or_label_is_refused_by_name(linear, tmp_path, field):
    classifier, purifier, images, labels = linear.build(8)
    run(linear, tmp_path, (classifier, purifier, images, labels))
    if field == "classifier_weights":
        classifier.weight.data[0, 0, 0, 0] += 1e-6
    elif field == "purifier_architecture":
        purifier = nn.Identity().eval()
    elif field == "images":
        images[3, 0, 0, 0] += 1e-3
    else:
        labels[3] = (labels[3] + 1) % 10
    with pytest.raises(PlanChangedError, match=field):
        run(linear, tmp_path, (classifier, purifier, images, labels))


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "other chunk", "edited status"])
def test_evaluate__damaged_or_edited_ledger_is_refused(linear, tmp_path, damage):
    run(linear, tmp_path)
    ledger = Ledger(tmp_path / "ledger")
    units = [ledger.read("whitebox", "apgd-ce", chunk) for chunk in range(3)]
    unit = next(unit for unit in units if (unit.status == Status.BROKEN).any())
    path = tmp_path / "ledger" / unit.path
    content = bytearray(path.read_bytes())
    if damage == "flipped bit":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "truncated":
        path.write_bytes(content[:-8])
    elif damage == "other chunk":
        path.write_bytes(path.with_name(f"{(unit.chunk + 1) % 3:06d}.safetensors").read_bytes())
    else:
        # Wholly consistent in itself: only the files that follow give it away.
        unit.status[unit.status == Status.BROKEN] = int(Status.ROBUST)
        object.__setattr__(unit, "adversarial", unit.adversarial[:0])
        ledger.write(unit)
    with pytest.raises(LedgerError, match="whitebox/apgd"):
        run(linear, tmp_path)


@pytest.mark.faults
def test_evaluate__edited_plan_is_refused(linear, tmp_path):
    run(linear, tmp_path, samples=8)
    path = tmp_path / "plan.json"
    path.write_text(path.read_text().replace('"2/255"', '"4/255"'))
    with pytest.raises(PlanChangedError, match="edited"):
        run(linear, tmp_path, samples=8)


class NanBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.where(gradient == 0, gradient, torch.nan)


class NanGradient(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(NanBackward.apply(images))


@pytest.mark.faults
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_evaluate__nan_gradients_are_never_robust(linear, tmp_path, norm):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Flatten(), nn.Linear(75, 10)).eval()
    images = torch.rand(8, 3, 5, 5)
    with torch.no_grad():
        labels = inner(images).argmax(1)
    case = (NanGradient(inner).eval(), None, images, labels)
    results = run(linear, tmp_path, case, purified=False, norm=norm, eps="1/255")
    outcome = results.outcomes["undefended-whitebox"]
    assert outcome.count(Status.ROBUST) == 0
    assert outcome.count(Status.ERROR) > 0
    row = results.row("whitebox", defended=False)
    assert (row["complete"], row["acc_robust"]) == (False, None)
    assert "Incomplete" in (tmp_path / "report.md").read_text()
    assert any("not finite" in text for text in outcome.warnings)


@pytest.mark.faults
def test_evaluate__one_nan_gradient_spoils_its_own_sample_only(linear, tmp_path):
    class SometimesNan(nn.Module):
        def __init__(self, inner, limit):
            super().__init__()
            self.inner, self.limit = inner, limit

        def forward(self, images):
            dark = (images.flatten(1).mean(1) < self.limit).view(-1, 1, 1, 1)
            return self.inner(torch.where(dark, NanBackward.apply(images), images))

    classifier, _, images, labels = linear.build(16)
    images[7] *= 0.2
    with torch.no_grad():
        labels = classifier(images).argmax(1)
    case = (SometimesNan(classifier, 0.2).eval(), None, images, labels)
    results = run(linear, tmp_path, case, chunk_size=16, purified=False, eps="1/2550", version="rand")
    status = results.outcomes["undefended-whitebox"].status
    assert torch.equal((status == Status.ERROR).nonzero().squeeze(1), torch.tensor([7]))
    assert (status == Status.ROBUST).any()


@pytest.mark.faults
def test_evaluate__nan_logits_are_an_error(linear, tmp_path):
    class NanLogits(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, images):
            logits = self.inner(images)
            return torch.where((images[:, :1, 0, 0] > 0.5), logits, logits * float("nan"))

    classifier, _, images, labels = linear.build(8)
    results = run(linear, tmp_path, (NanLogits(classifier).eval(), None, images, labels), purified=False)
    bad = images[:, 0, 0, 0] <= 0.5
    assert torch.equal(results.outcomes["undefended-none"].status == Status.ERROR, bad)
    assert (results.outcomes["undefended-whitebox"].status[bad] == Status.ERROR).all()


class Moody(nn.Module):
    """Fails when told to, from some call on or above some batch size; the flags are no weights."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.budget, self.largest = inner, None, None

    def forward(self, images):
        if self.largest is not None and len(images) > self.largest and images.requires_grad:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        if self.budget is not None:
            self.budget -= 1
            if self.budget < 0:
                raise RuntimeError("device-side assert")
        return self.inner(images)


@pytest.mark.faults
def test_evaluate__exception_is_an_error_and_tried_again(linear, tmp_path):
    classifier, purifier, images, labels = linear.build(16)
    healthy = run(linear, tmp_path / "a", (Moody(classifier).eval(), purifier, images, labels))
    moody = Moody(classifier).eval()
    moody.budget = 30
    spoilt = run(linear, tmp_path / "b", (moody, purifier, images, labels), threats=("none",))
    assert spoilt.complete
    moody.budget = 60
    spoilt = run(linear, tmp_path / "c", (moody, purifier, images, labels))
    assert not spoilt.complete
    assert any("device-side assert" in text for outcome in spoilt.outcomes.values() for text in outcome.errors)
    assert spoilt.outcomes["whitebox"].count(Status.ERROR) > 0
    low, high = spoilt.outcomes["whitebox"].bounds
    assert low <= healthy.row("whitebox")["acc_robust"] <= high
    moody.budget = None
    assert run(linear, tmp_path / "c", (moody, purifier, images, labels)).ledger_hash == healthy.ledger_hash


@pytest.mark.faults
def test_evaluate__out_of_memory_goes_on_with_smaller_batches(linear, tmp_path):
    classifier, purifier, images, labels = linear.build(16)
    small = Moody(classifier).eval()
    small.largest = 3
    results = run(linear, tmp_path, (small, purifier, images, labels), chunk_size=16)
    assert results.complete
    assert Ledger(tmp_path / "ledger").read("whitebox", "apgd-ce", 0).notes["splits"] >= 4
    robust = results.outcomes["whitebox"].status == Status.ROBUST
    assert torch.equal(robust, linear.closed_form(classifier, images, labels, mirrored=True))


@pytest.mark.faults
def test_evaluate__full_disk_says_so_and_loses_nothing(linear, tmp_path, monkeypatch):
    import errno
    import os

    whole = run(linear, tmp_path / "a")
    real, left = os.fsync, [12]

    def full(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"MiB free.*run the same command again"):
            run(linear, tmp_path / "b")
    assert not list((tmp_path / "b").rglob("*.tmp"))
    assert run(linear, tmp_path / "b").ledger_hash == whole.ledger_hash


@pytest.mark.faults
def test_evaluate__detached_purifier_is_refused_by_name(linear, tmp_path):
    class Detached(nn.Module):
        def forward(self, images):
            return images.detach().flip(-1)

    classifier, _, images, labels = linear.build(8)
    with pytest.raises(ValueError, match="No gradient flows through the purifier and the classifier"):
        run(linear, tmp_path, (classifier, Detached().eval(), images, labels))
    blind = run(linear, tmp_path / "b", (classifier, Detached().eval(), images, labels), threats=("none", "blind"))
    assert blind.complete


@pytest.mark.parametrize("threat", ["blind:square", "whitebox:square"])
def test_evaluate__square_needs_no_gradient(linear, tmp_path, threat):
    class Detached(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, images):
            return self.inner(images.detach())

    classifier, purifier, images, labels = linear.build(8)
    case = (Detached(classifier).eval(), purifier, images, labels)
    assert run(linear, tmp_path, case, threats=("none", threat)).complete
    with pytest.raises(ValueError, match="No gradient flows"):
        run(linear, tmp_path / "b", case, threats=("none", f"{threat}+fgsm"))


@pytest.fixture
def oblong():
    """Images that are not square, which pyautoattack's Square cannot work on but in Linf."""
    torch.manual_seed(0)
    classifier, purifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 8, 10)).eval(), nn.Hardtanh(0.1, 0.9).eval()
    images = torch.rand(4, 3, 6, 8)
    with torch.no_grad():
        return classifier, purifier, images, classifier(purifier(images)).argmax(1)


def test_evaluate__attacks_without_square_work_on_oblong_images(linear, tmp_path, oblong):
    threats, surrogate = ("none", "transfer", "blind:fgsm", "blind_worst", "bpda", "whitebox:apgd-ce+fab-t"), oblong[0]
    plan = linear.plan(4, norm="L2", eps="0.1", threats=threats)
    assert evaluate(*oblong, plan, tmp_path, surrogate=surrogate, progress=False, sanity=0).complete


@pytest.mark.faults
@pytest.mark.parametrize(
    ("threat", "version"),
    [
        *((threat, "standard") for threat in ("square", "blind", "blind:square", "whitebox", "whitebox:fgsm+square")),
        *((threat, "rand") for threat in ("square", "blind:square", "whitebox:square")),
    ],
)
def test_evaluate__square_is_refused_on_oblong_images_before_any_attack(linear, tmp_path, oblong, threat, version):
    with pytest.raises(ValueError, match="6 x 8 images in L2"):
        run(linear, tmp_path, oblong, norm="L2", eps="0.1", version=version, threats=("none", threat))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda case: case[0].train(), "training mode"),
        (lambda case: case[0].double(), "float64"),
        (lambda case: case[2].mul_(4).sub_(2), r"must be in \[0, 1\]"),
        (lambda case: case[3].fill_(10), "10 classes"),
    ],
)
def test_evaluate__refuses_what_cannot_be_evaluated(linear, tmp_path, spoil, message):
    case = linear.build(8)
    spoil(case)
    with pytest.raises(ValueError, match=message):
        run(linear, tmp_path, case)


def test_evaluate__under_inference_mode_and_autocast(linear, tmp_path):
    plain = run(linear, tmp_path / "a", samples=8)
    case = linear.build(8)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run(linear, tmp_path / "b", case)
    assert inside.ledger_hash == plain.ledger_hash


def test_evaluate__a_device_is_the_same_by_whatever_name(linear, tmp_path):
    """As `cuda` is `cuda:0`."""
    plain = run(linear, tmp_path / "a", samples=8)
    named = evaluate(*linear.build(8), linear.plan(8), tmp_path / "b", device="cpu:0", progress=False, sanity=0)
    assert named.manifest == plain.manifest


@pytest.mark.parametrize("device", [None, "meta"])
def test_evaluate__a_classifier_without_weights_is_where_the_purifier_is(linear, tmp_path, monkeypatch, device):
    class Mean(nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    bound = []
    # The device meta has neither values nor autocast.
    monkeypatch.setattr(Target, "is_random", lambda *args: False)
    monkeypatch.setattr("maep_lightning.attacks.target.exact_arithmetic", nullcontext)
    monkeypatch.setattr(Manifest, "bind", lambda *args: bound.append(args[6]) or {}["stop"])
    purifier = nn.Conv2d(3, 3, 1, device="meta").eval()
    images, labels = torch.rand(4, 3, 6, 6), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(KeyError, match="stop"):
        evaluate(Mean().eval(), purifier, images, labels, linear.plan(4), tmp_path, device=device)
    assert bound == ["meta"]


def test_plan__refuses_unknown_threats_and_sizes():
    with pytest.raises(ValueError, match="gray"):
        Plan(eps="8/255", threats=("gray",))
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        Plan(eps="8/255", chunk_size=0)
