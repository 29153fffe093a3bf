"""A defended linear classifier, whose robust accuracy has a closed form, and a script that evaluates it.

usage: linear_case.py RUN_DIR SAMPLES CHUNK_SIZE [FILES EVENTS]; prints the ledger hash. RANK and WORLD_SIZE make it
distributed. With FILES and EVENTS it kills itself as soon as the ledger has so many files and the run folder has been
touched so many times after that.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from maep_lightning.evaluation import Plan, evaluate

EPS = 2 / 255


class Flip(nn.Module):
    """A purifier that mirrors: the defended classifier stays linear, with other weights."""

    def forward(self, images):
        return images.flip(-1)


class Linear(nn.Module):
    def __init__(self, classes=10, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, 3, 6, 6, generator=generator))
        self.bias = nn.Parameter(torch.randn(classes, generator=generator))

    def forward(self, images):
        return images.flatten(1) @ self.weight.flatten(1).T + self.bias


def build(samples):
    """Classifier, purifier, images away from the borders of [0, 1], and labels that are sometimes wrong."""
    classifier = Linear().eval()
    generator = torch.Generator().manual_seed(1)
    images = 0.1 + 0.8 * torch.rand(samples, 3, 6, 6, generator=generator)
    with torch.no_grad():
        labels = classifier(images.flip(-1)).argmax(1)
    labels[::9] = (labels[::9] + 1) % 10
    return classifier, Flip().eval(), images, labels


def closed_form(classifier, images, labels, mirrored):
    """Whether no perturbation of Linf size EPS changes the class: the margin beats eps times the dual norm."""
    weight = classifier.weight.detach().double().flip(-1) if mirrored else classifier.weight.detach().double()
    weight, bias = weight.flatten(1), classifier.bias.detach().double()
    logits = images.double().flatten(1) @ weight.T + bias
    margin = logits.gather(1, labels[:, None]) - logits
    reach = EPS * (weight[labels][:, None] - weight[None]).abs().sum(-1)
    others = torch.ones_like(margin, dtype=torch.bool).scatter(1, labels[:, None], False)
    return ((margin > reach) | ~others).all(dim=1)


def plan(chunk_size, **changes):
    """Short budgets: gradient steps are exact on a linear classifier."""
    budget = {"apgd_steps": 6, "fab_steps": 2, "square_queries": 5, "targets": 9}
    return Plan(**({"eps": "2/255", "chunk_size": chunk_size} | budget | changes))


def die_at(run_dir, files, events):
    """Have this process killed in the middle of its work on the run folder, just before it touches a file there."""
    ledger, left, counting = Path(run_dir) / "ledger", events, False

    def touch(event, arguments):
        nonlocal left, counting
        # Counting the files touches the folder too.
        if counting or not arguments or not str(arguments[0]).startswith(run_dir):
            return
        counting = True
        reached = len(list(ledger.glob("*/*/*.safetensors"))) >= files
        counting = False
        left -= reached
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(touch)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 4:
        die_at(sys.argv[1], int(sys.argv[4]), int(sys.argv[5]))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("gloo")
    results = evaluate(*build(int(sys.argv[2])), plan(int(sys.argv[3])), sys.argv[1], sanity=4)
    print(results.ledger_hash, [outcome.status.tolist() for outcome in results.outcomes.values()])
