"""Rows of several examples for a stage: how far the pictures of one move those of the next."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bigvlm import types
from bigvlm.processing import packing, pairs


def make(module: Any, processor: Any, cfg: Mapping, field: str) -> packing.Packed:
  """The processor of a stage's rows.

  Args:
    module: the model. processor: of one example.
    cfg: the stage's record. field: `stages[index]`, for errors.

  Raises:
    ValueError: a loss that weighs rows, or a length that does not fit.
  """
  if isinstance(processor, pairs.Pairs):
    raise ValueError(f"{field}.pack.count must be 1: {field}.objective reads rows of pairs")
  if cfg["objective"].get("normalize") != "token":
    raise ValueError(
      f"{field}.pack needs {field}.objective.normalize='token': rows differ in count"
    )

  def soft_rows(times: int) -> int:
    """Rows of the connector's output when there are so many times the pictures of an example."""

    def run():
      arrays = {}
      for name, (shape, dtype) in processor.spec().items():
        media = name not in (*packing.TEXT, *packing.READ, "bad")
        lead = (shape[0] * times, *shape[1:]) if media else shape
        arrays[name] = jnp.zeros((1, *lead), dtype)
      return module.init_with_output(jax.random.key(0), types.to_batch(arrays))[0].soft

    soft = jax.eval_shape(run)
    return 0 if soft is None else soft.x.shape[1]

  one, two = soft_rows(1), soft_rows(2)
  try:
    return packing.Packed(processor, **cfg["pack"], first=2 * one - two, shift=two - one)
  except ValueError as e:
    raise ValueError(f"{field}: {e}") from None
