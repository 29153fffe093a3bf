"""Purifiers without weights: what a trained one has to beat, and controls.

None that keeps the pixel range by itself clamps: at its very bounds, where black and white pixels are, the gradient of
torch's clamp is 0 in some versions.
"""

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from maep_lightning.functional.resampling import resample
from maep_lightning.functional.straight_through import straight_through, within_range
from maep_lightning.models.purifier import ImagePurifier


class Identity(ImagePurifier):
    """No purification: what the harness itself does to a figure."""

    def purify(self, images: Tensor) -> Tensor:
        """The images."""
        return images


class Jpeg(ImagePurifier):
    """JPEG compression by Pillow (Dziugaite et al. 2016; Guo et al. 2018), with the identity's gradient.

    The value is exact, computed on the CPU. Rounding has no useful gradient, so an attack gets the identity's (BPDA),
    which is known to break JPEG (Athalye et al. 2018); check S2 of the sanity battery fails on it, as it should.

    Args:
        quality: From 1 to 95, as Pillow understands it.

    Attributes:
        packages: What it is computed by, for fingerprints of evaluations.
    """

    packages = ("pillow",)

    def __init__(self, quality: int) -> None:
        super().__init__()
        if not 1 <= quality <= 95:
            raise ValueError(f"jpeg: quality must be from 1 to 95, not {quality}.")
        self.quality = quality

    def purify(self, images: Tensor) -> Tensor:
        """Compress and decompress `(B, 3, H, W)`."""
        pixels = (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        decoded = torch.from_numpy(np.stack([self._compress(image) for image in pixels]))
        return straight_through(images, decoded.permute(0, 3, 1, 2).to(images) / 255)

    def _compress(self, image: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="JPEG", quality=self.quality)
        return np.asarray(Image.open(file))

    def extra_repr(self) -> str:
        """What distinguishes it from another of its class; it goes into fingerprints."""
        return f"quality={self.quality}"


class BitDepth(ImagePurifier):
    """Fewer bits a channel (Xu et al. 2018, "Feature squeezing"), with the identity's gradient as in `Jpeg`.

    Args:
        bits: From 1 to 8; `2**bits` values a channel remain.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        if not 1 <= bits <= 8:
            raise ValueError(f"bit-depth: bits must be from 1 to 8, not {bits}.")
        self.bits = bits

    def purify(self, images: Tensor) -> Tensor:
        """Round `(B, 3, H, W)` to the remaining values."""
        levels = 2**self.bits - 1
        return straight_through(images, (images.detach() * levels).round() / levels)

    def extra_repr(self) -> str:
        """See `Jpeg.extra_repr`."""
        return f"bits={self.bits}"


class Median(ImagePurifier):
    """The median of each channel in a square window, mirrored at the borders (Xu et al. 2018); differentiable.

    Args:
        kernel_size: Side of the window in pixels, odd.
    """

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise ValueError(f"median: kernel_size must be odd and at least 3, not {kernel_size}.")
        self.kernel_size = kernel_size

    def purify(self, images: Tensor) -> Tensor:
        """Filter `(B, 3, H, W)`."""
        k = self.kernel_size
        _check_reach(images, k // 2, f"median:{k}")
        padded = F.pad(images, [k // 2] * 4, mode="reflect")
        windows = padded.unfold(2, k, 1).unfold(3, k, 1).flatten(4)
        # Not torch.median: on a GPU it may take either of two equal pixels, and the gradient goes to that one.
        return windows.sort(dim=4, stable=True).values[..., k * k // 2]

    def extra_repr(self) -> str:
        """See `Jpeg.extra_repr`."""
        return f"kernel_size={self.kernel_size}"


class Gaussian(ImagePurifier):
    """A Gaussian blur, cut off at three standard deviations, mirrored at the borders; differentiable.

    Args:
        sigma: Standard deviation in pixels.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"gaussian: sigma must be positive, not {sigma}.")
        self.sigma = sigma

    def purify(self, images: Tensor) -> Tensor:
        """Blur `(B, 3, H, W)`."""
        reach = math.ceil(3 * self.sigma)
        _check_reach(images, reach, f"gaussian:{self.sigma}")
        return within_range(gaussian_blur(images, [2 * reach + 1] * 2, [self.sigma] * 2))

    def extra_repr(self) -> str:
        """See `Jpeg.extra_repr`."""
        return f"sigma={self.sigma}"


class Resize(ImagePurifier):
    """Down and up again, bilinear with antialiasing; differentiable.

    The control for purifiers that change the resolution on the way: how much of their effect is resampling alone.

    Args:
        size: The shorter side in pixels in between; the other keeps the proportions.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"resize: size must be at least 1, not {size}.")
        self.size = size

    def purify(self, images: Tensor) -> Tensor:
        """Resample `(B, 3, H, W)`.

        Raises:
            ValueError: If the images are not larger than `size`.
        """
        h, w = images.shape[2:]
        short = min(h, w)
        if self.size >= short:
            raise ValueError(f"resize:{self.size} leaves images of {h}x{w} as they are; take a size below {short}.")
        between = round(h * self.size / short), round(w * self.size / short)
        return within_range(resample(resample(images, *between), h, w))

    def extra_repr(self) -> str:
        """See `Jpeg.extra_repr`."""
        return f"size={self.size}"


class Mirror(ImagePurifier):
    """The image mirrored left to right; differentiable.

    The control for blind attacks: nothing is taken away from the image or from the perturbation, so whatever this
    defends is owed to perturbations that have to lie on the pixels they were made for.
    """

    def purify(self, images: Tensor) -> Tensor:
        """Mirror `(B, 3, H, W)`."""
        return images.flip(-1)


class Noise(ImagePurifier):
    """Gaussian noise; differentiable.

    On its own it is the noise of randomised smoothing (Cohen et al. 2019); before a denoiser, as in
    `noise:0.1+purifier.safetensors`, it is noising and denoising.

    Args:
        std: Standard deviation on the [0, 1] scale.
        seed: Fixes the noise: the same for every image of a size and every call, a deterministic purifier that an
            attacker may know. None draws it anew from torch's global generator.
    """

    def __init__(self, std: float, seed: int | None = None) -> None:
        super().__init__()
        if not 0 < std <= 1:
            raise ValueError(f"noise: std must be positive and at most 1, as in noise:8/255, not {std}.")
        self.std, self.seed = std, seed
        self._fixed: dict[tuple[torch.Size, torch.device], Tensor] = {}

    def purify(self, images: Tensor) -> Tensor:
        """Add noise to `(B, 3, H, W)`."""
        noise = torch.randn_like(images) if self.seed is None else self._drawn(images, self.seed)
        return (images + self.std * noise).clamp(0, 1)

    def _drawn(self, images: Tensor, seed: int) -> Tensor:
        key = images.shape[1:], images.device
        if key not in self._fixed:
            with torch.inference_mode(False):
                noise = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed))
                self._fixed[key] = noise.to(images.device)
        return self._fixed[key].to(images.dtype)

    def frozen(self, seed: int) -> "Noise":
        """The same with its noise fixed.

        Args:
            seed: Of the noise.
        """
        return Noise(self.std, seed)

    def extra_repr(self) -> str:
        """See `Jpeg.extra_repr`."""
        return f"std={self.std}" + ("" if self.seed is None else f", seed={self.seed}")


def _check_reach(images: Tensor, reach: int, spec: str) -> None:
    """Mirroring needs more pixels than it mirrors."""
    h, w = images.shape[2:]
    if reach >= min(h, w):
        raise ValueError(f"{spec} reaches {reach} pixels far, which images of {h}x{w} do not have; take less.")
