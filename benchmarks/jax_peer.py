"""A client's training steps of the released adapter in JAX: one compiled scan over its batches."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import log_softmax, softmax

LR, DECAY, BETA1, BETA2, EPS = 5e-5, 0.2, 0.9, 0.98, 1e-6
Weights = tuple[jax.Array, ...]


def loss(weights: Weights, x: jax.Array, text: jax.Array, scale: float) -> jax.Array:
    """The symmetric loss of a batch x (B, D) and its rows' unit texts (B, D)."""
    w1, b1, w2, b2 = weights
    gated = softmax(jnp.tanh(x @ w1.T + b1) @ w2.T + b2, axis=1) * x
    unit = gated / jnp.linalg.norm(gated, axis=1, keepdims=True)
    logits = scale * unit @ text.T
    return -(jnp.diag(log_softmax(logits, 1)).mean() + jnp.diag(log_softmax(logits, 0)).mean()) / 2


@partial(jax.jit, static_argnames="scale")
def train(
    weights: Weights, lr: jax.Array, features: jax.Array, labels: jax.Array, text: jax.Array,
    rows: jax.Array, scale: float, rest: jax.Array | None = None,
) -> Weights:  # fmt: skip
    """The weights after training on rows (T, B), one batch per step, from a fresh Adam.

    rest  (b,) rows of a last, shorter batch; used if there are two or more
    """
    zeros = tuple(jnp.zeros_like(w) for w in weights)

    def step(carried: tuple, batch: tuple) -> tuple[tuple, None]:
        weights, first, second = carried
        at, own = batch
        slopes = jax.grad(loss)(weights, features[own], text[labels[own]], scale)
        slopes = [g + DECAY * w for g, w in zip(slopes, weights, strict=True)]
        first = tuple(BETA1 * m + (1 - BETA1) * g for m, g in zip(first, slopes, strict=True))
        second = tuple(BETA2 * v + (1 - BETA2) * g * g for v, g in zip(second, slopes, strict=True))
        by_first, by_second = 1 - BETA1**at, 1 - BETA2**at
        weights = tuple(
            w - lr * (m / by_first) / (jnp.sqrt(v / by_second) + EPS)
            for w, m, v in zip(weights, first, second, strict=True)
        )
        return (weights, first, second), None

    at = jnp.arange(1, len(rows) + 1, dtype=jnp.float32)
    carried, _ = lax.scan(step, (weights, zeros, zeros), (at, rows))
    if rest is not None and len(rest) > 1:
        carried, _ = step(carried, (jnp.float32(len(rows) + 1), rest))
    return carried[0]


many = jax.jit(
    jax.vmap(train.__wrapped__, in_axes=(0, None, None, None, None, 1, None)), static_argnums=6
)
"""`train` for several lanes at once: weights (L, ...), rows (T, L, B)."""


def arrays(*numbers: Sequence) -> list[jax.Array]:
    """numpy or torch arrays as JAX arrays."""
    return [jnp.asarray(np.asarray(each)) for each in numbers]
