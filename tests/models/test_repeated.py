import pytest
import torch
from torch import nn

from maep_lightning.attacks.bpda import StraightThrough
from maep_lightning.models.defended import DefendedClassifier
from maep_lightning.models.mae import MAEConfig, MaskedAutoencoder
from maep_lightning.models.purifier import Purifier
from maep_lightning.models.repeated import RepeatedPurifier, Voting


@pytest.fixture
def purifier():
    torch.manual_seed(0)
    config = MAEConfig(image_size=16, width=24, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2,
                       residual=False, refine_depth=2, refine_width=8)  # fmt: skip
    return Purifier(MaskedAutoencoder(config)).eval()


@pytest.fixture
def classifier():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 7)).eval()


@pytest.fixture
def images():
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def drawn(purifier, images, ratio, count, seed=0):
    """What one mask after the other gives, each image by itself: the oracle of the batched version."""
    torch.manual_seed(seed)
    noise = torch.rand(len(images) * count, 16)
    rows = [
        purifier.mae(image[None], ratio, noise=noise[i * count + v][None]).images.clamp(0, 1)
        for i, image in enumerate(images)
        for v in range(count)
    ]
    return torch.cat(rows).unflatten(0, (len(images), count))


def test_defaults__are_the_purifier_bit_for_bit(purifier, images):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(RepeatedPurifier(purifier)(images), purifier(images))
    assert torch.equal(torch.get_rng_state(), before)


def test_mean__is_the_mean_over_random_masks(purifier, images):
    expected = drawn(purifier, images, 0.5, 4)
    torch.manual_seed(0)
    found = RepeatedPurifier(purifier, mask_ratio=0.5, masks=4)(images)
    assert torch.allclose(found, expected.mean(1), atol=1e-6)
    assert (expected[:, 0] - expected[:, 1]).abs().max() > 1e-3


@pytest.mark.oracle
def test_vote__averages_the_class_probabilities_of_each_version(purifier, classifier, images):
    expected = drawn(purifier, images, 0.5, 4)
    probabilities = torch.stack([classifier(expected[:, v]).softmax(1) for v in range(4)]).mean(0)
    torch.manual_seed(0)
    logits = DefendedClassifier(RepeatedPurifier(purifier, 0.5, 4, "vote"), classifier)(images)
    assert torch.allclose(logits.softmax(1), probabilities, atol=1e-6)
    torch.manual_seed(0)
    of_the_mean = DefendedClassifier(RepeatedPurifier(purifier, 0.5, 4, "mean"), classifier)(images)
    assert not torch.allclose(of_the_mean.softmax(1), probabilities, atol=1e-4)


def test_passes__apply_the_purifier_to_its_own_output(purifier, images):
    assert torch.equal(RepeatedPurifier(purifier, passes=3)(images), purifier(purifier(purifier(images))))
    blur = nn.AvgPool2d(3, stride=1, padding=1).eval()
    assert torch.equal(RepeatedPurifier(blur, passes=2)(images), blur(blur(images)))


def test_passes__each_draws_masks_of_its_own(purifier, images):
    torch.manual_seed(0)
    found = RepeatedPurifier(purifier, mask_ratio=0.5, passes=2)(images)
    torch.manual_seed(0)
    once = purifier.mae(images, 0.5).images.clamp(0, 1)
    assert torch.equal(found, purifier.mae(once, 0.5).images.clamp(0, 1))


def test_mask_ratio__is_the_share_that_is_removed(purifier, images, monkeypatch):
    seen = []
    original = purifier.mae.forward

    def forward(*args, **options):
        output = original(*args, **options)
        seen.append(output.mask.mean(dim=1))
        return output

    monkeypatch.setattr(purifier.mae, "forward", forward)
    RepeatedPurifier(purifier, mask_ratio=0.25, masks=3)(images)
    assert [tuple(share.shape) for share in seen] == [(15,)]  # one batch
    assert (seen[0] == 0.25).all()


VOTE = {"mask_ratio": 0.5, "masks": 3, "aggregate": "vote"}


