"""Cross entropy of the next token at the read positions, with a hand-written gradient.

The logits are float32 [B, K, V] and large. The forward pass keeps them and the
log-sum-exp; the backward pass writes the gradient in one go, without one-hot or
log-softmax arrays. (Forming it in the forward pass by chunks of rows or of the
vocabulary was measured at B K = 256, V = 32,768 and is slower.)
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from bigvlm import types
from bigvlm.utils import names

Array = jax.Array
_NORMALIZE = ("example", "token")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def weighted_loss(
  logits: Array, labels: Array, coef: Array, smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[Array, Array, Array]:
  """Sum over positions of coef x (cross entropy + z_loss x lse^2).

  Args:
    logits: [..., V], computed in float32.
    labels: int32 [...].
    coef: float32 [...]; where it is 0 the logits may be anything.
    smoothing: the target is 1 - smoothing at the label, the rest shared by the others.
    z_loss: factor of the squared log-sum-exp.

  Returns:
    (loss float32 [], nll float32 [...] without smoothing and z-loss, hit float32 [...],
    1 where no logit is above the label's). Only the loss has a gradient, for `logits`.
  """
  return _forward(logits, labels, coef, smoothing, z_loss)[0]


def _shares(smoothing: float, vocab: int) -> tuple[float, float]:
  """(target at the label beyond the others' share, target of each other)."""
  other = smoothing / (vocab - 1)
  return 1.0 - smoothing - other, other


def _forward(logits, labels, coef, smoothing, z_loss):
  x, used = logits.astype(jnp.float32), coef != 0
  ones = jnp.ones((x.shape[-1],), jnp.float32)  # XLA's CPU sums are slow, its products fast.
  top = lax.stop_gradient(x.max(axis=-1))
  lse = top + jnp.log(jnp.exp(x - top[..., None]) @ ones)
  own = jnp.take_along_axis(x, labels[..., None], axis=-1)[..., 0]
  label, other = _shares(smoothing, x.shape[-1])
  loss = lse - label * own
  if smoothing:
    loss -= other * (x @ ones)
  if z_loss:
    loss += z_loss * lse**2
  loss = jnp.where(used, coef * loss, 0.0).sum()
  nll, hit = jnp.where(used, lse - own, 0.0), jnp.where(used, own >= top, False)
  return (loss, nll, hit.astype(jnp.float32)), (logits, lse, labels, coef)


def _backward(smoothing, z_loss, residuals, cotangents):
  logits, lse, labels, coef = residuals
  lse, coef = lse[..., None], coef[..., None]
  label, other = _shares(smoothing, logits.shape[-1])
  p = jnp.exp(logits.astype(jnp.float32) - lse)
  if z_loss:
    p *= 1.0 + 2.0 * z_loss * lse
  ids = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  target = jnp.where(ids == labels[..., None], label + other, other)
  g = jnp.where(coef != 0, (cotangents[0] * coef) * (p - target), 0.0)
  return g.astype(logits.dtype), None, None


weighted_loss.defvjp(_forward, _backward)


@jax.custom_vjp
def log_probs(logits: Array, labels: Array, weights: Array) -> Array:
  """Log-probability of each row's answer: sum over its positions of weight x log p(label).

  Args:
    logits: [B, K, V], computed in float32; the only argument with a gradient.
    labels: int32 [B, K].
    weights: float32 [B, K]; where it is 0 the logits may be anything.

  Returns:
    float32 [B], nats.
  """
  return _log_probs(logits, labels, weights)[0]


def _log_probs(logits, labels, weights):
  (_, nll, _), residuals = _forward(logits, labels, weights, 0.0, 0.0)
  return -(weights * nll).sum(-1), residuals


def _log_probs_backward(residuals, cotangent):
  *rest, weights = residuals
  return _backward(0.0, 0.0, (*rest, -cotangent[..., None] * weights), (1.0,))


log_probs.defvjp(_log_probs, _log_probs_backward)


def coefficients(weights: Array, normalize: str) -> Array:
  """What each position adds to the loss, float32 [B, K], from its weight [B, K].

  "example": mean over a row's weights, then over the rows that have any.
  "token": mean over all weights. All 0 when there is nothing to learn from.
  """
  weights = weights.astype(jnp.float32)
  if normalize == "token":
    return weights / _at_least(weights.sum())
  rows = weights.sum(axis=-1, keepdims=True)
  return weights / _at_least(rows) / _at_least((rows > 0).sum().astype(jnp.float32))


def _at_least(x: Array) -> Array:
  return jnp.where(x > 0, x, 1.0)


@dataclasses.dataclass(frozen=True)
class PrefixLM:
  """Objective of a generative model: cross entropy at the read positions.

  Reads `out.logits` [B, K, V], `batch.labels` and `batch.weights` [B, K]. Metrics,
  over the weighted positions and without smoothing: `nll` (nats), `accuracy`,
  `perplexity` (of the batch); and `loss`, over what it is normalised by.

  Attributes:
    label_smoothing: in [0, 1): 1 - it at the label, the rest shared by the other tokens.
    z_loss: factor of the squared log-sum-exp of the logits.
    normalize: "example" or "token", see `coefficients`.
  """

  label_smoothing: float = 0.0
  z_loss: float = 0.0
  normalize: str = "example"

  def __post_init__(self):
    if self.normalize not in _NORMALIZE:
      raise ValueError("objective.normalize: " + names.unknown("way", self.normalize, _NORMALIZE))
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(f"objective.label_smoothing={self.label_smoothing} is not in [0, 1)")

  def __call__(self, out: types.Outputs, batch: types.Batch):
    """Gives (loss float32 [], {metric: (sum, count)})."""
    coef = coefficients(batch.weights, self.normalize)
    loss, nll, hit = weighted_loss(
      out.logits, batch.labels, coef, self.label_smoothing, self.z_loss
    )
    weights = batch.weights.astype(jnp.float32)
    count = weights.sum()
    nll, hit = (weights * nll).sum(), (weights * hit).sum()
    perplexity = jnp.exp(nll / _at_least(count))
    # What the loss is a mean over: gradient accumulation weights micro-batches by it.
    means = count if self.normalize == "token" else (weights.sum(-1) > 0).sum().astype(jnp.float32)
    return loss, {
      "loss": (loss * means, means),
      "nll": (nll, count),
      "accuracy": (hit, count),
      "perplexity": (perplexity * count, count),
    }
