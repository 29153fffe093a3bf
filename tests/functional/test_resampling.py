import pytest
import torch
import torch.nn.functional as F

from maep_lightning.functional.resampling import resample


@pytest.mark.oracle
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(
    ("old", "new"), [((20, 33), (18, 30)), ((32, 32), (224, 200)), ((40, 24), (7, 24)), ((5, 6), (5, 6))]
)
def test_resample__and_its_gradient_are_those_of_torchs_interpolation(old, new, antialias):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *old, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(2, 3, *new, generator=generator, dtype=torch.float64)
    found, expected = (
        resample(images, *new, antialias),
        F.interpolate(images, new, mode="bilinear", antialias=antialias),
    )
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((image * weight).sum(), images)[0] for image in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_resample__under_autocast_is_what_it_is_without():
    images = torch.rand(2, 3, 20, 33, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = resample(resample(images, 9, 12), 20, 33)
    assert torch.equal(found, resample(resample(images, 9, 12), 20, 33))
    assert resample(images.bfloat16(), 9, 12).dtype == torch.bfloat16
