from dataclasses import replace

import numpy as np
import pytest
import torch

from maep_lightning.attacks.simple import RECIPES, simple_attack
from maep_lightning.attacks.threat import Epsilon
from maep_lightning.evaluation import fingerprint
from maep_lightning.models.classifiers import create_classifier
from maep_lightning.tasks.pairs import PairAttack, PairPool

EPS = 16 / 255


@pytest.fixture
def case():
    torch.manual_seed(0)
    classifier = create_classifier("resnet8", 10).eval().requires_grad_(False)
    return classifier, torch.rand(12, 3, 32, 32) * 0.6 + 0.2, torch.arange(12) % 10


def settings(**options):
    return PairAttack(**{"eps": Epsilon("16/255"), "step_size": Epsilon("2/255"), "steps": 3, "bf16": False, **options})


def radius(attacked, images):
    return (attacked - images).abs().flatten(1).amax(1)


def test_kind__fgsm_is_the_attack_of_the_literature(case):
    assert torch.equal(settings(kind="fgsm")(*case), simple_attack(*case, "fgsm", EPS))


@pytest.mark.parametrize("kind", ["bim", "mi-fgsm"])
def test_kind__iterative_ones_take_the_steps_asked_for(case, kind):
    made = settings(kind=kind, steps=10, step_size=Epsilon(EPS / 10))(*case)
    torch.testing.assert_close(made, simple_attack(*case, kind, EPS))
    assert radius(settings(kind=kind)(*case), case[1]).max() <= 3 * 2 / 255 + 1e-6


def test_kind__pgd_alone_starts_at_random(case):
    still = {"steps": 1, "step_size": Epsilon(1e-9)}
    moved = {kind: radius(settings(kind=kind, **still)(*case), case[1]) for kind in ("pgd", "bim", "mi-fgsm")}
    assert moved["pgd"].min() > 0.9 * EPS
    assert moved["bim"].max() < 1e-6
    assert moved["mi-fgsm"].max() < 1e-6


def test_steps__of_none_are_for_random_noise_alone(case):
    assert radius(settings(steps=0)(*case), case[1]).min() > 0.9 * EPS
    for options in ({"steps": 0, "kind": "bim"}, {"steps": 0, "kind": ["pgd", "mi-fgsm"]}, {"steps": -5}):
        with pytest.raises(ValueError, match="steps attack nothing"):
            settings(**options)


def test_step_size__says_nothing_where_no_such_step_is_taken():
    for options in ({"kind": "fgsm"}, {"steps": 0}):
        assert settings(step_size=Epsilon(0), **options).step_size == 0
    assert settings(eps=Epsilon(0)).judge().step_size == 0


def test_norm__in_l2_every_sample_moves_by_the_radius(case):
    moved = settings(kind="fgsm", norm="L2", eps=Epsilon(0.5))(*case) - case[1]
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.full((12,), 0.5))


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bf16__is_the_precision_of_the_passes_through_the_classifier(case, bf16, dtype):
    seen = set()
    case[0].register_forward_hook(lambda module, images, logits: seen.add(logits.dtype))
    settings(bf16=bf16)(*case)
    assert seen == {dtype}


def test_kind__in_a_mix_the_samples_take_turns(case):
    classifier, images, labels = case
    mixed = settings(kind=["fgsm", "bim"])(*case)
    for turn, kind in enumerate(["fgsm", "bim"]):
        alone = settings(kind=kind)(classifier, images[turn::2], labels[turn::2])
        torch.testing.assert_close(mixed[turn::2], alone)
    torch.testing.assert_close(settings(kind=["fgsm", "bim"])(classifier, images[:1], labels[:1]), mixed[:1])


def test_eps_low__draws_a_radius_for_each_sample(case):
    classifier, images, labels = case
    images, labels = images.repeat(10, 1, 1, 1), labels.repeat(10)
    sizes = radius(settings(kind="fgsm", eps_low=Epsilon("4/255"))(classifier, images, labels), images) * 255
    assert sizes.min() > 4 - 1e-3
    assert sizes.max() < 16 + 1e-3
    # 120 even draws from [4, 16]: the mean is 10 within 4 standard errors of 0.32.
    assert sizes.mean() == pytest.approx(10, abs=1.3)
    assert sizes.std() == pytest.approx(12 / 12**0.5, rel=0.2)


def test_eps_low__bounds_iterative_attacks_as_well(case):
    sizes = radius(settings(eps_low=Epsilon("1/255"), eps=Epsilon("2/255"))(*case), case[1]) * 255
    assert 1 - 1e-3 < sizes.min() < sizes.max() < 2 + 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "mifgsm"}, "did you mean mi-fgsm"),
        ({"kind": []}, "No training attack"),
        ({"eps": Epsilon(8)}, "8/255"),
        ({"norm": "L1", "eps": Epsilon(12)}, "in Linf or L2, not in L1"),
        ({"step_size": Epsilon(0)}, "step_size = 0.* attack nothing: give a length such as 2/255"),
        ({"step_size": Epsilon(0), "kind": ["fgsm", "bim"]}, "step_size = 0.* attack nothing"),
        ({"eps_low": Epsilon("20/255")}, "above eps"),
        ({"refresh": -1}, "0 for never"),
        ({"cache_dir": "pairs"}, "attack.refresh to 0"),
    ],
)
def test_settings__that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        settings(**options)


