"""Preference optimisation: of two answers to one prompt the policy learns which is the better.

It is measured against a reference, what it was when its stage started. The trainer keeps that one
and brings its answer along (`DPO.refer`).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from bigvlm import types
from bigvlm.objectives import lm

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class DPO:
  """Weighted sum of three losses over pairs of answers, each the mean over the pairs.

  Rows 2n and 2n + 1 of the batch belong together, the chosen answer first (see
  `processing.pairs`). The reward r of an answer is beta x (log p - log p of the reference), its
  log-probabilities summed over its tokens.

  - preference: -log sigmoid(r_chosen - r_rejected), DPO (arXiv 2305.18290, eq. 7); with label
    smoothing s (1 - s) times that and s times the loss of the pair turned round (cDPO).
  - quality: -log sigmoid(r_chosen - d) - log sigmoid(d - r_rejected), BCO (arXiv 2404.04656); the
    shift d is the mean reward of all answers of the stage so far and has no gradient.
  - generation: cross entropy of the chosen answer, mean over its tokens.

  Preference 0.8, quality 0.2 and generation 1.0 is MPO (arXiv 2411.10442).

  Metrics, over the pairs: `margin` (r_chosen - r_rejected), `accuracy` (share of margins above 0),
  `chosen` and `rejected` (the rewards), `loss`.

  Attributes:
    beta: how dear it is to leave the reference, > 0.
    label_smoothing: in [0, 0.5), the share of pairs that are thought to be the wrong way round.
    preference, quality, generation: weights of the losses, >= 0.
  """

  beta: float = 0.1
  label_smoothing: float = 0.0
  preference: float = 1.0
  quality: float = 0.0
  generation: float = 0.0

  def __post_init__(self):
    if self.beta <= 0:
      raise ValueError(f"objective.beta={self.beta} is not above 0")
    if not 0 <= self.label_smoothing < 0.5:
      raise ValueError(f"objective.label_smoothing={self.label_smoothing} is not in [0, 0.5)")
    for name in ("preference", "quality", "generation"):
      if getattr(self, name) < 0:
        raise ValueError(f"objective.{name}={getattr(self, name)} is negative")
    if not self.preference + self.quality + self.generation:
      raise ValueError("objective.preference, quality and generation are all 0: nothing to learn")

  @property
  def pairs(self) -> bool:
    """Rows come in pairs, and a reference is needed."""
    return True

  @property
  def running(self) -> tuple[str, ...]:
    """Metrics whose sums over the stage it reads from `batch.extra["running"]`."""
    return ("chosen", "rejected") if self.quality else ()

  def refer(self, reference: types.Outputs, batch: types.Batch) -> types.Batch:
    """The batch with what the reference says of its answers, `extra["reference"]` float32 [B]."""
    weights = batch.weights.astype(jnp.float32)
    logp = lm.log_probs(reference.logits, batch.labels, weights)
    return batch.replace(extra={**batch.extra, "reference": logp})

  def __call__(self, out: types.Outputs, batch: types.Batch):
    """Gives (loss float32 [], {metric: (sum, count)})."""
    weights = batch.weights.astype(jnp.float32)
    logp, tokens = lm.log_probs(out.logits, batch.labels, weights), weights.sum(-1)
    whole = (tokens.reshape(-1, 2) > 0).all(-1).astype(jnp.float32)
    count = whole.sum()
    rewards = self.beta * (logp - batch.extra["reference"]).reshape(-1, 2)
    chosen, rejected = rewards[:, 0], rewards[:, 1]
    margin = chosen - rejected

    s = self.label_smoothing
    each = self.preference * ((1 - s) * jax.nn.softplus(-margin) + s * jax.nn.softplus(margin))
    sums = {"chosen": (whole * chosen).sum(), "rejected": (whole * rejected).sum()}
    if self.quality:
      shift = self._shift(sums, count, batch)
      both = jax.nn.softplus(shift - chosen) + jax.nn.softplus(rejected - shift)
      each += self.quality * both
    if self.generation:
      mean = (logp / jnp.where(tokens > 0, tokens, 1.0)).reshape(-1, 2)[:, 0]
      each -= self.generation * mean
    sums |= {"margin": (whole * margin).sum(), "accuracy": (whole * (margin > 0)).sum()}
    total = (whole * each).sum()
    loss = total / jnp.where(count > 0, count, 1.0)
    return loss, {name: (value, count) for name, value in ({"loss": total} | sums).items()}

  def _shift(self, sums: dict[str, Array], count: Array, batch: types.Batch) -> Array:
    """Mean reward of the stage so far, this batch included."""
    before = batch.extra.get("running", {})
    total, n = sum(sums.values()), len(sums) * count
    for value, times in before.values():
      total, n = total + value, n + times
    return lax.stop_gradient(total / jnp.where(n > 0, n, 1.0))
