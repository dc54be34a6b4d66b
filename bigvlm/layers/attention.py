"""Multi-head attention: full, grouped-query and multi-query, with an optional cache."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.layers import dense, rope

# What stands for -inf: finite, so that a row that sees nothing stays finite.
_MASKED = -2.3819763e38


def attend(
  q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, softcap: float = 0.0
) -> jax.Array:
  """Softmax attention with float32 logits and softmax.

  Args:
    q: [B, L, H, h], scaled already.
    k, v: [B, S, K, h]; H is a multiple of K, query heads of a group are adjacent.
    mask: bool [B, 1, L, S], True = visible; None = all visible.
    softcap: c > 0 bounds the logits by c * tanh(logits / c) (Gemma 2, arXiv 2408.00118).

  Returns:
    [B, L, H, h] in q's dtype.
  """
  batch, length, heads, dim = q.shape
  groups = k.shape[2]
  q = q.reshape(batch, length, groups, heads // groups, dim)
  logits = dense.einsum("blkgh,bskh->bkgls", q, k, jnp.float32)
  if softcap:
    logits = softcap * jnp.tanh(logits / softcap)
  if mask is not None:
    logits = jnp.where(mask[:, :, None], logits, _MASKED)
  probs = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
  out = dense.einsum("bkgls,bskh->blkgh", probs, v)
  return out.reshape(batch, length, heads, dim)


class Attention(nn.Module):
  """Attention with projections `q`, `k`, `v` [D, heads, head_dim] and `o` [heads, head_dim, D].

  Attributes:
    heads, kv_heads, head_dim: kv_heads divides heads.
    bias: biases on all four projections.
    query_scale: factor on the queries (applied after the rotation).
    rope_base: base of the rotary embedding; 0 = none.
    softcap: bound of the attention logits; 0 = none.
    out_dim: width of the output, by default that of the queries.
  """

  heads: int
  kv_heads: int
  head_dim: int
  query_scale: float
  bias: bool = True
  rope_base: float = 0.0
  softcap: float = 0.0
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    memory: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    cache: dict | None = None,
    index: jax.Array | None = None,
  ) -> tuple[jax.Array, dict | None]:
    """Attends from x [B, L, D] to itself, or to `memory` [B, S, D].

    Args:
      x: queries.
      memory: what keys and values are made of, by default x.
      mask: see `attend`; over the cache's columns when there is one.
      positions: int32 [B, L] for the rotary embedding.
      cache: {"k", "v"} [B, S, K, h]; the new columns are written at `index`.
      index: int32 scalar.

    Returns:
      [B, L, D] and the updated cache (None without one).
    """
    dtypes = dict(bias=self.bias, dtype=self.dtype, param_dtype=self.param_dtype)
    width = x.shape[-1]
    memory = x if memory is None else memory

    def heads(name: str, n: int, source: jax.Array) -> jax.Array:
      shape = (source.shape[-1], n, self.head_dim)
      return dense.Linear("bld,dhk->blhk", shape, 2, name=name, **dtypes)(source)

    q = heads("q", self.heads, x)
    k = heads("k", self.kv_heads, memory)
    v = heads("v", self.kv_heads, memory)
    if self.rope_base:
      cos, sin = rope.tables(positions, self.head_dim, self.rope_base)
      q, k = rope.rotate(q, cos, sin), rope.rotate(k, cos, sin)
    q = q * jnp.asarray(self.query_scale, q.dtype)
    if cache is not None:
      at = (0, index, 0, 0)
      k = jax.lax.dynamic_update_slice(cache["k"], k.astype(cache["k"].dtype), at)
      v = jax.lax.dynamic_update_slice(cache["v"], v.astype(cache["v"].dtype), at)
      cache = {"k": k, "v": v}
    y = attend(q, k.astype(q.dtype), v.astype(q.dtype), mask, self.softcap)
    out = dense.Linear("blhk,hkd->bld", (self.heads, self.head_dim, width), name="o", **dtypes)
    return out(y), cache
