"""Training pairs: attacked images for the clean ones, made on the fly and kept, in memory or on disk."""

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor, nn

from maep_lightning.attacks.pgd import pgd
from maep_lightning.attacks.simple import RECIPES, diversified
from maep_lightning.attacks.threat import Epsilon, Norm, check_radius
from maep_lightning.evaluation import fingerprint
from maep_lightning.evaluation.files import write_atomically
from maep_lightning.tasks.defence import check_noise

Kind = Literal["pgd", "fgsm", "bim", "mi-fgsm", "di-mi-fgsm"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass
class PairAttack:
    """The attack that makes the training pairs, on a frozen classifier, never through the purifier.

    Args:
        kind: `pgd` (random start), `bim` (no random start), `mi-fgsm` (with momentum 1), `di-mi-fgsm` (the same with
            diverse inputs) or `fgsm` (one step of eps, whatever `step_size` and `steps` say). In a list, the samples of
            a batch take turns.
        eps: Radius on the [0, 1] scale, written as 8/255.
        eps_low: Smallest radius: that of each sample is drawn evenly from here to `eps`. None takes `eps` for all.
        step_size: Length of a step.
        steps: Number of steps; with `pgd`, 0 gives random noise, in L2 of the length of the radius.
        norm: `Linf` or `L2`.
        bf16: Whether the attack's passes run in bfloat16, which is cheaper; pairs need not be optimal.
        refresh: Epochs for which a sample's attacked image is kept before it is attacked anew; 1 attacks at every use,
            0 once and for all.
        cache_dir: Folder where attacked images are kept for other runs with the same attack, classifier, data and
            versions of packages, of whatever seed; needs a `refresh` of 0.

    Raises:
        ValueError: If a setting is not usable.
    """

    kind: Kind | Sequence[Kind] = "pgd"
    eps: Epsilon = field(default_factory=lambda: Epsilon("8/255"))
    eps_low: Epsilon | None = None
    step_size: Epsilon = field(default_factory=lambda: Epsilon("2/255"))
    steps: int = 10
    norm: Norm = "Linf"
    bf16: bool = True
    refresh: int = 1
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        check_radius(self.eps, self.norm)
        if self.norm == "L1":
            raise ValueError("Training pairs are made in Linf or L2, not in L1: set attack.norm to one of them.")
        for name in self.kinds:
            if name not in KINDS:
                nearest = get_close_matches(name, KINDS, n=1) or KINDS
                raise ValueError(f"Unknown training attack {name!r}; did you mean {', '.join(nearest)}?")
        if not self.kinds:
            raise ValueError(f"No training attack is named; choose some of {', '.join(KINDS)}.")
        if self.steps < 0 or (self.steps == 0 and {"bim", "mi-fgsm", "di-mi-fgsm"} & {*self.kinds}):
            raise ValueError(f"{self.steps} steps attack nothing: give 1 or more, or 0 with pgd for random noise.")
        if self.step_size <= 0 < self.eps and self.steps and {*self.kinds} - {"fgsm"}:
            raise ValueError(f"Steps of step_size = {self.step_size} attack nothing: give a length such as 2/255.")
        if self.eps_low is not None and self.eps_low > self.eps:
            raise ValueError(f"eps_low = {self.eps_low} is above eps = {self.eps}.")
        if self.refresh < 0:
            raise ValueError(f"refresh must be a number of epochs, or 0 for never; got {self.refresh}.")
        if self.cache_dir is not None and self.refresh:
            raise ValueError(
                f"cache_dir keeps one attacked image of each sample for good, but refresh = {self.refresh} asks for new"
                " ones: set attack.refresh to 0."
            )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The attacks of the mix, or the only one."""
        return (self.kind,) if isinstance(self.kind, str) else tuple(self.kind)

    def judge(self) -> Self:
        """The attack on held-out images: PGD-10 at `eps`, in steps of a quarter of it."""
        return replace(self, kind="pgd", eps_low=None, steps=10, step_size=Epsilon(self.eps / 4))

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Attack images.

        Args:
            model: The frozen classifier.
            images: `(B, 3, H, W)` in [0, 1].
            labels: `(B,)`.
            generator: Source of radii and random starts, on the device of `images`; the global one if None.

        Returns:
            Attacked images of the same shape, detached.
        """
        eps: float | Tensor = float(self.eps)
        if self.eps_low is not None:
            share = torch.rand(len(images), 1, 1, 1, device=images.device, generator=generator)
            eps = self.eps_low + (self.eps - self.eps_low) * share
        attacked, turns = torch.empty_like(images), len(self.kinds)
        for turn, kind in enumerate(self.kinds):
            rows, recipe = slice(turn, None, turns), RECIPES[kind]
            radius = eps[rows] if isinstance(eps, Tensor) else eps
            step_size, steps = (radius, 1) if kind == "fgsm" else (float(self.step_size), self.steps)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
                attacked[rows] = pgd(
                    diversified(model, recipe.diversity, generator), images[rows], labels[rows], radius, step_size,
                    steps, self.norm, recipe.random_start, generator, momentum=recipe.momentum,
                )  # fmt: skip
        return attacked

    def cache_file(self, model: nn.Module, images: Tensor, labels: Tensor) -> Path | None:
        """Where pairs of these images, attacked on this classifier, are kept on disk; None without a `cache_dir`.

        Args:
            model: The frozen classifier.
            images: All training images, `(N, 3, H, W)` uint8.
            labels: `(N,)`.
        """
        if self.cache_dir is None:
            return None
        made_by = asdict(self) | {
            "kind": self.kinds,
            "recipes": [asdict(RECIPES[kind]) for kind in self.kinds],
            "cache_dir": None,
            "weights": fingerprint.of_weights(model),
            "architecture": fingerprint.of_architecture(model),
            "data": fingerprint.of_tensors({"images": images, "labels": labels}),
            "packages": fingerprint.of_packages() | fingerprint.of_libraries(model),
        }
        return Path(self.cache_dir) / f"pairs-{fingerprint.of_json(made_by)[:16]}.npy"


def check_disturbance(clean_fraction: float, noise: float) -> None:
    """Refuse settings that `disturb` cannot take.

    Args:
        clean_fraction: Share of a batch, in [0, 1].
        noise: Standard deviation, in [0, 1].

    Raises:
        ValueError: If one of them is out of range.
    """
    if not 0 <= clean_fraction <= 1:
        raise ValueError(f"clean_fraction is a share of each batch in [0, 1], such as 0.25, not {clean_fraction}.")
    check_noise(noise)


def disturb(attacked: Tensor, clean: Tensor, clean_fraction: float, noise: float) -> Tensor:
    """What a purifier is given in training: attacked images, some of them left clean, all under noise.

    Args:
        attacked: `(B, 3, H, W)` in [0, 1].
        clean: The same images unattacked.
        clean_fraction: Chance of a sample to be left clean.
        noise: Largest standard deviation of Gaussian noise; each sample's is drawn evenly from 0 on.

    Returns:
        `(B, 3, H, W)` in [0, 1].
    """
    if clean_fraction:
        untouched = torch.rand(len(clean), 1, 1, 1, device=clean.device) < clean_fraction
        attacked = torch.where(untouched, clean, attacked)
    if noise:
        std = noise * torch.rand(len(clean), 1, 1, 1, device=clean.device)
        attacked = (attacked + std * torch.randn_like(attacked)).clamp(0, 1)
    return attacked


_NEVER = -1


class PairPool:
    """Attacked images by the place of their sample in the training set, kept as 8-bit.

    Args:
        size: Number of samples.
        shape: Of an image, `(3, H, W)`.
        device: Where images are given out.
        refresh: Epochs after which an image is made anew; 0 for never.
        file: Where `save` puts the images, and where those of an earlier run are found; None for no such place. On a
            CPU they stay on disk until they are used.

    Raises:
        ValueError: If the file is damaged.
    """

    def __init__(
        self,
        size: int,
        shape: Sequence[int],
        device: torch.device,
        refresh: int = 0,
        file: Path | None = None,
    ) -> None:
        self.refresh, self.file = refresh, file
        self._kind = np.dtype([("made", np.bool_), ("image", np.uint8, tuple(shape))])
        records = np.zeros(size, self._kind) if file is None or not file.exists() else self._read(file, size)
        self._images = torch.from_numpy(records["image"]).to(device)
        self._made_in = torch.from_numpy(np.where(records["made"], 0, _NEVER)).to(device)
        self._unsaved = False

    def _read(self, file: Path, size: int) -> np.ndarray:
        try:
            records: np.ndarray = np.load(file, mmap_mode="c")  # what a run adds reaches the file by `save` alone
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"The kept pairs {file} are damaged ({error}): delete the file.") from error
        if records.shape != (size,) or records.dtype != self._kind:
            raise ValueError(f"{file} does not hold {size} pairs of this data set: delete it.")
        return records

    def take(self, index: Tensor, epoch: int, make: Callable[[Tensor], Tensor]) -> Tensor:
        """Attacked images of a batch; those that are not there, or are too old, are made.

        Args:
            index: `(B,)`, places of the samples.
            epoch: The present epoch.
            make: Takes `(B,)` bool, which samples of the batch are asked for, and returns their attacked images in
                [0, 1].

        Returns:
            `(B, 3, H, W)` in [0, 1].
        """
        made_in = self._made_in[index]
        stale = made_in == _NEVER
        if self.refresh:
            stale |= epoch - made_in >= self.refresh
        if stale.any():
            places = index[stale]
            self._images[places] = (make(stale) * 255).round().to(torch.uint8)
            self._made_in[places] = epoch
            self._unsaved = True
        return self._images[index].float() / 255

    def merge(self) -> None:
        """Take over what other processes have brought to the file since."""
        if self.file is None or not self.file.exists():
            return
        records = self._read(self.file, len(self._images))
        new = torch.from_numpy(records["made"]).to(self._made_in.device) & (self._made_in == _NEVER)
        self._images[new] = torch.from_numpy(records["image"][new.cpu().numpy()]).to(self._images.device)
        self._made_in[new] = 0

    def save(self) -> None:
        """Bring new images to the file, if there is one, whole or not at all, beside those of other processes."""
        if self.file is None or not self._unsaved:
            return
        self.merge()
        records = np.empty(len(self._images), self._kind)
        records["made"], records["image"] = (self._made_in != _NEVER).cpu().numpy(), self._images.cpu().numpy()
        content = io.BytesIO()
        np.save(content, records)
        write_atomically(self.file, content.getvalue())
        self._unsaved = False
