"""A diffusion model as a purifier, on a tiny random network of diffusers."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from maep_lightning.evaluation.fingerprint import of_architecture, of_weights
from maep_lightning.models.diffusion import DiffusionPurifier
from maep_lightning.models.registry import load_purifier

diffusers = pytest.importorskip("diffusers")
TRAINED = 20


def unet(seed=0, outputs=3):
    torch.manual_seed(seed)
    return diffusers.UNet2DModel(
        sample_size=32, in_channels=3, out_channels=outputs, layers_per_block=1, block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4, norm_num_groups=2,
    ).eval().requires_grad_(False)  # fmt: skip


def purifier(t=0.25, network=None, variance="fixed_small", **options):
    scheduler = diffusers.DDPMScheduler(TRAINED, beta_end=0.2, clip_sample=False, variance_type=variance)
    return DiffusionPurifier(network or unet(), scheduler, t, **options).eval()


def draw(module, images, seed=1):
    torch.manual_seed(seed)
    return module(images)


@pytest.mark.oracle
def test_diffusion__is_algorithm_2_of_ddpm_from_t_on():
    """Ho et al. 2020, equation 4 to get there and algorithm 2 to come back, written out."""
    images, network = torch.rand(2, 3, 16, 16), unet()
    beta = torch.linspace(1e-4, 0.2, TRAINED)
    alpha, total = 1 - beta, torch.cumprod(1 - beta, 0)
    torch.manual_seed(1)
    x = total[4].sqrt() * (2 * images - 1) + (1 - total[4]).sqrt() * torch.randn_like(images)
    for t in (4, 3, 2, 1, 0):
        mean = (x - beta[t] / (1 - total[t]).sqrt() * network(x, t).sample) / alpha[t].sqrt()
        variance = beta[t] * (1 - total[t - 1]) / (1 - total[t]) if t else torch.zeros(())
        x = mean + variance.sqrt() * torch.randn_like(mean) if t else mean
    torch.testing.assert_close(draw(purifier(network=network), images), ((x + 1) / 2).clamp(0, 1), atol=1e-5, rtol=1e-5)


class Knows(nn.Module):
    """Predicts the very noise by which its input differs from one image."""

    def __init__(self, image):
        super().__init__()
        self.image = 2 * image - 1
        self.total = torch.cumprod(1 - torch.linspace(1e-4, 0.2, TRAINED), 0)

    def forward(self, sample, timestep):
        total = self.total[timestep]
        noise = (sample - total.sqrt() * self.image) / (1 - total).sqrt()
        return SimpleNamespace(sample=noise)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("options", [{}, {"t": 1.0}, {"steps": 2}, {"steps": 1}, {"gradient": "bpda"}])
def test_diffusion__a_perfect_denoiser_returns_the_clean_image_from_any_time(options, variance):
    clean = torch.rand(2, 3, 8, 8)
    purified = purifier(network=Knows(clean), variance=variance, **options)(torch.rand(2, 3, 8, 8))
    torch.testing.assert_close(purified, clean, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [32, 64])
def test_diffusion__keeps_shape_and_range_and_follows_the_global_seed(size):
    images, module = torch.rand(2, 3, size, size), purifier(0.1)
    purified = draw(module, images)
    assert purified.shape == images.shape
    assert purified.min() >= 0
    assert purified.max() <= 1
    assert torch.equal(draw(module, images), purified)
    assert not torch.equal(draw(module, images, seed=2), purified)


@pytest.mark.parametrize(("variance", "outputs"), [("fixed_small", 3), ("learned_range", 6)])
def test_diffusion__full_gradient_agrees_with_finite_differences(variance, outputs):
    """A learned variance scales the noise, so that a step that is recomputed must draw the same noise again."""
    module = purifier(0.2, unet(outputs=outputs), variance).double()
    images = 0.3 + 0.4 * torch.rand(1, 3, 8, 8, dtype=torch.float64)
    weight, direction = torch.randn(2, 1, 3, 8, 8, dtype=torch.float64)
    x = images.clone().requires_grad_()
    purified = draw(module, x)
    torch.manual_seed(9)
    (gradient,) = torch.autograd.grad((purified * weight).sum(), x)
    step = 1e-6
    ends = [(draw(module, images + sign * step * direction) * weight).sum() for sign in (1, -1)]
    torch.testing.assert_close((gradient * direction).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-6)


def test_diffusion__bpda_has_the_same_value_and_the_identitys_gradient():
    images, weight = torch.rand(2, 1, 3, 16, 16)
    x = images.clone().requires_grad_()
    purified = draw(purifier(gradient="bpda"), x)
    assert torch.equal(purified, draw(purifier(), images))
    assert torch.equal(torch.autograd.grad((purified * weight).sum(), x)[0], weight)


def test_diffusion__memory_of_the_way_back_is_that_of_one_step():
    """Between the steps only their inputs are kept: three more steps keep three more images, and no activation."""

    def kept(t):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda x: x
        ):
            purifier(t)(torch.rand(1, 3, 16, 16, requires_grad=True))
        return sum(sizes)

    assert kept(0.25) - kept(0.1) <= 3 * 2 * 3 * 16 * 16


@pytest.mark.parametrize("layout", ["pipeline", "one folder"])
def test_diffusion__loads_a_folder_of_diffusers_by_a_text(tmp_path, layout):
    network, scheduler = unet(), diffusers.DDPMScheduler(TRAINED, beta_end=0.2, clip_sample=False)
    if layout == "pipeline":
        diffusers.DDPMPipeline(network, scheduler).save_pretrained(tmp_path)
    else:
        network.save_pretrained(tmp_path)
        scheduler.save_pretrained(tmp_path)
    loaded = load_purifier(f"diffusion:{tmp_path},t=0.25,steps=3")
    images = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(
        draw(loaded, images), draw(purifier(network=network, steps=3), images), atol=1e-6, rtol=0
    )
    assert of_weights(loaded) == of_weights(purifier(network=network))
    assert not any(module.training for module in loaded.modules())


def test_diffusion__every_option_is_noticed():
    images = torch.rand(1, 3, 16, 16)
    made = [purifier(), purifier(0.5), purifier(steps=2), purifier(gradient="bpda"), purifier(network=unet(1))]
    prints = {(of_architecture(module), of_weights(module)) for module in made}
    assert len(prints) == len(made)
    outputs = [draw(module, images) for module in made]
    assert [torch.equal(outputs[0], other) for other in outputs] == [True, False, False, True, False]
    betas = purifier()
    betas.scheduler.register_to_config(beta_end=0.1)
    assert of_architecture(betas) != of_architecture(purifier())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t": 0.0}, "t must be above 0 and at most 1"),
        ({"t": 1.5}, "t must be above 0 and at most 1"),
        ({"steps": 6}, "steps must be from 1 to 5 at t = 0.25"),
        ({"gradient": "adjoint"}, "gradient must be full or bpda"),
    ],
)
def test_diffusion__refuses_what_makes_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        purifier(**options)


def test_diffusion__says_what_a_folder_lacks(tmp_path):
    unet().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"scheduler/scheduler_config\.json"):
        load_purifier(f"diffusion:{tmp_path}")
