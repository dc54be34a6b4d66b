"""Attention pooling: patches to one vector."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.layers import attention, dense, mlp, norms
from bigvlm.layers.module import Module


class MapHead(Module):
  """Multi-head attention pooling with one learned `probe` (Set Transformer, arXiv 1810.00825)."""

  heads: int
  hidden: int
  act: str = "gelu_tanh"
  eps: float = 1e-6
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """x [B, N, D], mask bool [B, N] (None = all are real) -> [B, D]."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    dim = x.shape[-1] // self.heads
    shape = (1, 1, x.shape[-1])
    probe = self.param("probe", nn.initializers.xavier_uniform(), shape, self.param_dtype)
    probe = jnp.broadcast_to(probe.astype(self.dtype), (x.shape[0], 1, x.shape[-1]))
    attn = attention.Attention(self.heads, self.heads, dim, dim**-0.5, name="attn", **dtypes)
    y, _ = attn(probe, x, mask=None if mask is None else mask[:, None, None])
    z = norms.LayerNorm(self.eps, name="norm", **dtypes)(y)
    return (y + mlp.Mlp(self.hidden, self.act, name="mlp", **dtypes)(z))[:, 0]


class ProbeHead(Module):
  """Attention of a learned `probe`, itself the query, over the patches, and a linear map (AIMv2).

  Reference: transformers' `Aimv2AttentionPoolingHead`. `bias`: on the keys and values.
  """

  heads: int
  bias: bool = False
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """x [B, N, D], mask bool [B, N] (None = all are real) -> [B, D]."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    batch, _, width = x.shape
    dim = width // self.heads
    probe = self.param("probe", nn.initializers.normal(0.02), (1, 1, width), self.param_dtype)
    q = probe.astype(self.dtype).reshape(1, 1, self.heads, dim) * jnp.asarray(dim**-0.5, self.dtype)

    def heads(name: str) -> jax.Array:
      shape = (width, self.heads, dim)
      return dense.Linear("bld,dhk->blhk", shape, 2, self.bias, name=name, **dtypes)(x)

    q = jnp.broadcast_to(q, (batch, 1, self.heads, dim))
    mask = None if mask is None else mask[:, None, None]
    y = attention.attend(q, heads("k"), heads("v"), mask).reshape(batch, width)
    return dense.Linear("bd,de->be", (width, width), name="out", **dtypes)(y)
