"""What every decoder does with its cache, whatever its layers keep in it."""

from typing import Any

import jax
import jax.numpy as jnp

from bigvlm.types import Cache, Fused, MaskSpec


def empty(layers: Any, batch: int, length: int) -> Cache:
  """Cache of `length` columns around the zeroed buffers of the layers."""
  zeros = jnp.zeros((batch, length), jnp.int32)
  return Cache(layers, MaskSpec(zeros, zeros, zeros), jnp.int32(0), jnp.zeros((batch,), jnp.int32))


def columns(cache: Cache | None, mask: MaskSpec) -> MaskSpec:
  """The key columns once `mask` [B, L] is written behind those of the cache: [B, S]."""
  if cache is None:
    return mask

  def write(old, new):
    return jax.lax.dynamic_update_slice(old, new, (0, cache.index))

  return jax.tree.map(write, cache.mask, mask)


def advance(cache: Cache, layers: Any, keys: MaskSpec, fused: Fused) -> Cache:
  """The cache after `fused` [B, L, D]: its layers and columns, next column, next positions."""
  pos = jnp.take_along_axis(fused.positions, fused.read[:, -1:], axis=1)[:, 0] + 1
  return cache.replace(layers=layers, mask=keys, index=cache.index + fused.x.shape[1], pos=pos)
