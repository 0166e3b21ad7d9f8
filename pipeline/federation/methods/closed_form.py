"""Closed-form linear heads from sums of unit features, exact leave-one-out, and private release.

A head adds to zero-shot CLIP's logits: S_c = s <x, t_c> + strength * added_c(x), with x the image's
feature at length 1. Everything is a function of sums over rows, which add up over clients, so the
federated head equals the central one whatever the partition. A class without rows has added_c = 0:
it keeps its zero-shot logit.

Letters: N rows, D width, C classes. All arithmetic is float64. Sources: Wang et al., "A
Hard-to-Beat Baseline for Training-free CLIP-based Adaptation" (ICLR 2024, arXiv:2402.04087) for
gda; Fani et al., Fed3R (ICML 2024, arXiv:2406.01116) for ridge.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

BLOCK = 4096  # rows of a pass: 16 MB of float64 at D 512
FLOOR = 1e-6
"""Lower bound of tr(A) / D, relative to tr(G) / D: rows that equal their class means give A = 0."""
SENSITIVITY = math.sqrt(3)
"""The change of (n, S, G) by one row of length 1: 1 in each, so sqrt(3) together."""
_STREAM = 41  # separates this noise from other draws of the same seed


@dataclass(frozen=True)
class Sums:
    """The sums of a client's rows, or over clients.

    count     (C,) float64     n_c, rows of each class
    by_class  (C, D) float64   S_c = sum of x over the rows of class c
    gram      (D, D) float64   G = sum of x x^T over all rows; symmetric, so half of it travels
    """

    count: Tensor
    by_class: Tensor
    gram: Tensor

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.count + other.count, self.by_class + other.by_class, self.gram + other.gram
        )

    def __sub__(self, other: "Sums") -> "Sums":
        return Sums(
            self.count - other.count, self.by_class - other.by_class, self.gram - other.gram
        )


def sums_of(features: Tensor, labels: Tensor, classes: int, rows: Tensor | None = None) -> Sums:
    """The sums over rows at length 1, in one pass over blocks of BLOCK rows.

    features  (N, D) float16 or float32, as cached; a row of zeros only adds to count
    labels    (N,) int64 from 0 to classes - 1
    rows      (n,) int64, the rows to sum; None: all
    """
    return summed(_blocks(features, labels, rows), classes, features.shape[1], features.device)


def summed(
    blocks: Iterable[tuple[Tensor, Tensor]], classes: int, width: int, device: torch.device
) -> Sums:
    """The sums over blocks of rows in one pass, in the memory of a block and of the sums.

    blocks  (b, D) float16 or float32 or float64 rows of any length, and their classes (b,) int64
    """
    count = torch.zeros(classes, dtype=torch.float64, device=device)
    by_class = torch.zeros(classes, width, dtype=torch.float64, device=device)
    gram = torch.zeros(width, width, dtype=torch.float64, device=device)
    for rows, y in blocks:
        x = normalize(rows.double(), dim=1)
        count += torch.bincount(y, minlength=classes)
        by_class.index_add_(0, y, x)
        gram.addmm_(x.T, x)
    return Sums(count, by_class, gram)


def packed(sums: Sums) -> Tensor:
    """(C + C D + D (D + 1) / 2,) float64: what travels; of the gram its upper triangle, row by
    row."""
    above = torch.triu_indices(*sums.gram.shape, device=sums.gram.device)
    return torch.cat([sums.count, sums.by_class.flatten(), sums.gram[above[0], above[1]]])


def unpacked(numbers: Tensor, classes: int, width: int) -> Sums:
    """The inverse of packed; raises ValueError for another count of numbers."""
    needed = classes * (width + 1) + width * (width + 1) // 2
    if numbers.shape != (needed,):
        raise ValueError(
            f"sums of {classes} classes at width {width} are {needed:,} numbers; got "
            f"{tuple(numbers.shape)}"
        )
    count, by_class, half = numbers.split(
        [classes, classes * width, needed - classes * (width + 1)]
    )
    above = torch.triu_indices(width, width, device=numbers.device)
    gram = numbers.new_zeros(width, width)
    gram[above[0], above[1]] = half
    gram = gram + gram.T - gram.diagonal().diag()
    return Sums(count.clone(), by_class.reshape(classes, width).clone(), gram)


def clipped_sums(sums: Sums, clip: float) -> Sums:
    """A client's (n, S, G) times min(1, clip / length), its length sqrt(|n|^2 + |S|^2 + |G|^2).

    A client then changes the sum over clients by at most clip, whatever its rows. All three are
    scaled equally: the client counts as fewer rows with the same means and second moments.
    """
    length = math.sqrt(
        sum(float((part**2).sum()) for part in (sums.count, sums.by_class, sums.gram))
    )
    if length <= clip:
        return sums
    return Sums(*(part * (clip / length) for part in (sums.count, sums.by_class, sums.gram)))


def released(sums: Sums, sigma: float, seed: int) -> Sums:
    """Adds Gaussian noise of standard deviation sigma to sums, then projects them to valid ones.

    sigma is the noise multiplier times the sensitivity: SENSITIVITY for rows; clip for clients,
    whose sums clipped_sums bounds.

    The gram's noise is symmetric: standard deviation sigma on the diagonal and sigma / sqrt(2) off
    it, so that its Frobenius norm in the D (D + 1) / 2 free directions is that of white noise.
    Post-processing: n is clamped at 0, a class's sum is shortened to n (the mean of unit rows has
    length 1 at most), and the gram becomes the nearest positive semidefinite matrix in Frobenius
    norm. Source: Dwork and Roth, 2014, A.1; Higham, 1988.
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


