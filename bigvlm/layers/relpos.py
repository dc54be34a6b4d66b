"""Relative position bias of attention (T5, arXiv 1910.10683, section 2.1).

Every head has a learned number for each bucket of distances; it is added to the logits. Near
distances have a bucket each, farther ones share buckets whose borders grow by a constant factor.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigvlm.layers.module import Module


@functools.lru_cache
def buckets(count: int, max_distance: int, bidirectional: bool) -> np.ndarray:
  """The bucket of each distance key - query = -max_distance .. max_distance.

  Farther keys are in the bucket of the end. On the host and in float32, as the reference has it:
  the borders are where an accelerator's logarithm would differ.

  Args:
    count: number of buckets.
    max_distance: from where on all distances share the last bucket.
    bidirectional: half of the buckets are for keys after the query; otherwise those all share
      the bucket of distance 0.

  Returns:
    int32 [2 * max_distance + 1], read-only.
  """
  distance = np.arange(-max_distance, max_distance + 1)
  half = count // 2 if bidirectional else count
  after = np.where(distance > 0, half, 0) if bidirectional else 0
  away = np.abs(distance) if bidirectional else np.maximum(-distance, 0)
  exact = half // 2
  growth = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact))
  growth = growth / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
  far = np.minimum(exact + growth.astype(np.int32), half - 1)
  out = (after + np.where(away < exact, away, far)).astype(np.int32)
  out.flags.writeable = False
  return out


class RelativeBias(Module):
  """`table` [buckets, heads] -> a bias for every pair of a query and a key.

  Attributes: as `buckets`; heads: of the attention.
  """

  heads: int
  buckets: int = 32
  max_distance: int = 128
  bidirectional: bool = True
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Orders int32 [B, L] and [B, S] (of `MaskSpec`) -> [B, heads, L, S]."""
    shape = (self.buckets, self.heads)
    table = self.param("table", nn.initializers.normal(0.02), shape, self.param_dtype)
    rows = buckets(self.buckets, self.max_distance, self.bidirectional)
    by_distance = table.astype(self.dtype)[rows].T
    far = keys[:, None, :] - queries[:, :, None]
    far = jnp.clip(far, -self.max_distance, self.max_distance) + self.max_distance
    return jnp.take(by_distance, far, axis=1).swapaxes(0, 1)
