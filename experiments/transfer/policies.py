"""What a resolution policy costs and the seams it leaves, as one row of the table in docs/policies.md.

usage: policies.py PURIFIER POLICY SIDE CHUNK IMAGES...
"""

import argparse
import resource
import time

import numpy as np
import torch
from PIL import Image, ImageOps

from maep_lightning.functional.tiles import seam_ratio
from maep_lightning.models.policies import apply_policy
from maep_lightning.models.registry import load_purifier


def peak() -> int:
    """Most memory this process has had so far, in MB (Linux counts in KB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Purify one image with its gradient, for time and memory, and all of them for the seams."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("purifier", help="a text of `load_purifier`, of one with patches of 4 pixels")
    parser.add_argument("policy")
    parser.add_argument("side", type=int)
    parser.add_argument("chunk", type=int)
    parser.add_argument("images", nargs="+", help="image files")
    options = parser.parse_args()
    # An odd size first, so that the blocks of JPEG do not coincide with tiles.
    files = [Image.open(path).convert("RGB") for path in options.images]
    odd = [ImageOps.fit(file, (options.side + 13, options.side + 13)) for file in files]
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in odd]).permute(0, 3, 1, 2).float() / 255
    images = pixels[..., 7 : 7 + options.side, 7 : 7 + options.side]
    torch.manual_seed(0)
    images = (images + torch.randn_like(images).sign() * 4 / 255).clamp(0, 1)

    served = apply_policy(load_purifier(options.purifier), options.policy, options.chunk)
    served.requires_grad_(False)
    one = images[:1].clone().requires_grad_()
    before, started = peak(), time.monotonic()
    served(one).square().sum().backward()
    seconds, memory = time.monotonic() - started, peak() - before
    with torch.no_grad():
        purified = torch.cat([served(image) for image in images.split(1)])
    seams = [f"{float(seam_ratio(purified, images, period, patch=4)):.3f}" for period in (32, 16)]
    row = [options.policy, str(options.side), str(options.chunk), f"{seconds:.1f}", str(memory), *seams]
    print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