@dataclass(frozen=True)
class Added:
    """added(x) = x W^T + b of one head, and leave-one-out values for rows of its sums.

    weight    (C, D) float64    bias  (C,) float64
    left_out  (x (n, D), y (n,)) -> (n, C) float64: added(x_i) of the head made of all rows but row
              i; x are unit rows that are in the sums, y their classes
    """

    weight: Tensor
    bias: Tensor
    left_out: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """(n, D) float64 unit rows -> (n, C)."""
        return x @ self.weight.T + self.bias


def gda(sums: Sums) -> Callable[[float], Added]:
    """Gaussian discriminant analysis with one shrunken covariance: eps -> the head.

    mu_c = S_c / n_c, xbar = mean of all rows, A = G - sum_c n_c mu_c mu_c^T,
    P = N (A + eps tr(A) / D I)^-1, g(x, m) = x^T P m - m^T P m / 2,
    added_c(x) = g(x, mu_c) - g(x, xbar): how much likelier x is under class c than under a class
    with the mean of all rows. Subtracting g(x, xbar) does not change the ranking of classes with
    rows, and lets a class without rows keep its zero-shot logit.

    Leave-one-out, exact: with u = x - mu_y and k = n_y / (n_y - 1), B = (A + ...)^-1 becomes
    B + f B u u^T B, f = k / (1 - k u^T B u), and mu_y and xbar the means without x; N and
    eps tr(A) / D stay. A row that is the only one of its class leaves a class without rows.
    """
    count, total = sums.count, sums.count.sum()
    has = count > 0
    mean = sums.by_class / count.clamp(min=1)[:, None]
    centre = sums.by_class.sum(0) / total.clamp(min=1)
    width = sums.gram.shape[0]
    within = sums.gram - (mean * count[:, None]).T @ mean
    least = FLOOR * sums.gram.trace() / width
    spread = torch.maximum(within.trace() / width, least.clamp(min=torch.finfo(torch.float64).tiny))
    values, vectors = torch.linalg.eigh(within)
    values, turned = values.clamp(min=0), _once(lambda x: x @ vectors)
    mean, centre = mean @ vectors, centre @ vectors

    def at(eps: float) -> Added:
        scale = (values + eps * spread).rsqrt()
        root = vectors * scale  # root root^T = B
        means, middle = mean * scale, centre * scale
        crossed = means @ means.T
        weight = total * torch.where(has[:, None], (means - middle) @ root.T, 0)
        bias = -total / 2 * torch.where(has, crossed.diagonal() - middle @ middle, 0)

        def left_out(x: Tensor, y: Tensor) -> Tensor:
            own = torch.arange(len(y), device=y.device)
            rows = turned(x) * scale
            xm, mm, xx = rows @ means.T, crossed.diagonal(), (rows**2).sum(1)
            xc, cc = rows @ middle, middle @ middle
            n = count[y]
            alone = n < 2
            k = torch.where(alone, 0, n / (n - 1).clamp(min=1))
            u = rows - means[y]
            um, uc, xu, uu = xm - crossed[y], u @ middle, (rows * u).sum(1), (u * u).sum(1)
            f = k / (1 - k * uu)
            xm, mm, xx = xm + (f * xu)[:, None] * um, mm + f[:, None] * um**2, xx + f * xu**2
            xc, cc = xc + f * xu * uc, cc + f * uc**2
            xm[own, y], mm[own, y] = _without(xm[own, y], mm[own, y], xx, 1 / (n - 1).clamp(min=1))
            xc, cc = _without(xc, cc, xx, 1 / (total - 1).clamp(min=1))
            added = total * torch.where(has, xm - mm / 2 - (xc - cc / 2)[:, None], 0)
            added[own, y] = torch.where(alone, 0, added[own, y])
            return added

        return Added(weight, bias, left_out)

    return at


