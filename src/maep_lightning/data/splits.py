"""Class-balanced orders, so that every prefix of a set is a fair sample of it."""

import numpy as np
import torch
from torch import Tensor


def balanced_order(labels: Tensor, seed: int) -> Tensor:
    """A shuffled order whose every prefix holds the classes in their proportions, as nearly as whole numbers allow.

    Args:
        labels: `(N,)` class numbers.
        seed: The same seed gives the same order on every machine and torch version.

    Returns:
        `(N,)` int64, a permutation of the indices.
    """
    # RandomState's stream is frozen by numpy's compatibility policy; torch.randperm's is not.
    shuffled = torch.from_numpy(np.random.RandomState(seed).permutation(len(labels)))
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in range(int(labels.max()) + 1):
        members = torch.nonzero(labels[shuffled] == label).flatten()
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return shuffled[place.argsort(stable=True)]
