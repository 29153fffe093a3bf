import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from maep_lightning.attacks.autoattack import AutoAttackSettings, _build, check_inputs, run_component, run_expectation
from maep_lightning.attacks.target import Target
from maep_lightning.attacks.threat import Epsilon

EPS = {"Linf": "3/255", "L2": "0.15", "L1": "1.5"}


def small_network(classes=10, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(300, 16), nn.ReLU(), nn.Linear(16, classes)).eval()


def some_images(count=12, seed=1):
    return torch.rand(count, 3, 10, 10, generator=torch.Generator().manual_seed(seed))


def labelled(model, count=12):
    """Images with the labels the model gives them, but for one that it gets wrong."""
    images = some_images(count)
    with torch.no_grad():
        logits = model(images)
    labels = logits.argmax(1)
    labels[0] = (labels[0] + 1) % logits.shape[1]
    return images, labels


def own_loop(model, images, labels, settings, classes, seed):
    """The loop over survivors, with this package's driver."""
    target = Target(model)
    adversarial = images.clone()
    with target.guarded(), torch.no_grad():
        alive = model(images).argmax(1) == labels
        for component in settings.components(classes):
            rows = alive.nonzero().squeeze(1)
            if len(rows) == 0:
                break
            found, _ = run_component(target, images[rows], labels[rows], component, settings, seed)
            broken = model(found).argmax(1) != labels[rows]
            adversarial[rows[broken]] = found[broken]
            alive[rows[broken]] = False
    return adversarial, alive


@pytest.fixture
def _keep_tracer(monkeypatch):
    """The published orchestrator calls sys.settrace(None), which would end a coverage measurement."""
    from pyautoattack import checks

    monkeypatch.setattr(checks, "check_dynamic", lambda *args, **kwargs: None)


def published_suite(model, norm, version, seed, budget):
    """A pyautoattack suite, whose shorter budgets are set through pyautoattack's own constructors."""
    from pyautoattack import AutoAttack
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    eps = float(Epsilon(EPS[norm]))
    suite = AutoAttack(model, norm=norm, eps=eps, seed=seed, version=version)
    if budget is not None:
        options = {"n_iter": budget["apgd_steps"], "norm": norm, "eps": eps, "use_largereps": suite.apgd.use_largereps}
        options |= {"device": "cpu", "logger": suite.logger, "eot_iter": suite.apgd.eot_iter}
        suite.apgd = APGDAttack(model, n_restarts=suite.apgd.n_restarts, **options)
        options["eot_iter"] = suite.apgd_targeted.eot_iter
        suite.apgd_targeted = APGDAttack_targeted(model, n_target_classes=budget["targets"], **options)
        suite.fab.n_iter, suite.fab.n_target_classes = budget["fab_steps"], budget["targets"]
        suite.square.n_queries = budget["square_queries"]
    return suite


SHORT = {"apgd_steps": 20, "fab_steps": 10, "square_queries": 60, "targets": 2}


@pytest.mark.oracle
@pytest.mark.usefixtures("_keep_tracer")
@pytest.mark.parametrize("budget", [SHORT, pytest.param(None, marks=pytest.mark.slow)], ids=["short", "published"])
@pytest.mark.parametrize("version", ["standard", "rand"])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_run_component__bitwise_run_standard_evaluation(norm, version, budget):
    model = small_network()
    images, labels = labelled(model)
    suite = published_suite(model, norm, version, 7, budget)
    expected, predicted = suite.run_standard_evaluation(images, labels, batch_size=len(images))
    settings = AutoAttackSettings(Epsilon(EPS[norm]), norm, version, **(budget or {}))
    adversarial, alive = own_loop(model, images, labels, settings, 10, seed=7)
    assert torch.equal(adversarial, expected)
    assert torch.equal(alive, predicted == labels)
    assert 0 < int(alive.sum()) < len(images) - 1, "the case should have broken and unbroken samples"


@pytest.mark.oracle
@pytest.mark.parametrize("version", ["standard", "rand"])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_build__every_setting_is_the_published_one(norm, version):
    from pyautoattack import AutoAttack

    target = Target(small_network())
    settings = AutoAttackSettings(Epsilon(EPS[norm]), norm, version)
    suite = AutoAttack(target, norm=norm, eps=float(settings.eps), seed=3, version=version)
    suite.fab.targeted = True
    published = {"apgd-ce": suite.apgd, "apgd-t": suite.apgd_targeted, "fab-t": suite.fab, "square": suite.square}
    names = [name for name in settings.components(10) if name in published]
    assert names
    for name in names:
        ours = vars(_build(target, name, settings, 10, seed=3))
        theirs = vars(published[name])
        assert {key: str(value) for key, value in ours.items()} == {key: str(value) for key, value in theirs.items()}


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("classes", [2, 3, 4, 7])
def test_run_component__few_classes(classes, norm):
    model = small_network(classes)
    images, labels = labelled(model, 6)
    large = {"Linf": "0.3", "L2": "15", "L1": "30"}[norm]
    settings = AutoAttackSettings(Epsilon(large), norm, apgd_steps=10, fab_steps=10)
    _, alive = own_loop(model, images, labels, settings, classes, seed=0)
    assert not alive.any()


def test_components__losses_that_need_more_classes_give_way():
    settings = AutoAttackSettings(Epsilon("8/255"))
    assert settings.components(10) == settings.components(4) == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert settings.components(3) == ("apgd-ce", "apgd-dlr", "fab-t", "square")
    assert settings.components(2) == ("apgd-ce", "fab-t", "square")
    assert [settings.target_classes("fab-t", classes) for classes in (2, 3, 10, 100)] == [1, 2, 9, 9]


