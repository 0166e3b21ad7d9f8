"""Sums of closed-form heads, released once with Gaussian noise: DP of rows or of clients."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.federation.methods.closed_form import Sums

SENSITIVITY = math.sqrt(3)
"""How far one row of length 1 moves (n, S, G): 1 in each, so sqrt(3) together."""
_STREAM = 41  # keeps this noise apart from other draws of the same seed


def clipped_sums(sums: Sums, clip: float) -> Sums:
    """A client's (n, S, G) times min(1, clip / length), its length sqrt(|n|^2 + |S|^2 + |G|^2).

    One client, whatever its rows, then moves the sum over clients by at most clip. All three are
    scaled alike: the client counts as fewer rows with the same means and second moments.
    """
    length = math.sqrt(
        sum(float((part**2).sum()) for part in (sums.count, sums.by_class, sums.gram))
    )
    if length <= clip:
        return sums
    return Sums(*(part * (clip / length) for part in (sums.count, sums.by_class, sums.gram)))


def released(sums: Sums, sigma: float, seed: int) -> Sums:
    """Sums plus Gaussian noise of standard deviation sigma, then made possible again.

    sigma is the noise multiplier times the sensitivity: SENSITIVITY for rows; for clients whose
    sums went through clipped_sums, their clip.

    The gram's noise is symmetric: standard deviation sigma on the diagonal and sigma / sqrt(2) off
    it, so that its Frobenius norm in the D (D + 1) / 2 free directions is that of white noise.
    Afterwards, on what is already private: n is clamped at 0, a class's sum is shortened to n (the
    mean of unit rows is no longer than 1), and the gram becomes the nearest positive semidefinite
    matrix in Frobenius norm. Source: Dwork and Roth, 2014, A.1; Higham, 1988.
    """
    draw = np.random.RandomState([seed, _STREAM])

    def white(like: Tensor) -> Tensor:
        return torch.from_numpy(sigma * draw.standard_normal(tuple(like.shape))).to(like.device)

    count = (sums.count + white(sums.count)).clamp(min=0)
    by_class = sums.by_class + white(sums.by_class)
    by_class = normalize(by_class, dim=1) * torch.minimum(by_class.norm(dim=1), count)[:, None]
    turned = white(sums.gram)
    values, vectors = torch.linalg.eigh(sums.gram + (turned + turned.T) / 2)
    return Sums(count, by_class, (vectors * values.clamp(min=0)) @ vectors.T)