@pytest.mark.oracle
@pytest.mark.parametrize(
    "options", [VOTE, VOTE | {"aggregate": "mean"}, {"passes": 2}, {"mask_ratio": 0.25, "passes": 2}]
)
def test_gradient__is_that_of_finite_differences(purifier, classifier, images, options):
    repeated = RepeatedPurifier(purifier.double(), **options)
    defended = DefendedClassifier(repeated.frozen(5), classifier.double())
    point = (0.2 + 0.6 * images[:2].double()).requires_grad_()
    weight = torch.randn(2, 7, generator=torch.Generator().manual_seed(1)).double()
    (gradient,) = torch.autograd.grad((defended(point) * weight).sum(), point)
    direction = torch.randn(point.shape, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        ends = [(defended(point + sign * 1e-6 * direction) * weight).sum() for sign in (1, -1)]
    numeric, exact = (ends[0] - ends[1]) / 2e-6, (gradient * direction).sum()
    assert abs(numeric - exact) < 1e-4 * abs(exact)


@pytest.mark.parametrize("aggregate", ["mean", "vote"])
def test_frozen__is_a_function_of_the_image_alone(purifier, images, aggregate):
    repeated = RepeatedPurifier(purifier, mask_ratio=0.5, masks=2, aggregate=aggregate, passes=2)
    fixed = repeated.frozen(3)
    whole = fixed(images)
    assert torch.equal(fixed(images), whole)
    assert torch.allclose(fixed(images[[4, 1]]), whole[[4, 1]], atol=1e-6)
    assert not torch.allclose(repeated.frozen(4)(images), whole, atol=1e-3)
    assert not torch.allclose(repeated(images), repeated(images), atol=1e-3)


def test_frozen__draws_once_for_a_size_what_a_fresh_one_draws(purifier, images, monkeypatch):
    fixed, draws, rand = RepeatedPurifier(purifier, mask_ratio=0.5, masks=2, passes=2, seed=3), [], torch.rand
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: draws.append(shape) or rand(*shape, **options))
    with torch.inference_mode():
        fixed(images)
    point = images.clone().requires_grad_()
    fixed(point).sum().backward()  # through what was drawn in inference mode
    assert draws == [(2, 2, 16)]
    sides = range(8, 40, 4)
    for side in sides:
        small = images[:2, :, :1, :1].expand(-1, -1, side, side)
        fresh = RepeatedPurifier(purifier, mask_ratio=0.5, masks=2, passes=2, seed=3)
        assert torch.equal(fixed(small), fresh(small))
    assert len(fixed._fixed) < len(sides)
    assert fixed.state_dict().keys() == RepeatedPurifier(purifier).state_dict().keys()


def test_bpda__each_version_has_the_gradient_of_the_identity(purifier, images):
    through = StraightThrough(RepeatedPurifier(purifier, mask_ratio=0.5, masks=3, aggregate="vote"))
    point = images.clone().requires_grad_()
    torch.manual_seed(0)
    purified = through(point)
    assert torch.allclose(purified, drawn(purifier, images, 0.5, 3), atol=1e-6)
    weight = torch.randn(purified.shape)
    (gradient,) = torch.autograd.grad((purified * weight).sum(), point)
    assert torch.allclose(gradient, weight.sum(1), atol=1e-5)


def test_voting__of_equal_versions_is_the_classifier(classifier, images):
    logits = Voting(classifier)(images[:, None].expand(-1, 3, -1, -1, -1))
    assert torch.allclose(logits, classifier(images).log_softmax(1), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio must be in"),
        ({"mask_ratio": 0.5, "masks": 0}, "masks must be at least 1"),
        ({"passes": 0}, "passes must be at least 1"),
        ({"masks": 4}, "4 masks of ratio 0"),
        ({"mask_ratio": 0.5, "aggregate": "vote"}, "at least 2"),
        ({"mask_ratio": 0.5, "masks": 2, "aggregate": "median"}, "mean or vote"),
    ],
)
def test_options__that_cannot_be_or_do_nothing_are_refused(purifier, options, message):
    with pytest.raises(ValueError, match=message):
        RepeatedPurifier(purifier, **options)


def test_options__masks_need_patches():
    with pytest.raises(ValueError, match="AvgPool2d has no patches"):
        RepeatedPurifier(nn.AvgPool2d(3), mask_ratio=0.5)


def test_options__show_in_the_printed_structure_that_fingerprints_are_made_of(purifier):
    texts = {repr(RepeatedPurifier(purifier, **options)) for options in (
        {}, {"passes": 2}, {"mask_ratio": 0.5}, {"mask_ratio": 0.25}, {"mask_ratio": 0.5, "masks": 2},
        {"mask_ratio": 0.5, "masks": 2, "aggregate": "vote"}, {"mask_ratio": 0.5, "seed": 1},
    )}  # fmt: skip
    assert len(texts) == 7
