"""Optimizers of local training on one adapter's row of numbers, for numba kernels."""

import numpy as np
from numba import njit

from kernels.cpu.math import PART, SPLICED, F
from kernels.names import OPTIMIZERS

ADAM, ADAMW, SGD = range(len(OPTIMIZERS))


@njit(**SPLICED)
def update(optimizer, weight, gradient, first, second, anchor, shift, step, settings):
    """One step of torch.optim's Adam, AdamW or SGD on weight (P,), in place.

    gradient (P,) becomes gradient + mu (weight - anchor) + shift; anchor and shift may be empty, as
    may second for SGD. step counts from 1; settings are those of kernels.local.Settings.
    """
    lr, weight_decay, beta1, beta2, eps, momentum, mu = settings
    if len(anchor):
        pull = F(mu)
        for i in range(len(weight)):
            gradient[i] += pull * (weight[i] - anchor[i])
    if len(shift):
        for i in range(len(weight)):
            gradient[i] += shift[i]
    if optimizer == SGD:
        _sgd(weight, gradient, first, F(lr), F(weight_decay), F(momentum))
        return
    coupled = optimizer == ADAM
    numbers = (
        F(weight_decay) if coupled else F(0),
        F(1) if coupled else F(1 - lr * weight_decay),
        F(lr / (1 - beta1**step)),
        F(1 / np.sqrt(1 - beta2**step)),
        F(beta1), F(1 - beta1), F(beta2), F(1 - beta2), F(eps),
    )  # fmt: skip
    _adam(weight, gradient, first, second, numbers)


@njit(**PART)
def _sgd(weight, gradient, first, lr, weight_decay, momentum):
    for i in range(len(weight)):
        first[i] = momentum * first[i] + (gradient[i] + weight_decay * weight[i])
        weight[i] -= lr * first[i]


@njit(**PART)
def _adam(weight, gradient, m, v, numbers):
    decay, keep, rate, shrink, beta1, rest1, beta2, rest2, eps = numbers
    for i in range(len(weight)):
        g = gradient[i] + decay * weight[i]
        first = beta1 * m[i] + rest1 * g
        second = beta2 * v[i] + rest2 * g * g
        m[i] = first
        v[i] = second
        weight[i] = keep * weight[i] - rate * first / (np.sqrt(second) * shrink + eps)
