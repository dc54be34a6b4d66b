"""What every decoder does with its cache, whatever its layers keep in it."""

from typing import Any

import jax
import jax.numpy as jnp

from bigvlm.layers import masks
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
  places = fused.positions
  if places.ndim == 3:  # Text goes on behind the furthest of the axes, with all of them equal.
    places = jnp.max(places, axis=-1)
  pos = jnp.take_along_axis(places, fused.read[:, -1:], axis=1)[:, 0] + 1
  index = cache.index + fused.x.shape[1]
  cache = cache.replace(layers=layers, mask=keys, index=index, pos=pos)
  if fused.memory is None:
    return cache
  see = fused.see
  if see is not None:  # What comes next sees what the last position saw.
    see = jnp.take_along_axis(see, fused.read[:, -1:, None], axis=1)[:, 0]
  return cache.replace(label=fused.memory.label, see=see)


def read(cache: Cache | None, fused: Fused) -> jax.Array | None:
  """int32 [B, K], the positions whose states are asked for: with a cache `fused.read`. None = all
  (so a decoding step, which has but one)."""
  return None if cache is None or fused.x.shape[1] == 1 else fused.read


def seen(cache: Cache | None, fused: Fused) -> jax.Array | None:
  """bool [B, 1, L, M], which rows of the memory, given or in the cache, `fused` sees; None = there
  is no memory."""
  if fused.memory is not None:
    return masks.seen(fused.see, fused.memory.label)
  if cache is None or cache.label is None:
    return None
  return masks.seen(None if cache.see is None else cache.see[:, None], cache.label)