def ridge(sums: Sums, logit_scale: float) -> Callable[[float], Added]:
    """Ridge regression on one-hot classes: reg -> the head.

    W = (G + reg tr(G) / D I)^-1 S^T, added_c(x) = logit_scale * <x, W_c>.

    Leave-one-out, exact, by the hat matrix: F_i - (Y_i - F_i) h_i / (1 - h_i) with
    h_i = x_i^T (G + ...)^-1 x_i, Y one-hot, F fitted.
    """
    width = sums.gram.shape[0]
    spread = (sums.gram.trace() / width).clamp(min=torch.finfo(torch.float64).tiny)
    values, vectors = torch.linalg.eigh(sums.gram)
    values, turned = values.clamp(min=0), _once(lambda x: x @ vectors)
    by_class = sums.by_class @ vectors

    def at(reg: float) -> Added:
        inverse = 1 / (values + reg * spread)
        weight = logit_scale * (by_class * inverse) @ vectors.T

        def left_out(x: Tensor, y: Tensor) -> Tensor:
            own = torch.arange(len(y), device=y.device)
            part = turned(x) ** 2 @ inverse
            fitted = x @ weight.T
            missed = fitted.clone()
            missed[own, y] -= logit_scale
            out: Tensor = fitted + missed * (part / (1 - part))[:, None]
            return out

        return Added(weight, weight.new_zeros(len(weight)), left_out)

    return at


def prototype(sums: Sums, logit_scale: float) -> Callable[[float], Added]:
    """Class means added to the text, with a trust that grows with their rows: kappa -> the head.

    added_c(x) = logit_scale n_c / (n_c + kappa) <x, normalize(S_c)>. Leave-one-out: S_y - x, n_y -
    1.
    """

    def at(kappa: float) -> Added:
        count = sums.count
        trust = torch.where(count > 0, count / (count + kappa).clamp(min=1e-300), 0)
        weight = logit_scale * trust[:, None] * normalize(sums.by_class, dim=1)

        def left_out(x: Tensor, y: Tensor) -> Tensor:
            own = torch.arange(len(y), device=y.device)
            added = x @ weight.T
            rest = count[y] - 1
            trust_of_rest = torch.where(rest > 0, rest / (rest + kappa).clamp(min=1e-300), 0)
            mean = normalize(sums.by_class[y] - x, dim=1)
            added[own, y] = logit_scale * trust_of_rest * (x * mean).sum(1)
            return added

        return Added(weight, weight.new_zeros(len(weight)), left_out)

    return at


def _once(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Caches the last result of a function: shapes share products."""
    last: list[Tensor] = []

    def of(x: Tensor) -> Tensor:
        if not last or last[0] is not x:
            last[:] = [x, function(x)]
        return last[1]

    return of


def _without(xm: Tensor, mm: Tensor, xx: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """x^T B m and m^T B m after m becomes m - share (x - m), the mean without x; xx = x^T B x."""
    out_xm = xm - share * (xx - xm)
    out_mm = mm - 2 * share * (xm - mm) + share**2 * (xx - 2 * xm + mm)
    return out_xm, out_mm


def _blocks(
    features: Tensor, labels: Tensor, rows: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows (b, D) as they are and their labels (b,), BLOCK at a time."""
    for first in range(0, len(features) if rows is None else len(rows), BLOCK):
        at = slice(first, first + BLOCK) if rows is None else rows[first : first + BLOCK]
        yield features[at], labels[at]
