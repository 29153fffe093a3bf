import pytest
import torch
from torch import nn

from maep_lightning.evaluation import evaluate
from maep_lightning.evaluation.cache import AttackCache, Made
from maep_lightning.evaluation.engine import _Engine
from maep_lightning.evaluation.ledger import Unit
from maep_lightning.evaluation.rungs import UNDEFENDED_ATTACKED

pytestmark = pytest.mark.usefixtures("_no_figure")
KEY = {"rung": "blind", "attack": "bim", "chunk": 3, "context": "c" * 64, "data": "d" * 64}
BLIND = ("none", "blind", "blind_worst", "transfer")
SAMPLES = 24


def unit(**changes):
    tensors = {"indices": torch.tensor([24]), "status": torch.zeros(1, dtype=torch.uint8), "margin": torch.ones(1)}
    tensors |= {"prediction": torch.tensor([1]), "right": torch.ones(1, dtype=torch.int32)}
    tensors |= {"stored": torch.zeros(1, dtype=torch.bool), "adversarial": torch.zeros(0, 3, 4, 4)}
    return Unit(**(KEY | {"seed": 5} | tensors | changes))


def made():
    return Made(
        **KEY, seed=5, images=torch.rand(2, 3, 4, 4), unreliable=torch.tensor([False, True]), notes={"splits": 1}
    )


@pytest.mark.parametrize("record", [unit(), made()], ids=["unit", "made"])
def test_cache__found_by_what_it_depends_on(tmp_path, record):
    cache = AttackCache(tmp_path)
    cache.write(record)
    assert cache.read(type(record), **KEY).to_bytes() == record.to_bytes()
    for change in ({"rung": "x"}, {"context": "e" * 64}, {"attack": "pgd"}, {"chunk": 4}, {"data": "e" * 64}):
        assert cache.read(type(record), **(KEY | change)) is None


@pytest.mark.faults
def test_cache__damaged_record_is_made_again_and_an_error_is_not_kept(tmp_path):
    cache = AttackCache(tmp_path)
    cache.write(unit(error="RuntimeError: x"))
    assert not list(tmp_path.rglob("*.safetensors"))
    cache.write(unit())
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    assert cache.read(Unit, **KEY) is None
    assert not path.exists()


class Counting(nn.Module):
    """Counts the images that go forward, and those of them that could go back; the counts are no weights."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.forwards, self.differentiable = inner, 0, 0

    def forward(self, images):
        self.forwards += len(images)
        self.differentiable += len(images) * images.requires_grad
        return self.inner(images)


def run(case, folder, linear, surrogate=None, **options):
    plan = linear.plan(8, **({"threats": BLIND} | options.pop("plan", {})))
    surrogate = linear.Linear(seed=7).eval() if surrogate is None else surrogate
    options = {"progress": False, "sanity": 0, "surrogate": surrogate} | options
    return evaluate(*case, plan, folder, **options)


def test_evaluate__second_purifier_is_judged_blind_by_forward_passes_alone(linear, tmp_path):
    """Nothing goes back, and the purifier sees each image once for each attack on file."""
    classifier, mirror, images, labels = linear.build(SAMPLES)
    classifier, surrogate = Counting(classifier).eval(), Counting(linear.Linear(seed=7)).eval()
    options = {"linear": linear, "surrogate": surrogate, "cache_dir": tmp_path / "cache"}
    run((classifier, mirror, images, labels), tmp_path / "a", **options)
    before = classifier.differentiable, surrogate.forwards, classifier.forwards
    assert before[0] > 100 * SAMPLES
    second = Counting(nn.AvgPool2d(3, stride=1, padding=1)).eval()
    results = run((classifier, second, images, labels), tmp_path / "b", **options)
    assert results.complete
    # Before the first attack one image shows the classes and one that gradients flow, and 8 show twice that no coin is
    # thrown; the surrogate is not asked for that.
    assert classifier.differentiable == before[0] + 1
    assert surrogate.forwards == before[1] + 2
    stored = 8 + 8 + 1  # simple attacks on the surrogate and on the classifier, and AutoAttack
    assert second.forwards <= SAMPLES * (1 + stored) + 1 + 16
    assert classifier.forwards - before[2] == second.forwards + 2 + 16


@pytest.mark.parametrize("first", ["strong", "hopeless"])
def test_evaluate__what_the_cache_gives_does_not_depend_on_who_filled_it(linear, tmp_path, first):
    """A purifier behind which nothing is right lets no attack be made: the next one makes what is missing."""
    classifier, mirror, images, labels = linear.build(SAMPLES)
    blind = nn.Sequential(nn.Hardtanh(0.0, 0.001)).eval()
    filler = {"strong": mirror, "hopeless": blind}[first]
    run((classifier, filler, images, labels), tmp_path / "a", linear, cache_dir=tmp_path / "cache")
    case = (classifier, nn.AvgPool2d(3, stride=1, padding=1).eval(), images, labels)
    cached = run(case, tmp_path / "b", linear, cache_dir=tmp_path / "cache")
    assert cached.ledger_hash == run(case, tmp_path / "c", linear).ledger_hash


@pytest.mark.parametrize("change", ["classifier", "surrogate", "eps", "seed", "pixel"])
def test_evaluate__cache_is_not_used_for_anything_else(linear, tmp_path, change):
    classifier, mirror, images, labels = linear.build(8)
    run((classifier, mirror, images, labels), tmp_path / "a", linear, cache_dir=tmp_path / "cache")
    options = {"plan": {"eps": {"eps": "3/255"}, "seed": {"seed": 1}}.get(change, {})}
    if change == "classifier":
        classifier = linear.Linear(seed=5).eval()
    elif change == "surrogate":
        options["surrogate"] = linear.Linear(seed=5).eval()
    elif change == "pixel":
        images[3, 0, 0, 0] += 1e-3
    case = (classifier, mirror, images, labels)
    cached = run(case, tmp_path / "b", linear, cache_dir=tmp_path / "cache", **options)
    assert cached.ledger_hash == run(case, tmp_path / "c", linear, **options).ledger_hash


def test_evaluate__budgets_of_autoattack_do_not_touch_the_simple_attacks_on_file(linear, tmp_path):
    case = linear.build(8)
    run(case, tmp_path / "a", linear, cache_dir=tmp_path / "cache")
    files = set((tmp_path / "cache").rglob("*.safetensors"))
    run(case, tmp_path / "b", linear, cache_dir=tmp_path / "cache", plan={"apgd_steps": 7})
    new = set((tmp_path / "cache").rglob("*.safetensors")) - files
    assert new
    assert {path.parent.name for path in new} <= {"apgd-ce", "apgd-t", "fab-t", "square"}


class Once(nn.Module):
    """Fails at the first attack that differentiates through it; the flag is no weight."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.fails = inner, True

    def forward(self, images):
        if self.fails and images.requires_grad and len(images) > 1:
            self.fails = False
            raise RuntimeError("device-side assert")
        return self.inner(images)