def test_cache_file__is_another_for_everything_that_makes_other_pairs(case, tmp_path, monkeypatch):
    classifier, images, labels = case
    torch.manual_seed(1)
    other = create_classifier("resnet8", 10).eval()
    pixels = (images * 255).to(torch.uint8)

    def name(classifier=classifier, pixels=pixels, labels=labels, **options):
        options = {"refresh": 0, "cache_dir": str(tmp_path)} | options
        return settings(**options).cache_file(classifier, pixels, labels)

    changes = [
        {"kind": "bim"}, {"eps": Epsilon("8/255")}, {"eps_low": Epsilon("1/255")}, {"steps": 4}, {"norm": "L2"},
        {"step_size": Epsilon("1/255")}, {"bf16": True}, {"classifier": other}, {"pixels": 255 - pixels},
        {"labels": labels.flip(0)},
    ]  # fmt: skip
    files = [name(), *(name(**change) for change in changes)]
    assert len(set(files)) == len(changes) + 1
    assert name(kind=["pgd"]) == name()
    assert name(cache_dir=None) is None
    monkeypatch.setitem(RECIPES, "pgd", replace(RECIPES["pgd"], momentum=1.0))
    files.append(name())
    classifier.packages = ("numpy", "a library")
    files.append(name())
    monkeypatch.setattr(fingerprint, "of_packages", lambda: {"torch": "another"})
    assert len({*files, name()}) == len(changes) + 4


def pool(**options):
    return PairPool(4, (3, 2, 2), torch.device("cpu"), **options)


def made_with(value, asked):
    def make(stale):
        asked.append(int(stale.sum()))
        return torch.full((asked[-1], 3, 2, 2), value / 255)

    return make


def test_pool__keeps_a_sample_for_so_many_epochs_however_often_it_is_used():
    kept, asked = pool(refresh=2), []
    for epoch, index in enumerate(([0, 1], [0, 2], [0, 2], [1, 3])):
        last = kept.take(torch.tensor(index), epoch, made_with(epoch, asked)) * 255
    assert asked == [2, 1, 1, 2]  # sample 0 in epochs 0 and 2, sample 1 in 0 and 3 though used once
    torch.testing.assert_close(last[:, 0, 0, 0], torch.tensor([3.0, 3.0]))


def test_pool__of_several_processes_keeps_what_all_have_made(tmp_path):
    pools, asked = [pool(file=tmp_path / "pairs.npy") for _ in range(2)], []
    for number, kept in enumerate(pools):
        kept.take(torch.tensor([number, 2]), 0, made_with(number + 1, asked))
    for kept in pools:
        kept.save()
    assert np.load(tmp_path / "pairs.npy")["image"][:, 0, 0, 0].tolist() == [1, 2, 2, 0]
    pools[0].merge()
    images = pools[0].take(torch.tensor([0, 1, 2]), 1, made_with(9, asked)) * 255
    assert asked == [2, 2]
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor([1.0, 2.0, 1.0]))


def test_pool__on_disk_serves_the_next_run_and_stays_whole(tmp_path):
    file, asked = tmp_path / "deep" / "pairs.npy", []
    first = pool(file=file)
    first.take(torch.tensor([3, 0]), 0, made_with(7, asked))
    assert not file.exists()
    first.save()
    second = pool(file=file)
    images = second.take(torch.tensor([0, 1]), 0, made_with(9, asked)) * 255
    assert asked == [2, 1]
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor([7.0, 9.0]))
    # What the second run added is not in the file before it is saved, and then all of it is.
    assert np.load(file)["made"].tolist() == [True, False, False, True]
    second.save()
    assert np.load(file)["image"][:, 0, 0, 0].tolist() == [7, 9, 0, 7]
    assert [path.name for path in file.parent.iterdir()] == ["pairs.npy"]


@pytest.mark.faults
def test_pool__says_when_its_file_is_damaged_or_of_other_images(tmp_path):
    whole = pool(file=tmp_path / "pairs.npy")
    whole.take(torch.tensor([0]), 0, made_with(1, []))
    whole.save()
    content = (tmp_path / "pairs.npy").read_bytes()
    (tmp_path / "pairs.npy").write_bytes(content[:-5])
    with pytest.raises(ValueError, match=r"pairs\.npy are damaged"):
        pool(file=tmp_path / "pairs.npy")
    (tmp_path / "pairs.npy").write_bytes(content)
    with pytest.raises(ValueError, match="does not hold 5 pairs"):
        PairPool(5, (3, 2, 2), torch.device("cpu"), file=tmp_path / "pairs.npy")
