import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maep_lightning.models.disco import Disco, DiscoConfig, DiscoPurifier
from maep_lightning.models.purifier import Purifier
from maep_lightning.models.registry import create_purifier, load_purifier

SMALL = {"width": 6, "depth": 2, "mlp_width": 10, "mlp_depth": 2}


@pytest.fixture
def purifier():
    torch.manual_seed(0)
    return DiscoPurifier(Disco(DiscoConfig(**SMALL))).eval()


def features(disco, images):
    """The encoder, from its weights and the description of EDSR-baseline."""

    def convolve(layer, x):
        return F.conv2d(x, layer.weight, layer.bias, padding=1)

    x = first = convolve(disco.head, (images - 0.5) / 0.5)
    for block in disco.body[:-1]:
        x = x + convolve(block.layers[2], F.relu(convolve(block.layers[0], x)))
    return first + convolve(disco.body[-1], x)


def liif(disco, z):
    """Equations 2 to 4 of Chen et al. 2021 with feature unfolding, cell decoding and local ensemble, query by query."""
    (_, _, h, w), predictions = z.shape, []
    around = F.pad(z, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)  # (B, D, H, W, 3, 3)
    linear = [layer for layer in disco.mlp if isinstance(layer, nn.Linear)]
    for y in range(h - 1):
        for x in range(w - 1):
            answers, areas = [], []
            for shift_y, shift_x in ((0, 0), (0, 1), (1, 0), (1, 1)):
                # Offsets and cells are counted in half features: a feature is 2 wide.
                offset = (-2.0 * shift_y, -2.0 * shift_x)
                local = around[:, :, y + shift_y, x + shift_x].flatten(1)
                hidden = torch.cat([local, local.new_tensor([*offset, 2.0, 2.0]).expand(len(local), -1)], dim=1)
                for number, layer in enumerate(linear):
                    hidden = layer(F.relu(hidden) if number else hidden)
                answers.append(hidden)
                areas.append(abs(offset[0] * offset[1]) + 1e-9)
            opposite = areas[::-1]
            predictions.append(sum(a * s for a, s in zip(answers, opposite, strict=True)) / sum(areas))
    return torch.stack(predictions, dim=2).unflatten(2, (h - 1, w - 1)) * 0.5 + 0.5


@pytest.mark.oracle
def test_disco__is_liif_with_local_ensemble_on_the_features_of_edsr(purifier):
    """All but the last row and column, where published LIIF averages with a neighbour by a quirk of its clamping."""
    disco, images = purifier.disco.double(), torch.rand(2, 3, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(disco(images)[..., :-1, :-1], liif(disco, features(disco, images)), atol=1e-7, rtol=1e-7)


def test_disco__the_papers_size():
    """EDSR-baseline without up-sampling (16 x 64) and LIIF's MLP (4 x 256), counted by hand."""
    d = 64
    convolution = 9 * d * d + d
    encoder = (9 * 3 * d + d) + 16 * 2 * convolution + convolution
    mlp = (9 * d + 4 + 1) * 256 + 3 * (256 + 1) * 256 + (256 + 1) * 3
    paper = create_purifier("disco_base")
    assert sum(p.numel() for p in paper.parameters()) == encoder + mlp == 1_567_299
    assert sum(p.numel() for p in create_purifier("disco_small").parameters()) < 0.1 * (encoder + mlp)


@pytest.mark.parametrize("field", [*SMALL, "mean", "std"])
def test_disco__every_field_of_the_architecture_is_noticed(field):
    other = (0.3, 0.3, 0.3) if field in ("mean", "std") else SMALL[field] + 1
    images, outputs, sizes = torch.rand(1, 3, 8, 8), [], []
    for config in (DiscoConfig(**SMALL), DiscoConfig(**(SMALL | {field: other}))):
        torch.manual_seed(0)
        disco = Disco(config)
        outputs.append(disco(images))
        sizes.append(sum(p.numel() for p in disco.parameters()))
    assert not torch.allclose(*outputs)
    assert (sizes[0] != sizes[1]) == (field in SMALL)


@pytest.mark.parametrize("size", [32, 64])
def test_disco__an_image_does_not_depend_on_its_batch(purifier, size):
    images = torch.rand(3, 3, size, size)
    purified = purifier(images)
    assert purified.shape == images.shape
    assert purified.min() >= 0
    assert purified.max() <= 1
    assert torch.equal(purifier(images), purified)
    torch.testing.assert_close(purifier(images[1:2]), purified[1:2], atol=1e-6, rtol=0)
    assert torch.equal(purifier(images.flip(0)).flip(0), purified)


def test_disco__gradient_agrees_with_finite_differences(purifier):
    purifier = purifier.double()
    images, weight, direction = torch.rand(3, 1, 3, 8, 8, dtype=torch.float64)

    def value(x):
        return (purifier.restore(x) * weight).sum()

    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(x), x)
    step = 1e-6
    numeric = (value(images + step * direction) - value(images - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=1e-7)


def test_disco__one_file_rebuilds_it_exactly_through_the_loader(purifier, tmp_path):
    path, images = tmp_path / "p.safetensors", torch.rand(2, 3, 16, 16)
    purifier.save_pretrained(path, {"data": "digits"})
    for again in (load_purifier(path), DiscoPurifier.from_pretrained(path)):
        assert isinstance(again, DiscoPurifier)
        assert not again.training
        assert again.config() == purifier.config() | {"mean": [0.5] * 3, "std": [0.5] * 3}
        assert torch.equal(again(images), purifier(images))
    with pytest.raises(ValueError, match="architecture disco, not mae"):
        Purifier.from_pretrained(path)


def test_disco__learns_to_take_noise_away():
    """Trained as in purification: l1 between the restored image and the clean one, on images it has not seen."""
    torch.manual_seed(0)
    purifier = DiscoPurifier(Disco(DiscoConfig(**SMALL)))
    optimizer = torch.optim.Adam(purifier.parameters(), 1e-2)

    def pair():
        clean = torch.rand(16, 3, 1, 1).expand(-1, -1, 8, 8)
        return clean, (clean + 0.2 * torch.randn(16, 3, 8, 8)).clamp(0, 1)

    for _ in range(150):
        clean, noisy = pair()
        loss = (purifier.restore(noisy) - clean).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clean, noisy = pair()
    assert (purifier(noisy) - clean).abs().mean() < 0.6 * (noisy - clean).abs().mean()


def test_disco__has_no_patches_to_mask(purifier):
    with pytest.raises(ValueError, match=r"set mask_ratio to 0, not 0\.5"):
        purifier.restore(torch.rand(1, 3, 8, 8), mask_ratio=0.5)
