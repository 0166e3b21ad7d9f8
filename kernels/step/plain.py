"""adapter_steps in plain torch: it runs everywhere; read this backend first.

Two exact identities keep it short (docs/method.md): the softmax's denominator cancels in the
normalization, so the backward pass needs only its result, d_scores = u * (d_u - u <u, d_u>); and
because a batch's text features take few distinct values, the B x B loss equals one over K columns
with multiplicities.
"""

import torch
from torch import Tensor

from kernels.adapter import AdamSettings, AdapterState


def adapter_steps(
    adapters: AdapterState,
    features: Tensor,
    labels: Tensor,
    unit_text: Tensor,
    rows: Tensor,
    settings: AdamSettings,
    logit_scale: float,
) -> Tensor:
    """See kernels.step.adapter_steps; arguments are checked there."""
    device = features.device
    steps, lanes, _ = rows.shape
    first = [torch.zeros_like(weight) for weight in adapters]
    second = [torch.zeros_like(weight) for weight in adapters]
    losses = torch.zeros(steps, lanes, device=device)
    live = (rows[:, :, 0] >= 0).sum(dim=1).tolist()
    rows = rows.to(device, torch.int64)
    for step in range(steps):
        now = live[step]
        part = AdapterState(*(weight[:now] for weight in adapters))
        loss, gradients = _gradients(
            part, features, labels, unit_text, rows[step, :now], logit_scale
        )
        losses[step, :now] = loss
        for weight, gradient, m, v in zip(part, gradients, first, second, strict=True):
            _adam(weight, gradient, m[:now], v[:now], settings, step + 1)
    return losses


def _gradients(
    adapters: AdapterState,
    features: Tensor,
    labels: Tensor,
    unit_text: Tensor,
    rows: Tensor,
    logit_scale: float,
) -> tuple[Tensor, AdapterState]:
    """Loss (L,) and gradients of L lanes on their batches; rows (L, B) int64, padded with -1."""
    present = rows >= 0  # (L, B)
    rows = rows.clamp(min=0)
    x = features[rows] * present[..., None]  # (L, B, D); padding rows are zero
    h = torch.baddbmm(adapters.b1[:, None], x, adapters.w1.mT).tanh_()
    scores = torch.baddbmm(adapters.b2[:, None], h, adapters.w2.mT)
    u = (scores - scores.amax(dim=2, keepdim=True)).exp_().mul_(x)
    u = u / u.norm(dim=2, keepdim=True).clamp_(min=1e-12)  # as torch.nn.functional.normalize

    # In float64: a scale of 100 amplifies a logit's rounding to 1e-5, and where weight decay nearly
    # cancels a gradient, Adam moves that weight by lr either way. 30 % closer to the recorded runs.
    loss, d_logits, logits, text = _contrastive(
        u.double(), labels[rows], present, unit_text.double(), logit_scale
    )
    inner = (d_logits * logits).sum(dim=2, keepdim=True).to(u.dtype)  # <u, d_u>
    d_u = torch.matmul(d_logits, text).mul_(logit_scale).to(u.dtype)
    d_scores = d_u.sub_(inner * u).mul_(u)
    d_h = torch.bmm(d_scores, adapters.w2).mul_(1 - h * h)
    return loss.to(u.dtype), AdapterState(
        w1=torch.bmm(d_h.mT, x),
        b1=d_h.sum(dim=1),
        w2=torch.bmm(d_scores.mT, h),
        b2=d_scores.sum(dim=1),
    )


def _contrastive(
    u: Tensor, labels: Tensor, present: Tensor, unit_text: Tensor, logit_scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The in-batch loss, its gradient with respect to the logits, the logits, and columns' text.

    Columns are the C classes with their counts in the batch if C <= B, otherwise the batch's own
    rows, each counted once: both give the method's B x B loss.
    """
    lanes, batch, _ = u.shape
    classes = len(unit_text)
    if classes <= batch:
        text = unit_text  # (C, D)
        target = labels
        counts = u.new_zeros(lanes, classes).scatter_add_(1, labels, present.to(u.dtype))
    else:
        text = unit_text[labels]  # (L, B, D)
        target = torch.arange(batch, device=u.device).expand(lanes, batch)
        counts = present.to(u.dtype)
    logits = torch.matmul(u, text.mT).mul_(logit_scale)  # (L, B, K)
    at_target = logits.gather(2, target[..., None])[..., 0]
    log_counts = counts.log()[:, None]  # -inf for a class not in the batch
    by_row = torch.logsumexp(logits + log_counts, dim=2)  # (L, B)
    absent = ~present[..., None]
    by_column = torch.logsumexp(logits.masked_fill(absent, -torch.inf), dim=1)  # (L, K)

    size = present.sum(dim=1)  # (L,)
    total = ((by_row - 2 * at_target) * present).sum(dim=1) + (counts * by_column).sum(dim=1)
    weighted = logits + log_counts
    d_logits = (weighted - by_row[..., None]).exp() + (weighted - by_column[:, None]).exp()
    d_logits.scatter_add_(
        2, target[..., None], torch.full_like(target, -2, dtype=u.dtype)[..., None]
    )
    d_logits.div_(2 * size[:, None, None]).masked_fill_(absent, 0)
    return total / (2 * size), d_logits, logits, text


def _adam(
    weight: Tensor, gradient: Tensor, m: Tensor, v: Tensor, settings: AdamSettings, step: int
) -> None:
    """One step of torch.optim.Adam, each lane with its own settings; step counts from 1."""
    lanes = len(weight)

    def each(values: Tensor) -> Tensor:
        shape = (lanes,) + (1,) * (weight.ndim - 1)
        return values[:lanes].to(weight.device, torch.float32).view(shape)

    gradient.addcmul_(weight, each(settings.weight_decay))
    m.lerp_(gradient, each(1 - settings.beta1))
    v.mul_(each(settings.beta2)).add_(gradient.square_().mul_(each(1 - settings.beta2)))
    size = settings.lr / (1 - settings.beta1**step)
    correction = (1 - settings.beta2**step).sqrt()
    denominator = (v.sqrt() / each(correction)).add_(each(settings.eps))
    weight.addcdiv_(m * each(-size), denominator)
