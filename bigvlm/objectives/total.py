"""Several objectives on one output: their weighted sum."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from bigvlm import types


@dataclasses.dataclass(frozen=True)
class Total:
  """Weighted sum of named objectives.

  Metrics are `NAME/METRIC`, and `NAME/loss` for each part's own loss.

  Attributes:
    parts: ((name, weight, objective), ...).
  """

  parts: tuple[tuple[str, float, Any], ...]

  def __call__(self, out: types.Outputs, batch: types.Batch):
    """Gives (loss float32 [], {metric: (sum, count)})."""
    total, metrics = 0.0, {}
    for name, weight, objective in self.parts:
      loss, found = objective(out, batch)
      total = total + weight * loss
      metrics[f"{name}/loss"] = (loss, jnp.ones(()))
      metrics |= {f"{name}/{key}": value for key, value in found.items()}
    return total, metrics
