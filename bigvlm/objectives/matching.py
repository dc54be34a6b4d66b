"""Contrast over given scores, and matching of pairs: BLIP-2's first stage (arXiv 2301.12597, 3.2).

Reference: LAVIS' `Blip2Qformer`. With `prefix_lm` beside them, `kind="total"` sums its three.
"""

import dataclasses

import jax
import jax.numpy as jnp

from bigvlm import types
from bigvlm.objectives import tiles

Array = jax.Array
_NONE = -1e30  # Logit of a pair that does not count: finite, so that differences are too.


@dataclasses.dataclass(frozen=True)
class Scores:
  """Symmetric softmax contrastive loss (InfoNCE) over scores that the model itself gives.

  Reads heads `scores` [B, B], images with texts of the whole batch, whatever devices hold it, and
  `scale`. A row counts when any of its `batch.weights` does. Metrics: `accuracy` (image to text,
  within the batch; a tie is a miss), `scale`, and `loss` over the rows that count.

  Attributes:
    label_smoothing: in [0, 1): so much of the target is shared by all that count, its own too.
  """

  label_smoothing: float = 0.0

  def __post_init__(self):
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(f"objective.label_smoothing={self.label_smoothing} is not in [0, 1)")

  def __call__(self, out: types.Outputs, batch: types.Batch):
    """Gives (loss float32 [], {metric: (sum, count)})."""
    scores, scale = out.heads["scores"].astype(jnp.float32), out.heads["scale"].reshape(())
    valid = tiles.valid_rows(batch, len(scores))
    count = jnp.maximum(valid.sum(), 1.0)
    pairs, own = valid[:, None] * valid > 0, jnp.eye(len(scores), dtype=bool)
    x = scale * jnp.where(pairs, scores, 0.0)  # A row that does not count may hold anything.
    diagonal = jnp.diagonal(x)

    def side(axis: int) -> Array:
      lse = jax.nn.logsumexp(jnp.where(pairs, x, _NONE), axis=axis)
      mean, share = jnp.sum(x, axis=axis) / count, self.label_smoothing
      losses = lse - (1.0 - share) * diagonal - share * mean
      return jnp.sum(jnp.where(valid > 0, losses, 0.0))

    total = 0.5 * (side(1) + side(0))
    best = jnp.max(jnp.where(pairs & ~own, x, -jnp.inf), axis=1)
    hits = jnp.sum(valid * (diagonal > best))
    return total / count, {
      "loss": (total, valid.sum()),
      "accuracy": (hits, valid.sum()),
      "scale": (scale, jnp.ones(())),
    }


@dataclasses.dataclass(frozen=True)
class Match:
  """Cross entropy of no and yes, over pairs that match and pairs that do not.

  Reads heads `match` [B, 2], logits of pairs that do, and `mismatch` [B, N, 2], of N that do not.
  A row counts when any of its `batch.weights` does; where only one does there is nothing else to
  draw, and its pair alone counts. Metrics: `accuracy`, and `loss` over the pairs.
  """

  def __call__(self, out: types.Outputs, batch: types.Batch):
    """Gives (loss float32 [], {metric: (sum, count)})."""
    yes, no = out.heads["match"].astype(jnp.float32), out.heads["mismatch"].astype(jnp.float32)
    valid = tiles.valid_rows(batch, len(yes))
    wrong = jnp.where(valid.sum() > 1, valid, 0.0)[:, None]
    weights = jnp.concatenate([valid[:, None], jnp.broadcast_to(wrong, no.shape[:2])], axis=1)
    # Logits of what is right behind those of what is not; a row that does not count may hold NaN.
    pairs = jnp.concatenate([yes[:, None], no[..., ::-1]], axis=1)
    pairs = jnp.where(weights[..., None] > 0, pairs, 0.0)
    lead = pairs[..., 1] - pairs[..., 0]
    total, count = jnp.sum(weights * jax.nn.softplus(-lead)), jnp.sum(weights)
    return total / jnp.maximum(count, 1.0), {
      "loss": (total, count),
      "accuracy": (jnp.sum(weights * (lead > 0)), count),
    }
