"""The masked autoencoder of He et al. 2022 written out from the paper, on a state dict with the published names.

Nothing of the package is used here. Sections are those of https://arxiv.org/abs/2111.06377.
"""

import math

import torch

NORM_EPS = 1e-6


def random_state(image_size, patch, width, depth, decoder_width, decoder_depth):
    """Every tensor of the published network with the shape that its name has there, and random values."""
    generator = torch.Generator().manual_seed(7)
    state = {
        "cls_token": (1, 1, width),
        "mask_token": (1, 1, decoder_width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        **layer("decoder_embed", width, decoder_width),
        **layer("decoder_pred", decoder_width, patch * patch * 3),
    }
    for prefix, norm, dim, count in (
        ("blocks", "norm", width, depth),
        ("decoder_blocks", "decoder_norm", decoder_width, decoder_depth),
    ):
        norms = [norm, *(f"{prefix}.{i}.norm{n}" for i in range(count) for n in (1, 2))]
        state |= {f"{name}.{kind}": (dim,) for name in norms for kind in ("weight", "bias")}
        for i in range(count):
            state |= layer(f"{prefix}.{i}.attn.qkv", dim, 3 * dim) | layer(f"{prefix}.{i}.attn.proj", dim, dim)
            state |= layer(f"{prefix}.{i}.mlp.fc1", dim, 4 * dim) | layer(f"{prefix}.{i}.mlp.fc2", 4 * dim, dim)
    values = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in state.items()}
    side = image_size // patch
    return values | {"pos_embed": positions(width, side), "decoder_pos_embed": positions(decoder_width, side)}


def layer(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def positions(width, side):
    """Sines and cosines of the column, then of the row, behind zeros for the class token."""
    rows = [[0.0] * width]
    for row in range(side):
        for column in range(side):
            angles = [[at / 10000 ** (i / (width / 4)) for i in range(width // 4)] for at in (column, row)]
            rows.append([f(a) for half in angles for f in (math.sin, math.cos) for a in half])
    return torch.tensor(rows)[None]


def layer_norm(x, state, name):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (var + NORM_EPS).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def block(x, state, name, heads):
    d = x.shape[1]
    q, k, v = linear(layer_norm(x, state, f"{name}.norm1"), state, f"{name}.attn.qkv").chunk(3, dim=1)
    attended = []
    for head in range(heads):
        part = slice(head * d // heads, (head + 1) * d // heads)
        weights = (q[:, part] @ k[:, part].T / math.sqrt(d // heads)).softmax(-1)
        attended.append(weights @ v[:, part])
    x = x + linear(torch.cat(attended, dim=1), state, f"{name}.attn.proj")
    y = linear(layer_norm(x, state, f"{name}.norm2"), state, f"{name}.mlp.fc1")
    y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
    return x + linear(y, state, f"{name}.mlp.fc2")


def patches_of(image, patch):
    """`(L, patch * patch * 3)`, the channel varying fastest."""
    side = image.shape[-1] // patch
    cut = [
        image[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].permute(1, 2, 0).flatten()
        for r in range(side)
        for c in range(side)
    ]
    return torch.stack(cut)


def encode(state, image, visible, patch, heads):
    """The latent `(1 + visible, D)` of one normalised image, of which the patches `visible` are seen, in that order."""
    width = len(state["cls_token"][0, 0])
    kernel = state["patch_embed.proj.weight"].permute(0, 2, 3, 1).reshape(width, -1)
    x = patches_of(image, patch)[visible] @ kernel.T + state["patch_embed.proj.bias"]
    x = torch.cat([state["cls_token"][0] + state["pos_embed"][0, :1], x + state["pos_embed"][0, 1:][visible]])
    for index in range(count(state, "blocks")):
        x = block(x, state, f"blocks.{index}", heads)
    return layer_norm(x, state, "norm")


def decode(state, latent, visible, heads):
    """The prediction `(L, patch * patch * 3)` of all patches of one image."""
    x = linear(latent, state, "decoder_embed")
    full = state["mask_token"][0].repeat(state["decoder_pos_embed"].shape[1] - 1, 1)
    full[visible] = x[1:]
    x = torch.cat([x[:1], full]) + state["decoder_pos_embed"][0]
    for index in range(count(state, "decoder_blocks")):
        x = block(x, state, f"decoder_blocks.{index}", heads)
    return linear(layer_norm(x, state, "decoder_norm"), state, "decoder_pred")[1:]


def count(state, prefix):
    return len({name.split(".")[1] for name in state if name.startswith(f"{prefix}.")})


def masked_loss(predictions, images, masks, patch, norm_pix=False):
    """Mean squared error over the removed patches of all images."""
    target = torch.stack([patches_of(image, patch) for image in images])
    if norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    return (predictions - target)[masks.bool()].square().mean()
