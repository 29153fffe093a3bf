"""A diffusion model as a purifier (DiffPure), on the networks and schedules of the diffusers library."""

from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maep_lightning.functional.straight_through import straight_through
from maep_lightning.models.purifier import ImagePurifier

Gradient = Literal["full", "bpda"]


class DiffusionPurifier(ImagePurifier):
    """Noise up to a time, and denoise from there (Nie et al. 2022, https://arxiv.org/abs/2205.07460).

    Stochastic: the noise comes from torch's global generator. The paper solves the reverse stochastic differential
    equation; this takes the ancestral steps of DDPM, as its reimplementations do, and figures of the two differ.

    Args:
        unet: Noisy images in [-1, 1] and time steps to what the scheduler's `prediction_type` says; a
            `diffusers.UNet2DModel`.
        scheduler: A `diffusers.DDPMScheduler`, which it changes.
        t: The time in (0, 1] up to which noise is added; the paper takes 0.1 for CIFAR-10 and 0.15 for ImageNet.
        steps: Denoising steps from there, evenly spaced; None takes every one the network was trained for.
        gradient: `full` differentiates through every step and recomputes each on the way back, so that the memory is
            that of one; `bpda` passes the identity's gradient.

    Attributes:
        packages: What holds the network's code, for fingerprints of evaluations.

    Raises:
        ValueError: If a value is out of range.
    """

    packages = ("diffusers",)

    def __init__(
        self, unet: nn.Module, scheduler: Any, t: float = 0.1, steps: int | None = None, gradient: Gradient = "full"
    ) -> None:
        super().__init__()
        trained = scheduler.config.num_train_timesteps
        noised = round(t * trained)
        if not 1 <= noised <= trained:
            raise ValueError(f"diffusion: t must be above 0 and at most 1, not {t}.")
        if steps is not None and not 1 <= steps <= noised:
            raise ValueError(f"diffusion: steps must be from 1 to {noised} at t = {t}, not {steps}.")
        if gradient not in get_args(Gradient):
            raise ValueError(f"diffusion: gradient must be {' or '.join(get_args(Gradient))}, not {gradient!r}.")
        self.unet = unet
        self.scheduler = scheduler
        self.gradient = gradient
        self.timesteps: list[int] = torch.linspace(noised - 1, 0, steps or noised).round().int().tolist()
        scheduler.set_timesteps(timesteps=self.timesteps)

    @classmethod
    def from_folder(cls, folder: str, t: float = 0.1, steps: int | None = None, gradient: Gradient = "full") -> Self:
        """Load what `DDPMPipeline.save_pretrained` wrote, or a network and a scheduler saved into one folder.

        Args:
            folder: The folder; nothing is downloaded.
            t: As in the class.
            steps: As in the class.
            gradient: As in the class.

        Returns:
            The purifier, in evaluation mode.

        Raises:
            FileNotFoundError: If the folder lacks the network or the schedule.
            ValueError: If diffusers is not installed, or a value is out of range.
        """
        try:
            from diffusers import DDPMScheduler, UNet2DModel
        except ImportError as error:
            raise ValueError(
                "diffusion needs the diffusers library: pip install 'maep-lightning[diffusion]'."
            ) from error
        places = {}
        for part, file in (("unet", "config.json"), ("scheduler", "scheduler_config.json")):
            found = [place for place in (Path(folder, part), Path(folder)) if (place / file).is_file()]
            if not found:
                raise FileNotFoundError(
                    f"There is no {part}/{file} or {file} in {folder}; give the folder of a diffusers DDPM pipeline."
                )
            places[part] = found[0]
        unet = UNet2DModel.from_pretrained(places["unet"], local_files_only=True)
        scheduler = DDPMScheduler.from_pretrained(places["scheduler"], local_files_only=True)
        return cls(unet, scheduler, t, steps, gradient).eval()

    def purify(self, images: Tensor) -> Tensor:
        """Noise and denoise `(B, 3, H, W)`."""
        if self.gradient == "bpda":
            with torch.no_grad():
                purified = self._diffuse(images)
            return straight_through(images, purified)
        return self._diffuse(images)

    def _diffuse(self, images: Tensor) -> Tensor:
        start = torch.tensor(self.timesteps[:1])
        clean = images * 2 - 1
        sample: Tensor = self.scheduler.add_noise(clean, torch.randn_like(clean), start)
        for timestep in self.timesteps:
            sample = checkpoint(self._denoise, sample, timestep, use_reentrant=False)
        return ((sample + 1) / 2).clamp(0, 1)

    def _denoise(self, sample: Tensor, timestep: int) -> Tensor:
        predicted = self.unet(sample, timestep).sample
        result = self.scheduler.step(predicted, timestep, sample)
        # Behind the last step there is no noise, which diffusers adds where that step does not begin at 0.
        skips = timestep == self.timesteps[-1] and timestep > 0
        return result.pred_original_sample if skips else result.prev_sample  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """What the weights do not say; it goes into fingerprints."""
        schedule = {name: value for name, value in sorted(self.scheduler.config.items()) if not name.startswith("_")}
        return f"timesteps={self.timesteps}, gradient={self.gradient}, scheduler={schedule}"
