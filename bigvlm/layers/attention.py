"""Multi-head attention: full, grouped-query and multi-query, with an optional cache."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.layers import dense, norms, rope

# What stands for -inf: finite, so that a row that sees nothing stays finite.
_MASKED = -2.3819763e38
# More logits than this (1 GiB of float32) are made in parts: a long video in an encoder.
_MOST = 2**28


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: jax.Array | None,
  softcap: float = 0.0,
  bias: jax.Array | None = None,
) -> jax.Array:
  """Softmax attention with float32 logits and softmax.

  Args:
    q: [B, L, H, h], scaled already.
    k, v: [B, S, K, h]; H is a multiple of K, query heads of a group are adjacent.
    mask: bool [B, 1, L, S], True = visible; None = all visible.
    softcap: c > 0 bounds the logits by c * tanh(logits / c) (Gemma 2, arXiv 2408.00118).
    bias: [1 or B, H, L, S], added to the logits (T5's relative positions).

  Returns:
    [B, L, H, h] in q's dtype.
  """
  batch, length, heads, dim = q.shape
  part = _part(length, batch * heads * k.shape[1])
  if part < length:

    def some(start):
      def cut(x, axis):  # A mask or bias may be the same for all queries.
        if x is None or x.shape[axis] == 1:
          return x
        return jax.lax.dynamic_slice_in_dim(x, start, part, axis)

      return _attend(cut(q, 1), k, v, cut(mask, 2), softcap, cut(bias, 2))

    y = jax.lax.map(jax.checkpoint(some), jnp.arange(0, length, part))
    return jnp.moveaxis(y, 0, 1).reshape(q.shape)
  return _attend(q, k, v, mask, softcap, bias)


def _part(length: int, row: int) -> int:
  """How many queries at a time, a divisor of their number; `row` is the logits of one."""
  return next(n for n in range(length, 0, -1) if length % n == 0 and (n * row <= _MOST or n == 1))


def _attend(q, k, v, mask, softcap, bias):
  batch, length, heads, dim = q.shape
  groups = k.shape[2]
  q = q.reshape(batch, length, groups, heads // groups, dim)
  # The order of the letters is that of the products' own results: no logits are transposed.
  logits = dense.einsum("blkgh,bskh->bklgs", q, k, jnp.float32)
  if softcap:
    logits = softcap * jnp.tanh(logits / softcap)
  if bias is not None:
    shape = (bias.shape[0], groups, heads // groups, *bias.shape[2:])
    logits = logits + jnp.swapaxes(bias.astype(jnp.float32).reshape(shape), 2, 3)
  if mask is not None:
    logits = jnp.where(mask[:, :, :, None], logits, _MASKED)
  # The sum is divided out of the result, which is smaller than the probabilities.
  top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  probs = jnp.exp(logits - top)
  total = jnp.sum(probs, axis=-1, keepdims=True)
  out = dense.einsum("bklgs,bskh->bklgh", probs.astype(q.dtype), v, jnp.float32) / total
  return jnp.moveaxis(out.astype(q.dtype), 1, 2).reshape(batch, length, heads, dim)


class Attention(nn.Module):
  """Attention with projections `q`, `k`, `v` [D, heads, head_dim] and `o` [heads, head_dim, D].

  Attributes:
    heads, kv_heads, head_dim: kv_heads divides heads.
    bias: biases on `q`, `k` and `v`. out_bias: on `o`; None = as `bias`.
    query_scale: factor on the queries (applied after the rotation).
    rope_base: base of the rotary embedding; 0 = none. rope_scale: divides its frequencies.
    rotary: what else there is to it.
    softcap: bound of the attention logits; 0 = none.
    qk_norm: a norm (key of `norms.NORMS`) of every query and key head; "" = none (Gemma 3).
    eps: of those norms. qk_joint: one norm spans all heads (InternViT-6B).
    query_init: factor on the start of the kernel of `q`, for a `query_scale` of 1 (T5).
  """

  heads: int
  kv_heads: int
  head_dim: int
  query_scale: float
  bias: bool = True
  rope_base: float = 0.0
  softcap: float = 0.0
  out_bias: bool | None = None
  rope_scale: float = 1.0
  qk_norm: str = ""
  eps: float = 1e-6
  query_init: float = 1.0
  rotary: rope.Rotary = rope.PLAIN
  qk_joint: bool = False
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    memory: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    positions: jax.Array | None = None,
    cache: dict | None = None,
    index: jax.Array | None = None,
  ) -> tuple[jax.Array, dict | None]:
    """Attends from x [B, L, D] to itself, or to `memory` [B, S, D].

    Args:
      x: queries.
      memory: what keys and values are made of, by default x, or the keys and values in `cache`
        when that comes without an index.
      mask, bias: see `attend`; over the cache's columns when there is one.
      positions: int32 [B, L] for the rotary embedding, or [B, L, A] with several axes.
      cache: {"k", "v"} [B, S, K, h]; the new columns are written at `index`. Without an index they
        are replaced by those of `memory`, or read.
      index: int32 scalar or None.

    Returns:
      [B, L, D] and the updated cache (None without one).
    """
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    width = x.shape[-1]
    stored = memory is None and cache is not None and index is None
    memory = x if memory is None else memory

    xavier = nn.initializers.xavier_uniform()

    def query_init(*args):
      return xavier(*args) * self.query_init

    def heads(name: str, n: int, source: jax.Array, init=xavier) -> jax.Array:
      shape = (source.shape[-1], n, self.head_dim)
      linear = dense.Linear("bld,dhk->blhk", shape, 2, self.bias, init, name=name, **dtypes)
      return linear(source)

    q = heads("q", self.heads, x, query_init if self.query_init != 1 else xavier)
    if stored:
      k, v = cache["k"], cache["v"]
    else:
      k, v = heads("k", self.kv_heads, memory), heads("v", self.kv_heads, memory)
    if self.qk_norm:

      def normed(name: str, y: jax.Array) -> jax.Array:
        norm = norms.NORMS[self.qk_norm](self.eps, name=name, **dtypes)
        return norm(y.reshape(*y.shape[:2], -1)).reshape(y.shape) if self.qk_joint else norm(y)

      q = normed("q_norm", q)
      if not stored:  # What is stored has been through it.
        k = normed("k_norm", k)
    if self.rope_base:
      how = (self.head_dim, self.rope_base, self.rope_scale, self.rotary)
      cos, sin = rope.tables(positions, *how)
      q, k = rope.rotate(q, cos, sin), rope.rotate(k, cos, sin)
    q = q * jnp.asarray(self.query_scale, q.dtype)
    if index is None and cache is not None:
      cache = {"k": k.astype(cache["k"].dtype), "v": v.astype(cache["v"].dtype)}
    elif cache is not None:
      at = (0, index, 0, 0)
      k = jax.lax.dynamic_update_slice(cache["k"], k.astype(cache["k"].dtype), at)
      v = jax.lax.dynamic_update_slice(cache["v"], v.astype(cache["v"].dtype), at)
      cache = {"k": k, "v": v}
    y = attend(q, k.astype(q.dtype), v.astype(q.dtype), mask, self.softcap, bias)
    shape = (self.heads, self.head_dim, width)
    out_bias = self.bias if self.out_bias is None else self.out_bias
    out = dense.Linear("blhk,hkd->bld", shape, bias=out_bias, name="o", **dtypes)
    return out(y), cache
