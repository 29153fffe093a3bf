import pytest
import torch
from torch import nn

from maep_lightning.attacks.target import GradientWatch, Target


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()


def test_target__refuses_training_mode_by_name():
    model = network()
    model[1].train()
    with pytest.raises(ValueError, match=r"training mode \(at 1\)"):
        Target(model)


def test_guarded__notices_training_mode_set_later():
    model = network()
    target = Target(model)
    model.train()
    with pytest.raises(ValueError, match="training mode"), target.guarded():
        pass


def test_target__refuses_half_precision():
    with pytest.raises(ValueError, match=r"1\.weight is torch\.bfloat16"):
        Target(network().bfloat16())


def test_target__refuses_weights_made_in_inference_mode():
    with torch.inference_mode():
        model = network()
    with pytest.raises(ValueError, match="inference_mode"):
        Target(model)


def test_target__refuses_one_logit():
    target = Target(nn.Sequential(nn.Flatten(), nn.Linear(12, 1)).eval())
    with target.guarded(), pytest.raises(ValueError, match="K >= 2"):
        target(torch.rand(2, 3, 2, 2))


def test_target__refuses_what_is_no_tensor():
    class Wrapped(nn.Module):
        def forward(self, images):
            return {"logits": images.flatten(1)}

    target = Target(Wrapped().eval())
    with target.guarded(), pytest.raises(ValueError, match="not a dict"):
        target(torch.rand(2, 3, 2, 2))


def test_guarded__autocast_and_inference_mode_do_not_reach_inside():
    target, images = Target(network()), torch.rand(2, 3, 2, 2)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), target.guarded():
        point = images.clone().requires_grad_()
        logits = target(point)
        assert logits.dtype == torch.float32
        (gradient,) = torch.autograd.grad(logits.sum(), point)
    assert torch.allclose(logits, network()(images), atol=1e-6)
    assert gradient.abs().sum() > 0


def test_guarded__precision_flags_come_back():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        with Target(network()).guarded():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_watch__counts_and_finds_the_point_of_a_nan_gradient():
    class Poisoned(torch.autograd.Function):
        @staticmethod
        def forward(ctx, images):
            return images.clone()

        @staticmethod
        def backward(ctx, gradient):
            gradient = gradient.clone()
            gradient[1] = float("nan")
            gradient[2] = 0
            return gradient

    class Layer(nn.Module):
        def forward(self, images):
            return Poisoned.apply(images)

    target = Target(Layer().eval(), network())
    with target.guarded():
        images = torch.rand(3, 3, 2, 2).requires_grad_()
        torch.autograd.grad(target(images).sum(), images)
    watch = target.watch
    assert (watch.forwards, watch.backwards, watch.nonfinite, watch.zero) == (3, 3, 1, 1)
    assert torch.equal(watch.suspects[0], images.detach()[1])


def test_watch__keeps_no_more_points_than_tell_that_there_are_too_many(monkeypatch):
    monkeypatch.setattr("maep_lightning.attacks.target.MOST_SUSPECTS", 5)
    watch, lost = GradientWatch(), torch.full((3, 3, 2, 2), torch.nan)
    kept = []
    for _ in range(4):
        watch.see(images := torch.rand(3, 3, 2, 2), lost)
        kept.append(len(watch.suspects))
    assert kept == [3, 6, 6, 6]
    assert watch.nonfinite == 12
    assert all(len(point.untyped_storage()) <= images.nbytes for point in watch.suspects)


class Versions(nn.Module):
    def forward(self, images):
        return torch.stack([images.flip(-1), images], dim=1)


class Mean(nn.Module):
    def forward(self, images):
        return network()(images.mean(dim=1))


def test_purify__is_what_the_last_network_gets_and_of_several_versions_the_first():
    images = torch.rand(2, 3, 2, 2)
    halved = nn.Hardtanh(0, 0.5).eval()
    assert torch.equal(Target(halved, network()).purify(images), images.clamp(0, 0.5))
    assert torch.equal(Target(Versions().eval(), Mean().eval()).purify(images), images.flip(-1))


@pytest.mark.parametrize(("size", "random"), [(0.0, False), (1e-7, False), (1e-2, True)])
def test_is_random__tells_coins_from_rounding_and_leaves_the_generator_alone(size, random):
    class Noise(nn.Module):
        def forward(self, images):
            return images + size * torch.randn_like(images)

    state = torch.get_rng_state()
    assert Target(Noise().eval(), network()).is_random(torch.rand(2, 3, 2, 2, generator=torch.Generator())) is random
    assert torch.equal(torch.get_rng_state(), state)