@pytest.mark.parametrize("override", [{"apgd_steps": 5}, {"fab_steps": 5}, {"square_queries": 10}, {"targets": 2}])
def test_title__reduced_budget_never_has_the_name(override):
    assert AutoAttackSettings(Epsilon("8/255")).title(10) == "AutoAttack standard"
    assert "AutoAttack" not in AutoAttackSettings(Epsilon("8/255"), **override).title(10)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("component", "passes"), [("apgd-ce", 202), ("apgd-t", 1827), ("fab-t", 2727), ("square", 5002)]
)
def test_passes__as_counted_on_a_robust_point(component, passes):
    forwards, backwards = AutoAttackSettings(Epsilon("8/255")).passes(component, 10)
    assert math.isclose(forwards + backwards, passes, rel_tol=0.01)


def test_run_component__leaves_no_trace():
    model = small_network()
    model[1].weight.grad = torch.ones_like(model[1].weight)
    model[3].bias.requires_grad_(False)
    images, labels = labelled(model)
    before, weights = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    own_loop(model, images, labels, AutoAttackSettings(Epsilon(EPS["Linf"]), **SHORT), 10, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model[1].weight.grad, torch.ones_like(model[1].weight))
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    assert model[3].weight.grad is None


def test_run_component__refuses_normalised_images():
    model = small_network()
    target, images = Target(model), some_images(2) * 4 - 2
    with target.guarded(), pytest.raises(ValueError, match=r"must be in \[0, 1\].*normalisation into the classifier"):
        run_component(target, images, torch.zeros(2).long(), "apgd-ce", AutoAttackSettings(Epsilon("8/255")), 0)


def test_run_component__names_the_size_that_square_cannot_take():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 4)).eval()
    target, settings = Target(model), AutoAttackSettings(Epsilon("0.5"), "L2")
    with target.guarded(), pytest.raises(ValueError, match="12 x 12 images in L2"):
        run_component(target, torch.rand(2, 3, 12, 12), torch.zeros(2).long(), "square", settings, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": "8"}, "8/255"),
        ({"eps": "8/255", "norm": "L3"}, "norm must be one of"),
        ({"eps": "8/255", "version": "plus"}, "version must be one of"),
        ({"eps": "8/255", "square_queries": 0}, "square_queries must be at least 1"),
    ],
)
def test_settings__refuses_what_cannot_be_meant(settings, message):
    with pytest.raises(ValueError, match=message):
        AutoAttackSettings(**settings)


def loss_of(component, logits, labels):
    """Cross-entropy, or the difference of logits ratio: Eq. (7) of Croce and Hein."""
    if component == "apgd-ce":
        return nn.functional.cross_entropy(logits, labels, reduction="none")
    own, largest = logits.gather(1, labels[:, None]).squeeze(1), logits.sort(dim=1, descending=True).values
    other = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return -(own - other) / (largest[:, 0] - largest[:, 2])


@pytest.mark.oracle
@pytest.mark.parametrize("component", ["apgd-ce", "apgd-dlr"])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_run_expectation__hands_over_what_perturb_finds_and_of_the_others_the_best(norm, component):
    """On a deterministic model single draws decide rightly, so that pyautoattack's own answer is a candidate."""
    model = small_network()
    images, labels = labelled(model)
    images, labels = images[1:], labels[1:]  # perturb leaves out a sample that is wrong when clean
    settings = AutoAttackSettings(Epsilon(EPS[norm]), norm, "rand", apgd_steps=20, eot_draws=2)
    target = Target(model)
    with target.guarded():
        published, _ = run_component(target, images, labels, component, settings, seed=5)
        (highest, misclassified), _ = run_expectation(target, images, labels, component, settings, seed=5)
    with torch.no_grad():
        broken = model(published).argmax(1) != labels
        assert 0 < int(broken.sum()) < len(labels)
        assert torch.equal(misclassified[broken], published[broken])
        assert torch.equal(published[~broken], images[~broken])
        assert (loss_of(component, model(highest), labels) >= loss_of(component, model(images), labels)).all()
    assert (highest != images).flatten(1).any(dim=1).all()


def test_eot_draws__is_the_number_of_calls_for_each_gradient():
    calls = []

    class Counting(nn.Module):
        def forward(self, images):
            calls.append(images.requires_grad)
            return images.flatten(1)[:, :10]

    target = Target(Counting().eval())
    images, labels = some_images(4), torch.zeros(4, dtype=torch.long)
    settings = AutoAttackSettings(Epsilon("8/255"), version="rand", apgd_steps=3, eot_draws=7)
    with target.guarded():
        run_expectation(target, images, labels, "apgd-ce", settings, seed=0)
    assert sum(calls) == settings.passes("apgd-ce", 10)[1] == 7 * 4


@pytest.mark.parametrize(
    ("dtype", "largest", "fits"),
    [
        (torch.uint8, 255, True),
        (torch.float64, 1 + 1e-9, True),
        (torch.float64, 1.1, False),
        (torch.float32, torch.nan, False),
    ],
)
def test_check_inputs__takes_what_is_in_range_in_float32(dtype, largest, fits):
    images = torch.full((1, 3, 2, 2), largest, dtype=dtype)
    with nullcontext() if fits else pytest.raises(ValueError, match="put the normalisation into the classifier"):
        check_inputs(images, torch.zeros(1, dtype=torch.int64), 2)
