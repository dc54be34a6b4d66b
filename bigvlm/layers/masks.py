"""Attention masks: one function for encoders, prefix-LM, causal, packed and cached decoding.

A query sees a key when both are of the same example (`segment`, where 0 is
padding), the key's block is not later than the query's, and, with a window, the
query is less than `window` positions ahead. `block` is the cumulative sum of
`mask_ar`, so one int vector describes (rows: queries)

  mask_ar 0 0 0 0   all see all                      (encoder)
  mask_ar 1 1 1 1   each sees itself and the past    (causal)
  mask_ar 0 0 1 1   two see each other, then causal  (prefix-LM)
  mask_ar 0 1 0 1 0 blocks of two, causal over blocks
"""

import jax
import jax.numpy as jnp

from bigvlm.types import MaskSpec


def visible(
  queries: MaskSpec, keys: MaskSpec, window: int = 0, cut_blocks: bool = True
) -> jax.Array:
  """bool [B, 1, L, S], True where the query [B, L] sees the key [B, S].

  Args:
    queries: spec of the L query positions.
    keys: spec of the S key positions, the same struct or that of a cache.
    window: 0 = unlimited, else how far back a query looks (itself included).
    cut_blocks: whether the window also hides the query's own block.

  A negative segment is padding that looks, as that of transformers does: a query of its example and
  never a key.
  """
  same = jnp.abs(queries.segment)[:, :, None] == keys.segment[:, None, :]
  see = same & (keys.segment > 0)[:, None, :]
  see &= keys.block[:, None, :] <= queries.block[:, :, None]
  if window:
    near = queries.order[:, :, None] - keys.order[:, None, :] < window
    if not cut_blocks:
      near |= queries.block[:, :, None] == keys.block[:, None, :]
    see &= near
  return see[:, None]


def across(segment: jax.Array, label: jax.Array) -> jax.Array:
  """bool [B, 1, L, M], True where the query of `segment` [B, L] sees the memory row of `label`
  [B, M]: that of its own example, and no padding (0 or less); padding may look (see `visible`)."""
  see = jnp.abs(segment)[:, :, None] == label[:, None, :]
  return (see & (label > 0)[:, None, :])[:, None]


def seen(see: jax.Array | None, label: jax.Array) -> jax.Array:
  """bool [B, 1, L, M], True where a query with `see` [B, L, 2 * R] sees the memory row of `label`
  [B, M]: where it lies in one of its R ranges (first, last). Rows of label 0 are never seen; None =
  all others are, bool [B, 1, 1, M]."""
  real = (label > 0)[:, None, None]
  if see is None:
    return real
  row = label[:, None, :, None]
  inside = (see[:, :, None, 0::2] <= row) & (row <= see[:, :, None, 1::2])
  return jnp.any(inside, axis=-1)[:, None] & real