@pytest.mark.faults
@pytest.mark.parametrize("filled", ["by this version", "by one that kept all"])
def test_evaluate__exception_leaves_nothing_in_the_cache_that_the_next_try_stumbles_on(
    linear, tmp_path, monkeypatch, filled
):
    """What comes after a broken-off attack works on samples that this attack would have broken."""
    classifier, _, images, _ = linear.build(8)
    with torch.no_grad():
        case = (Once(classifier).eval(), None, images, classifier(images).argmax(1))
    options = {"plan": {"threats": ("none", "whitebox"), "eps": "6/255"}}
    with monkeypatch.context() as patch:
        if filled == "by one that kept all":
            make = _Engine._make

            def keeping(engine, rung, *arguments):
                unit = make(engine, rung, *arguments)
                engine.cache.write(unit)
                return unit

            patch.setattr(_Engine, "_make", keeping)
        assert not run(case, tmp_path / "a", linear, cache_dir=tmp_path / "cache", **options).complete
    kept = {path.parent.name for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert kept == ({"clean"} if filled == "by this version" else {"clean", "apgd-t", "fab-t", "square"})
    whole = run(case, tmp_path / "b", linear, **options)
    assert 0 < whole.row("whitebox", defended=False)["acc_robust"] < 1
    for folder in ("a", "c"):  # the same again, and a new run
        again = run(case, tmp_path / folder, linear, cache_dir=tmp_path / "cache", **options)
        assert again.ledger_hash == whole.ledger_hash


@pytest.mark.faults
def test_evaluate__half_batches_that_memory_forced_are_kept_as_they_are(linear, tmp_path):
    class Small(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.largest = inner, 5

        def forward(self, images):
            if images.requires_grad and len(images) > self.largest:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.inner(images)

    classifier, mirror, images, labels = linear.build(8)
    small = Small(classifier).eval()
    first = run((small, mirror, images, labels), tmp_path / "a", linear, cache_dir=tmp_path / "cache")
    small.largest = 99
    again = run((small, mirror, images, labels), tmp_path / "b", linear, cache_dir=tmp_path / "cache")
    assert first.complete
    assert again.ledger_hash == first.ledger_hash
    cached = AttackCache(tmp_path / "cache")
    paths = list(cached.root.glob("*/pgd/*.safetensors"))
    splits = {Made.from_bytes(path.read_bytes(), "x").notes["splits"] for path in paths}
    assert splits == {1, 2}  # on the surrogate whole, on the classifier in halves


@pytest.mark.faults
def test_evaluate__nan_gradients_are_remembered_with_the_attack(linear, tmp_path):
    class NanBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, images):
            return images.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.nan

    class NanGradient(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, images):
            return self.inner(NanBackward.apply(images))

    classifier, mirror, images, labels = linear.build(8)
    case = (NanGradient(classifier).eval(), mirror, images, labels)
    options = {"cache_dir": tmp_path / "cache", "plan": {"threats": ("none", "blind_worst")}}
    first = run(case, tmp_path / "a", linear, **options)
    again = run(case, tmp_path / "b", linear, **options)
    assert first.row("blind_worst")["acc_robust"] is None
    assert again.ledger_hash == first.ledger_hash
    assert any("not finite" in text for text in again.outcomes["blind_worst"].warnings)


def test_evaluate__undefended_attack_needs_no_time_the_second_time(linear, tmp_path):
    case = linear.build(8)
    run(case, tmp_path / "a", linear, cache_dir=tmp_path / "cache")
    run(case, tmp_path / "b", linear, cache_dir=tmp_path / "cache")
    timed = "".join(path.read_text() for path in (tmp_path / "b" / "timings").glob("*"))
    assert "blind_worst" in timed
    assert UNDEFENDED_ATTACKED not in timed
