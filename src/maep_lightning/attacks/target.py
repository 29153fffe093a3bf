"""What an attack attacks: a chain of frozen networks in plain float32, watched while gradients flow through it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

RANDOM = 1e-4
"""Relative difference of logits from which on it is no rounding."""

MOST_SUSPECTS = 1000
"""Points that are looked at one by one: a single sample whose gradient is never finite meets 909 in APGD-T at its
published budget."""


@dataclass
class GradientWatch:
    """What was seen of the gradients at the input since the last `reset`.

    Attributes:
        forwards: Images that went forward.
        backwards: Images whose gradient came back.
        zero: Gradients that were exactly zero.
        nonfinite: Gradients that held NaN or infinity.
        suspects: The images `(C, H, W)` at which a gradient was not finite; of more than `MOST_SUSPECTS` one more than
            that, whatever their number.
    """

    forwards: int = 0
    backwards: int = 0
    zero: int = 0
    nonfinite: int = 0
    suspects: list[Tensor] = field(default_factory=list)

    def reset(self) -> None:
        """Forget everything."""
        self.forwards = self.backwards = self.zero = self.nonfinite = 0
        self.suspects = []

    def see(self, images: Tensor, gradient: Tensor) -> None:
        """Take note of the gradients `(B, C, H, W)` at `images` of the same shape."""
        flat = gradient.detach().flatten(1)
        bad = ~flat.isfinite().all(dim=1)
        # Read together: an attack waits here for the device in every step.
        zero, nonfinite = torch.stack([(flat == 0).all(dim=1), bad]).sum(dim=1).tolist()
        self.backwards += len(flat)
        self.zero += zero
        self.nonfinite += nonfinite
        if room := min(nonfinite, MOST_SUSPECTS + 1 - len(self.suspects)):
            self.suspects.extend(images.detach()[bad][:room].clone())


class Target:
    """Networks applied one after the other, as one callable from images to logits.

    Attacks differentiate through the whole chain. `guarded` must be entered before calling it under attack.

    Args:
        *stages: Networks in evaluation mode; the first takes images `(B, C, H, W)` in [0, 1], the last gives logits.
        draws: Calls whose majority is the prediction; 1 for a chain that is deterministic.
        device: Where images are, for networks without weights; those with weights know it.

    Raises:
        ValueError: If a stage is in training mode, wrapped for distributed training, not in float32, or on
            another device than the others.
    """

    def __init__(self, *stages: nn.Module, draws: int = 1, device: torch.device | None = None) -> None:
        if not stages:
            raise ValueError("A target needs at least one network.")
        for stage in stages:
            _check_stage(stage)
        devices = {str(tensor.device) for stage in stages for tensor in (*stage.parameters(), *stage.buffers())}
        if len(devices) > 1:
            raise ValueError(f"The networks lie on different devices ({', '.join(sorted(devices))}); move them to one.")
        self.stages = stages
        # Listed once: walking through deep networks takes as long as small batches of images do.
        self._modules = [module for stage in stages for module in stage.modules()]
        self._parameters = list({id(p): p for stage in stages for p in stage.parameters()}.values())
        self.draws = draws
        self._device = device or torch.device("cpu")
        self.watch = GradientWatch()
        self._num_classes: int | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are; of a target without weights what it was told, else the CPU."""
        return device_of(*self.stages) or self._device

    def __call__(self, images: Tensor) -> Tensor:
        """Logits.

        Args:
            images: `(B, C, H, W)` in [0, 1].

        Returns:
            `(B, K)` in float32.

        Raises:
            ValueError: If the last network does not return logits `(B, K)` with K of at least 2.
        """
        if len(images) == 0 and self._num_classes is not None:  # Square asks for it at margins of exactly zero
            return images.new_zeros((0, self._num_classes))
        self.watch.forwards += len(images)
        hidden = images
        if images.requires_grad:
            hidden = images.view_as(images)
            hidden.register_hook(lambda gradient: self.watch.see(images, gradient))  # type: ignore[no-untyped-call]
        for stage in self.stages:
            hidden = stage(hidden)
        logits = check_logits(hidden)
        self._num_classes = logits.shape[1]
        return logits.float()

    def purify(self, images: Tensor) -> Tensor:
        """What the stages before the last make of images; of several versions of an image the first.

        Args:
            images: `(B, C, H, W)` in [0, 1].
        """
        with self.guarded(), torch.no_grad():
            for stage in self.stages[:-1]:
                images = stage(images)
        return images[:, 0] if images.ndim == 5 else images

    def is_random(self, images: Tensor) -> bool:
        """Whether two calls with different random numbers give different logits, beyond rounding.

        Args:
            images: `(B, C, H, W)` in [0, 1]; some suffice.
        """
        logits = []
        with self.guarded(), torch.no_grad():
            for seed in (1, 2):
                with isolated_rng(seed, images.device):
                    logits.append(self(images))
        scale = logits[0].abs().max().clamp(min=1e-6)
        return bool((logits[0] - logits[1]).abs().max() > RANDOM * scale)

    def num_classes(self, images: Tensor) -> int:
        """K, from a forward pass of one of `images` `(B, C, H, W)` in [0, 1]."""
        if self._num_classes is None:
            with torch.no_grad():
                self(images[:1])
        assert self._num_classes is not None
        return self._num_classes

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Attack inside this: weights frozen, float32 without autocast or TF32, eager, gradients allowed.

        On leaving, `requires_grad`, `.grad` and the global precision flags are what they were.

        Raises:
            ValueError: If a network was put into training mode since the target was made.
        """
        if any(module.training for module in self._modules):
            for stage in self.stages:
                _check_stage(stage)
        state = [(p, p.requires_grad, p.grad) for p in self._parameters]
        try:
            for parameter, _, _ in state:
                parameter.requires_grad_(False)
            with torch.inference_mode(False), exact_arithmetic(self.device), self._eager():
                yield
        finally:
            for parameter, requires_grad, gradient in state:
                parameter.requires_grad_(requires_grad)
                parameter.grad = gradient

    def _eager(self) -> AbstractContextManager[None]:
        compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in self._modules)
        if compiled or any(hasattr(stage, "_orig_mod") for stage in self.stages):
            return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]
        return nullcontext()


def check_logits(returned: object) -> Tensor:
    """What a classifier returned, if it is logits.

    Args:
        returned: Anything.

    Raises:
        ValueError: If it is no tensor `(B, K)` with K of at least 2.
    """
    if not isinstance(returned, Tensor):
        raise ValueError(
            f"The classifier must return logits (B, K), not a {type(returned).__name__}. Wrap it in a module that"
            " returns the logits alone."
        )
    if returned.ndim != 2 or returned.shape[1] < 2:
        raise ValueError(
            f"The classifier must return logits (B, K) with K >= 2, not a tensor {tuple(returned.shape)}."
            " Give a one-logit head a second logit that is always 0."
        )
    return returned


def check_precision(network: nn.Module) -> None:
    """Refuse weights of another precision than float32, by name.

    Args:
        network: Any.

    Raises:
        ValueError: If there are some.
    """
    for path, parameter in network.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ValueError(
                f"{type(network).__name__}.{path} is {parameter.dtype}: attacks and their verification need float32;"
                " call .float()."
            )


def device_of(*networks: nn.Module | None) -> torch.device | None:
    """Where the first weights of some networks are; None where none has any, as a function has none."""
    for network in networks:
        for tensor in chain(network.parameters(), network.buffers()) if network is not None else ():
            return tensor.device
    return None


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Plain float32 with deterministic convolutions: no autocast, no TF32; what was set before comes back."""
    matmul = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    flags = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = False, True, False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = flags


@contextmanager
def isolated_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch inside, and give the caller's random state back afterwards; pyautoattack re-seeds the global one."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _check_stage(stage: nn.Module) -> None:
    name = type(stage).__name__
    if name in ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"):
        raise ValueError(f"{name} must not be attacked: its hooks talk to other processes. Give its .module instead.")
    training = [path or name for path, module in stage.named_modules() if module.training]
    if training:
        raise ValueError(f"{name} is in training mode (at {training[0]}); call .eval() before an evaluation.")
    check_precision(stage)
    for path, parameter in stage.named_parameters():
        if parameter.is_inference():
            raise ValueError(
                f"{name}.{path} was made under torch.inference_mode, so no gradient can flow; load it outside,"
                " or set trainer.inference_mode to false."
            )
