"""White-box aware training."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer

from maep_lightning.attacks.pgd import pgd
from maep_lightning.attacks.threat import Epsilon
from maep_lightning.data import ImageDataModule
from maep_lightning.models.classifiers import create_classifier, save_classifier
from maep_lightning.tasks import AdversarialFinetuning
from maep_lightning.tasks.adversarial import WhiteboxAttack
from maep_lightning.tasks.defence import LoRA

SMALL = {
    "width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_heads": 2, "refine_depth": 1, "refine_width": 4
}  # fmt: skip


@pytest.fixture
def build(tmp_path):
    torch.manual_seed(0)
    save_classifier(create_classifier("resnet8", 10), tmp_path / "classifier.safetensors", "resnet8", 10)

    def build(**options):
        torch.manual_seed(1)
        path = str(tmp_path / "classifier.safetensors")
        return AdversarialFinetuning(path, shape="maep_deep_patch4_32", overrides=SMALL, **options).eval()

    return build


@pytest.fixture
def batch():
    torch.manual_seed(2)
    return torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32), torch.arange(4)


def test_losses__are_the_published_terms_through_the_frozen_classifier(build, batch):
    clean, attacked, labels = batch
    task = build(adversarial=1.0, clean=1.0, consistency=1.0, pixel=1.0)
    with torch.no_grad():
        terms = task.losses(clean, attacked, labels)
        on_clean = task.classifier(task.purifier(clean)).softmax(1)
        on_attacked = task.classifier(task.purifier(attacked)).softmax(1)
        expected = {
            "adversarial": -on_attacked[range(4), labels].log().mean(),
            "clean": -on_clean[range(4), labels].log().mean(),
            "consistency": (on_clean * (on_clean / on_attacked).log()).sum(1).mean(),  # TRADES: KL(clean || attacked)
            "pixel": (task.purifier(attacked) - clean).abs().mean(),
        }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "distance"),
    [("l2", lambda x: x.square()), ("charbonnier", lambda x: (x.square() + 1e-6).sqrt())],
)
def test_loss__is_the_distance_of_the_pixel_term(build, batch, loss, distance):
    task = build(adversarial=0.0, pixel=1.0, loss=loss)
    expected = distance(task.purifier(batch[1]) - batch[0]).mean()
    torch.testing.assert_close(task.losses(*batch)["pixel"], expected)


@pytest.mark.parametrize("weight", ["adversarial", "clean", "consistency", "pixel"])
def test_weights__a_term_without_weight_is_not_part_of_the_loss(build, batch, weight):
    weights = dict.fromkeys(("adversarial", "clean", "consistency", "pixel"), 0.0) | {weight: 2.0}
    task = build(**weights)
    terms = task.losses(*batch)
    assert list(terms) == [weight]
    task.attacked = lambda images, labels, scale: batch[1]
    task.log = task.log_dict = lambda *args, **options: None
    torch.testing.assert_close(task.training_step((batch[0], batch[2]), 0), 2 * terms[weight])


def test_attacked__goes_through_the_purifier(build, batch):
    """The gradient that the attack follows is that of the whole pipeline, by finite differences in float64."""
    images, _, labels = batch
    task = build().double()
    eps = 1e-5
    attack = WhiteboxAttack(eps=Epsilon(eps), step_size=Epsilon(2 * eps), steps=1)
    task.attack = attack
    moved = task.attacked(images.double(), labels)

    def loss(x):
        return F.cross_entropy(task.classifier(task.purifier(x)), labels, reduction="none")

    with torch.no_grad():
        rise = loss(moved) - loss(images.double())
        x = images.double().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x).sum(), x)
    best = eps * gradient.flatten(1).abs().sum(1)  # the most that a linear function can rise in the ball
    assert (rise > 0.95 * best).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_attack__is_pgd_of_the_settings_on_purifier_and_classifier(build, batch, norm):
    images, _, labels = batch
    settings = WhiteboxAttack(eps=Epsilon("6/255"), step_size=Epsilon("1/255"), steps=3, norm=norm)
    task = build(attack=settings)
    torch.manual_seed(4)
    moved = task.attacked(images, labels)
    torch.manual_seed(4)
    expected = pgd(lambda x: task.classifier(task.purifier(x)), images, labels, 6 / 255, 1 / 255, 3, norm)
    torch.testing.assert_close(moved, expected)


def test_growth__scales_radius_and_step_with_the_training(build, batch, monkeypatch):
    task = build(attack=WhiteboxAttack(eps=Epsilon("8/255"), growth=0.5))
    seen = []
    attacked = task.attacked

    def watched(images, labels, scale):
        moved = attacked(images, labels, scale)
        seen.append(float((moved - images).abs().max() * 255))
        return moved

    monkeypatch.setattr(task, "attacked", watched)
    data = ImageDataModule("digits", batch_size=16, train_limit=64, val_size=20, augment=False)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(task, data)
    assert seen == pytest.approx([4, 8, 8, 8], abs=0.01)
    assert not any(parameter.requires_grad for parameter in task.classifier.parameters())


def test_draws__average_the_probabilities(build, batch, monkeypatch):
    task = build(noise=0.5, attack=WhiteboxAttack(draws=3))
    torch.manual_seed(3)
    logits = task.expected_logits(batch[0])
    torch.manual_seed(3)
    singles = [task.classifier(task.purify(batch[0])).softmax(1) for _ in range(3)]
    assert not torch.allclose(singles[0], singles[1])
    torch.testing.assert_close(logits.softmax(1), torch.stack(singles).mean(0))


@pytest.mark.parametrize("option", [{"noise": 0.3}, {"mask_ratio": 0.5}])
def test_randomisation__is_there_when_asked_for_alone(build, batch, option):
    deterministic, stochastic = build(), build(**option)
    assert torch.equal(deterministic.purify(batch[0]), deterministic.purify(batch[0]))
    assert not torch.equal(stochastic.purify(batch[0]), stochastic.purify(batch[0]))


def test_trainable__and_lora_say_what_is_trained(build, tmp_path):
    def trained(**options):
        return {name for name, value in build(**options).purifier.mae.named_parameters() if value.requires_grad}

    assert any(name.startswith("blocks") for name in trained())
    build().purifier.save_pretrained(tmp_path / "start.safetensors")
    weights = str(tmp_path / "start.safetensors")
    decoder = trained(weights=weights, trainable="decoder")
    assert decoder
    assert all(name.startswith("decoder_") or name == "mask_token" for name in decoder)
    assert all("lora_" in name for name in trained(weights=weights, lora=LoRA()))


def test_settings__that_train_nothing_are_refused(build):
    with pytest.raises(ValueError, match="nor all zero"):
        build(adversarial=0.0)
    with pytest.raises(ValueError, match="8/255"):
        build(attack=WhiteboxAttack(eps=Epsilon(8)))
    with pytest.raises(ValueError, match="growth"):
        WhiteboxAttack(growth=2)
    with pytest.raises(ValueError, match="a length above 0"):
        WhiteboxAttack(steps=0)
    with pytest.raises(ValueError, match=r"not 18"):
        build(noise=18)


def test_noise__leaves_an_image_of_the_range_that_the_purifier_will_see(build):
    task, seen = build(noise=0.5), []
    task.purifier.restore = lambda images, ratio: seen.append(images) or images
    task.purify(torch.rand(4, 3, 32, 32).round())
    assert seen[0].min() >= 0
    assert seen[0].max() <= 1
    assert not torch.equal(seen[0], seen[0].round())
