"""local_steps in plain torch: autograd, and optimizers on whole rows of numbers.

On a CPU each thread runs all steps of one lane, so that a lane's result does not depend on its
neighbours; on a GPU all lanes share batched products.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from kernels.heads.plain import named, unit_images, unit_texts
from kernels.local import Moments, Pull, Settings, Work

NOTHING = -1e30  # below every logit; with -inf, differences would be NaN


def local_steps(
    work: Work,
    adapters: Tensor,
    features: Tensor,
    labels: Tensor,
    text: Tensor,
    rows: Tensor,
    settings: Settings,
    logit_scale: float,
    moments: Moments | None,
    pull: Pull,
) -> Tensor:
    """See kernels.local.local_steps; arguments are checked there."""
    losses = torch.zeros(rows.shape[:2], device=features.device)

    def train(lanes: slice) -> None:
        # .data has its own version counter; otherwise autograd takes one lane's update for an
        # in-place change of what another lane still needs.
        _train(
            work, adapters[lanes].data, features, labels, text, rows[:, lanes],
            Settings(*(v[lanes] for v in settings)), logit_scale,
            moments and Moments(*(v[lanes] for v in moments)),
            Pull(*(v if v is None else v[lanes] for v in pull)), losses[:, lanes],
        )  # fmt: skip

    if features.is_cuda:
        train(slice(None))
        return losses
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(threads, max(1, rows.shape[1]))) as pool:
            list(pool.map(lambda lane: train(slice(lane, lane + 1)), range(rows.shape[1])))
    finally:
        torch.set_num_threads(threads)
    return losses


def _train(
    work: Work, adapters: Tensor, features: Tensor, labels: Tensor, text: Tensor, rows: Tensor,
    settings: Settings, scale: float, moments: Moments | None, pull: Pull, losses: Tensor,
) -> None:  # fmt: skip
    if moments is None:
        second = torch.zeros_like(adapters if work.optimizer != "sgd" else adapters[:, :0])
        steps = torch.zeros(len(adapters), dtype=torch.int64)
        moments = Moments(torch.zeros_like(adapters), second, steps)
    live = (rows[:, :, 0] >= 0).sum(dim=1).tolist()
    rows = rows.to(features.device, torch.int64)
    for step, now in enumerate(live):
        if not now:
            break
        weights = adapters[:now].detach().requires_grad_()
        loss = losses_of(work, weights, features, labels, text, rows[step, :now], scale)
        (gradient,) = torch.autograd.grad(loss.sum(), weights)
        losses[step, :now] = loss.detach()
        part = Settings(*(v[:now] for v in settings))
        with torch.no_grad():
            _pull(adapters[:now], gradient, part, pull, now)
            moments.steps[:now] += 1
            _OPTIMIZERS[work.optimizer](
                adapters[:now], gradient, Moments(*(v[:now] for v in moments)), part
            )


def losses_of(
    work: Work, adapters: Tensor, features: Tensor, labels: Tensor, text: Tensor, rows: Tensor,
    scale: float,
) -> Tensor:  # fmt: skip
    """The loss of each lane on its batch, (L,); rows (L, B) int64, padded with -1."""
    kind, parts = work.kind, named(work.kind, adapters)
    present = rows >= 0
    rows = rows.clamp(min=0)
    x, y = features[rows], labels[rows]
    u = unit_images(kind, parts, x)
    if work.loss == "class" or kind.classes <= rows.shape[1]:
        columns = torch.arange(kind.classes, device=y.device).expand(len(rows), -1)
        counts = u.new_zeros(columns.shape).scatter_add_(1, y, present.to(u.dtype))
    else:  # more classes than rows: use the batch's own rows, each counted once
        columns, counts = y, present.to(u.dtype)
    logits = scale * u @ unit_texts(kind, parts, text, columns).mT  # (L, B, K)
    same = y[..., None] == columns[:, None]
    if work.loss == "class":
        by_row = logits.logsumexp(dim=2) - logits.gather(2, y[..., None])[..., 0]
        return (by_row * present).sum(dim=1) / present.sum(dim=1)
    return _in_batch(work.loss, logits, same, present, counts)


def _in_batch(loss: str, logits: Tensor, same: Tensor, present: Tensor, counts: Tensor) -> Tensor:
    """Rows against columns, each representing `counts` rows of the batch, and vice versa."""
    counted = logits + counts.log().clamp(min=NOTHING)[:, None]
    here = logits.masked_fill(~present[..., None], NOTHING)
    by_row, by_column = counted.logsumexp(dim=2), here.logsumexp(dim=1)
    if loss == "multi-positive":
        row_target = counted.masked_fill(~same, NOTHING).logsumexp(dim=2)
        column_target = here.masked_fill(~same, NOTHING).logsumexp(dim=1)
    else:  # each row's own text; over a class's columns, the mean of its rows' logits
        own = same * present[..., None]
        pairs = own.sum(dim=1).clamp(min=1)
        row_target = (logits * same).sum(dim=2) / same.sum(dim=2)
        column_target = (logits * own).sum(dim=1) / pairs
    over_rows = ((by_row - row_target) * present).sum(dim=1)
    over_columns = ((by_column - column_target) * counts).sum(dim=1)
    return (over_rows + over_columns) / (2 * present.sum(dim=1))


def _pull(weights: Tensor, gradient: Tensor, settings: Settings, pull: Pull, now: int) -> None:
    if pull.anchor is not None:
        gradient.add_(_each(settings.mu, weights) * (weights - pull.anchor[:now]))
    if pull.shift is not None:
        gradient.add_(pull.shift[:now])


def _each(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device, torch.float32)[:, None]


def _adam(weights: Tensor, gradient: Tensor, moments: Moments, settings: Settings) -> None:
    gradient.addcmul_(weights, _each(settings.weight_decay, weights))
    _adam_step(weights, gradient, moments, settings)


def _adamw(weights: Tensor, gradient: Tensor, moments: Moments, settings: Settings) -> None:
    weights.mul_(_each(1 - settings.lr * settings.weight_decay, weights))
    _adam_step(weights, gradient, moments, settings)


def _adam_step(weights: Tensor, gradient: Tensor, moments: Moments, settings: Settings) -> None:
    moments.first.lerp_(gradient, _each(1 - settings.beta1, weights))
    moments.second.mul_(_each(settings.beta2, weights))
    moments.second.addcmul_(gradient.square_(), _each(1 - settings.beta2, weights))
    rate = settings.lr / (1 - settings.beta1**moments.steps)
    correction = (1 - settings.beta2**moments.steps).sqrt()
    denominator = moments.second.sqrt().div_(_each(correction, weights))
    denominator.add_(_each(settings.eps, weights))
    weights.addcdiv_(moments.first * _each(-rate, weights), denominator)


def _sgd(weights: Tensor, gradient: Tensor, moments: Moments, settings: Settings) -> None:
    gradient.addcmul_(weights, _each(settings.weight_decay, weights))
    moments.first.mul_(_each(settings.momentum, weights)).add_(gradient)
    weights.addcmul_(moments.first, _each(-settings.lr, weights))


_OPTIMIZERS = {"adam": _adam, "adamw": _adamw, "sgd": _sgd}
